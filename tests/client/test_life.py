"""When a local client gives up trying to connect, and what it says then."""

from __future__ import annotations

import pytest

from towpath.errors import (
    ConnectionLost,
    PermissionDenied,
    ProtocolViolation,
    TowpathError,
    Unavailable,
    VersionMismatch,
)
from towpath.life import Life
from towpath.waiting import RECONNECT_FIRST_S, RECONNECT_MAX_S, Pauses


@pytest.mark.parametrize(
    ("error", "was_welcome", "goes_on"),
    [
        (None, False, True),
        (ConnectionLost("the daemon went"), False, True),
        (ConnectionLost("the daemon went"), True, True),
        (PermissionDenied("not you"), False, False),
        (PermissionDenied("not now"), True, True),
        (ProtocolViolation("nonsense"), True, True),
        (VersionMismatch("another protocol"), False, False),
        (VersionMismatch("it was replaced"), True, False),
    ],
)
def test_a_client_goes_on_unless_it_was_refused_for_good(
    error: TowpathError | None, was_welcome: bool, goes_on: bool
) -> None:
    life = Life()
    if was_welcome:
        life.welcomed()
    assert life.lost(error) is goes_on
    assert life.is_over is not goes_on
    if not goes_on:
        assert error is not None
        assert (type(life.over()), str(life.over())) == (type(error), str(error))
        assert life.over() is not life.over()  # each who asks has a traceback of his own


def test_a_closed_client_says_so_and_a_forked_one_that_it_is_the_parents() -> None:
    life = Life()
    life.check_not_forked()
    life.is_closed = True
    assert life.is_over
    assert str(life.over()) == "the client is closed"
    life.check_not_forked()
    why = life.abandon()
    assert "fork" in str(why)
    with pytest.raises(ConnectionLost, match="fork"):
        life.check_not_forked()


def test_pauses_grow_up_to_their_bound_and_begin_anew() -> None:
    pauses = Pauses()
    expected_s = RECONNECT_FIRST_S
    for _ in range(12):
        assert expected_s / 2 <= pauses.next_s() <= expected_s
        expected_s = min(2 * expected_s, RECONNECT_MAX_S)
    assert expected_s == RECONNECT_MAX_S
    pauses.begin_anew()
    assert pauses.next_s() <= RECONNECT_FIRST_S


def test_why_the_last_connection_ended_is_kept_for_people() -> None:
    life = Life()
    assert life.last_error is None
    life.lost(gone := Unavailable("gone"))
    assert life.last_error is gone
