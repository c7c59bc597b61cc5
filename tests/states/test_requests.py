"""What is asked about a state's value: what needs no daemon to be seen."""

from __future__ import annotations

from towpath.states import requests


def test_the_pauses_of_an_update_are_bounded_and_not_alike() -> None:
    for attempt in range(1, requests.UPDATE_ATTEMPTS + 1):
        pauses = {requests.update_pause_s(attempt) for _ in range(100)}
        bound = min(requests.UPDATE_PAUSE_FIRST_S * 2 ** (attempt - 1), requests.UPDATE_PAUSE_MAX_S)
        assert len(pauses) > 90 and 0 <= min(pauses) < bound / 2 < max(pauses) <= bound
