"""Histories of real processes under blows: locks exclude, permits are counted, tokens grow, old ones are
refused, and nobody waits for ever; and bugs that a core might have are found by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.histories.nemesis import Blow, make

TRIES = 8
AGAIN = "python -m tests.histories.nemesis --seed {} --blows {}"


def check_history(directory: Path, seed: int, blows: int) -> None:
    history, found = make(directory, seed, blows)
    assert not found, f"again: {AGAIN.format(seed, blows)}\n" + "\n".join(found[:20])
    assert len(history.holds) > 10 * blows
    assert any(write.version for write in history.writes)


def test_a_few_dozen_blows(tmp_path: Path) -> None:
    check_history(tmp_path, 1, 24)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", range(2, 22))
def test_hundreds_of_blows(tmp_path: Path, seed: int) -> None:
    check_history(tmp_path, seed, 150)


def test_a_holder_that_is_stopped_for_too_long_cannot_write_any_more(tmp_path: Path) -> None:
    history, found = make(tmp_path, 1, [Blow.STOP_HOLDER])
    assert found == []
    assert history.codes["FENCED"] + history.codes["SESSION_LOST"] > 0


@pytest.mark.parametrize(
    ("bug", "blows", "sign"),
    [
        pytest.param(
            "granted_before_it_is_released",
            3 * [Blow.KEEP_LOCK],
            "there was no room",
            marks=pytest.mark.long,
        ),
        ("one_permit_too_many", 4 * [Blow.KEEP_PERMITS], "there was no room"),
        ("tokens_begin_anew", [Blow.KILL_CORE], "earlier token"),
        pytest.param(
            "fences_are_not_checked", [Blow.STOP_HOLDER], "it landed although", marks=pytest.mark.long
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bug_is_found(tmp_path: Path, bug: str, blows: list[Blow], sign: str) -> None:
    """Whether one shows depends on who comes when, so there are several tries; mostly the first is enough."""
    found: list[str] = []
    for seed in range(TRIES):
        directory = tmp_path / str(seed)
        directory.mkdir()
        found += make(directory, seed, blows, bug)[1]
        if any(sign in each for each in found):
            return
    pytest.fail(f"not found, but {found[:20]}")
