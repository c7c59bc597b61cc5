"""`make evolution`, in its short form: the conversation moves through all steps, and the page is of this
story.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.deadlines import PROGRAM_S

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("Anonymous pipe", "FIFO", "Message queue", "Shared memory", "ZeroMQ", "gRPC")


def without_figures(text: str) -> str:
    """A page with its numbers, versions and widths of columns taken out."""
    return re.sub(r"[0-9][0-9,.]*(\S*)", "#", text)


def test_no_line_is_lost_and_the_page_is_not_stale(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/evolution/evolution.py"), "--short", "--page"]
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 107 bytes at most
        run = subprocess.run(
            [*command, str(tmp_path / "page.md")],
            env={**os.environ, "TMPDIR": short},
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(
        r"The consumer has [0-9,]+ lines: all that the producer wrote, once each, in order", run.stdout
    )
    binds = re.findall(r"^   (left|right)\$ +towpath bind", run.stdout, re.MULTILINE)
    assert (binds.count("right"), binds.count("left")) == (6, 3)
    for step in STEPS:
        assert re.search(rf"^   {step} +[0-9,]+ +[1-9][0-9,]* ", run.stdout, re.MULTILINE), step
    stored = (ROOT / "docs" / "evolution.md").read_text()
    assert without_figures((tmp_path / "page.md").read_text()) == without_figures(stored), (
        "stale: .venv/bin/python examples/evolution/evolution.py --page docs/evolution.md"
    )
