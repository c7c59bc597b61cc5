"""The core's bounds: each can be set within its range and no further, and each is documented."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from towpath.errors import InvalidConfiguration, QuotaExceeded
from towpath_broker.core.limits import CELLS_MAX, RING_BYTES_LIMIT, Limits
from towpath_broker.core.quotas import Tally

BOUNDS = [bound.name for bound in fields(Limits)]


def test_every_bound_has_a_sentence_and_a_default_in_range() -> None:
    for bound, value in Limits().items():
        assert bound.metadata["doc"].endswith(".")
        assert 1 <= value <= bound.metadata["maximum"]


@pytest.mark.parametrize("name", BOUNDS)
def test_range(name: str) -> None:
    (maximum,) = (bound.metadata["maximum"] for bound in fields(Limits) if bound.name == name)
    minimum = 4096 if name == "ring_bytes_max" else 1
    for value in (minimum, maximum):
        legal: dict[str, Any] = {name: value}
        assert getattr(Limits(**legal), name) == value
    for value in (minimum - 1, maximum + 1, -1):
        illegal: dict[str, Any] = {name: value}
        with pytest.raises(InvalidConfiguration, match=name):
            Limits(**illegal)


def test_bounds_that_the_design_fixes() -> None:
    limits = Limits()
    assert (limits.channels_max, limits.ring_bytes_max) == (CELLS_MAX, RING_BYTES_LIMIT)
    assert limits.publishers_per_channel_max == 255


def test_tally_forgets_who_has_nothing() -> None:
    tally = Tally("things_max", "things")
    tally.add("a")
    tally.add("a")
    tally.add("b")
    assert (tally.count("a"), tally.count("b"), tally.count("c"), tally.total()) == (2, 1, 0, 3)
    with pytest.raises(QuotaExceeded, match="a has 2 things: things_max is 2"):
        tally.check("a", 2)
    tally.check("a", 3)
    for principal in ("a", "b", "a"):
        tally.remove(principal)
    assert tally.total() == 0
    assert not tally._counts
