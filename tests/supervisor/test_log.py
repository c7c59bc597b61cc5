"""Log lines: one event, one line, whatever is in the fields."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.deadlines import DEADLINE_S
from towpath_broker.log import VALUE_CHARS_MAX, format_value, log

SCRIPT = """
from towpath_broker.log import log, set_level
log("test.detail", level="debug")
log("test.happened", number=3, text="two words", empty="", nothing=None, lines="a\\nb")
set_level("error")
log("test.warned", level="warning")
log("test.failed", level="error")
"""


def test_a_line_has_time_level_event_and_fields(capfd: pytest.CaptureFixture[str]) -> None:
    log("test.happened", level="warning", number=3, text="two words", empty="", nothing=None, lines="a\nb")
    line = capfd.readouterr().err
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning test\.happened"
        r' number=3 text="two words" lines="a\\nb"\n',
        line,
    )


def test_the_journal_gets_the_level_its_own_way_and_what_is_below_it_is_dropped(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as journal:
        status = os.fstat(journal.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        subprocess.run(
            [sys.executable, "-c", SCRIPT], stderr=journal, env=env, check=True, timeout=DEADLINE_S
        )
    assert (tmp_path / "journal").read_text().splitlines() == [
        '<6>test.happened number=3 text="two words" lines="a\\nb"',
        "<3>test.failed",
    ]


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    readable, writable = os.pipe()
    os.close(readable)
    run = subprocess.run([sys.executable, "-c", SCRIPT], stderr=writable, check=False, timeout=DEADLINE_S)
    os.close(writable)
    assert run.returncode == 0


@given(st.one_of(st.text(), st.integers(), st.binary(), st.lists(st.text())))
def test_no_value_can_break_a_line_or_fill_the_log(value: object) -> None:
    text = format_value(value)
    assert text
    assert "\n" not in text
    assert text.isascii() and text.isprintable()
    assert len(text) <= 12 * VALUE_CHARS_MAX + 2
