"""The n-th write or sync of the store fails, for every n: nothing acknowledged is missing, nothing refused is
there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import UnderShim

ONCE, FOR_GOOD = 0, 1


@pytest.mark.parametrize(
    ("error", "stay"),
    [
        ("ENOSPC", ONCE),
        ("ENOSPC", FOR_GOOD),
        # As no room left is to whoever writes.
        pytest.param("EDQUOT", FOR_GOOD, marks=pytest.mark.long),
        ("EIO", ONCE),
        ("EIO", FOR_GOOD),
    ],
)
def test_each_write_and_sync_fails(under_shim: UnderShim, tmp_path: Path, error: str, stay: int) -> None:
    run = under_shim("fail_each.py", tmp_path, error, stay)
    assert run.returncode == 0, run.stderr
    lines = [line.split(" ", 4) for line in run.stdout.splitlines()]
    assert [int(line[0]) for line in lines] == [*range(1, len(lines) + 1)] and len(lines) > 100
    went_on = 0
    for _, acknowledged_text, refused, last_text, outcome in lines:
        acknowledged, last = int(acknowledged_text), int(last_text)
        where = f"{outcome}: {acknowledged} acknowledged, {refused} refused, {last} there"
        if outcome == "done":
            assert last == acknowledged, where
            went_on += refused != "-" and acknowledged > int(refused.split(",")[0]) - 1
        elif (
            acknowledged
        ):  # the process would end: what was under way is unknown, what was acknowledged is not
            assert last in (acknowledged, acknowledged + 1), where
        assert outcome in ("done", "StoreFull", "OSError", "OperationalError"), where
        assert error != "EIO" or refused == "-", where
    if (error, stay) == ("ENOSPC", ONCE):
        assert went_on > 25, "after a refusal the store goes on"
