"""The checker finds what it is for, and nothing else, in histories written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.histories.checker import History, check, check_lock, check_writes

Event = dict[str, Any]


def call(at: int, number: int, mode: str = "exclusive", weight: int = 1) -> Event:
    return {"kind": "call", "at_ns": at, "number": number, "mode": mode, "weight": weight}


def got(at: int, number: int, token: int, lock: str = "l") -> Event:
    return {"kind": "got", "at_ns": at, "number": number, "tokens": {lock: token}}


def end(at: int, number: int, *, is_valid: bool = True) -> Event:
    return {"kind": "end", "at_ns": at, "number": number, "is_valid": is_valid}


def write(at: int, number: int, hold: int, token: int) -> Event:
    return {"kind": "write", "at_ns": at, "number": number, "hold": hold, "lock": "l", "token": token}


def wrote(at: int, number: int, version: int) -> Event:
    return {"kind": "wrote", "at_ns": at, "number": number, "version": version}


def held(start: int, stop: int, token: int, mode: str = "exclusive", weight: int = 1) -> list[Event]:
    """One lock, asked for at ``start``, had one later, given back at ``stop``."""
    return [call(start, 1, mode, weight), got(start + 1, 1, token), end(stop, 1)]


def history(*workers: list[Event], fates: dict[int, list[Event]] | None = None) -> History:
    made = History()
    for index, told in enumerate(workers):
        made.add(f"w{index}", told, (fates or {}).get(index, []))
    return made


def found(*workers: list[Event], permits: int = 0, **options: Any) -> list[str]:
    return check(history(*workers, **options), {"l": permits})


# ---- one after the other -----------------------------------------------------------------------------------


def test_one_after_the_other_is_right() -> None:
    assert found(held(0, 10, 1), held(11, 20, 2)) == []


def test_two_at_a_time_are_found() -> None:
    (what,) = found(held(0, 10, 1), held(5, 20, 2))
    assert what.startswith("there was no room") and "token 1" in what and "token 2" in what


def test_who_waits_may_have_it_at_the_moment_it_is_given_back() -> None:
    waited = [call(2, 1), got(10, 1, 2), end(20, 1)]
    assert found(held(0, 10, 1), waited) == []
    waited[1] = got(9, 1, 2)
    assert len(found(held(0, 10, 1), waited)) == 1


def test_readers_share_and_exclude_writers() -> None:
    readers = [held(0, 10, 1, "shared"), held(2, 12, 2, "shared")]
    assert found(*readers, held(13, 20, 3)) == []
    assert len(found(*readers, held(8, 20, 3))) == 1
    assert len(found(held(0, 10, 1), held(8, 20, 2, "shared"))) == 1


def test_permits_are_counted() -> None:
    three = [held(0, 10, 1, "permits", 2), held(2, 12, 2, "permits", 1)]
    assert found(*three, permits=3) == []
    assert len(found(*three, permits=2)) == 1
    assert found(*three, held(10, 20, 3, "permits", 2), permits=3) == []
    assert len(found(*three, held(8, 20, 3, "permits", 1), permits=3)) == 1
    assert len(found(*three, held(10, 20, 3, "permits", 3), permits=3)) == 1


# ---- tokens ------------------------------------------------------------------------------------------------


def test_a_token_given_twice_is_found() -> None:
    assert any("twice" in each for each in found(held(0, 10, 7), held(11, 20, 7)))


def test_a_token_that_is_lower_than_an_earlier_one_is_found() -> None:
    (what,) = found(held(0, 10, 2), held(11, 20, 1))
    assert "earlier token" in what or "no room" in what


def test_tokens_of_overlapping_readers_may_be_in_any_order() -> None:
    assert found([call(0, 1, "shared"), got(9, 1, 2), end(20, 1)], held(3, 10, 1, "shared")) == []


# ---- killed and stopped ------------------------------------------------------------------------------------


def test_who_was_killed_holds_nothing_any_more() -> None:
    killed = [call(0, 1), got(1, 1, 1)]
    assert len(found(killed, held(5, 20, 2))) == 1
    assert found(killed, held(5, 20, 2), fates={0: [{"kind": "killed", "at_ns": 4}]}) == []
    assert len(found(killed, held(2, 20, 2), fates={0: [{"kind": "killed", "at_ns": 4}]})) == 1


def test_who_was_stopped_may_have_lost_it() -> None:
    fates = {0: [{"kind": "stopped", "at_ns": 4}]}
    assert found(held(0, 30, 1), held(5, 20, 2), fates=fates) == []
    assert len(found(held(0, 30, 1), held(2, 20, 2), fates=fates)) == 1


def test_a_write_shows_that_it_had_not() -> None:
    told = [call(0, 1), got(1, 1, 1), write(15, 2, 1, 1), wrote(16, 2, 1), end(30, 1)]
    fates = {0: [{"kind": "stopped", "at_ns": 4}]}
    assert len(check_lock(history(told, held(5, 20, 2), fates=fates).holds, 0)) == 1
    assert found(told, held(15, 20, 2), fates=fates) == []


def test_who_knows_that_it_was_lost_claims_nothing() -> None:
    lost = [call(0, 1), got(1, 1, 1), end(30, 1, is_valid=False)]
    assert found(lost, held(5, 20, 2)) == []


# ---- writes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "wrong"), [(3, 0), (30, 1)])
def test_a_write_after_a_later_grant_is_found(at: int, wrong: int) -> None:
    old = [call(0, 1), got(1, 1, 1), write(at, 2, 1, 1), wrote(at + 1, 2, 1)]
    fates = {0: [{"kind": "stopped", "at_ns": 4}]}
    assert len(check_writes(history(old, held(10, 20, 2), fates=fates))) == wrong


def test_a_write_that_was_refused_is_right() -> None:
    old = [call(0, 1), got(1, 1, 1), write(30, 2, 1, 1)]
    old.append({"kind": "refused", "at_ns": 31, "number": 2, "code": "FENCED"})
    made = history(old, held(10, 20, 2), fates={0: [{"kind": "stopped", "at_ns": 4}]})
    assert check(made, {}) == [] and made.codes == {"FENCED": 1}


def test_versions_must_grow_with_tokens() -> None:
    one = [call(0, 1), got(1, 1, 1), write(2, 2, 1, 1), wrote(3, 2, 9), end(4, 1)]
    two = [call(5, 1), got(6, 1, 2), write(7, 2, 1, 2), wrote(8, 2, 8), end(9, 1)]
    (what,) = check_writes(history(one, two))
    assert "overwrote" in what
