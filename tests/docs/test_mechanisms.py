"""docs/mechanisms.md: each example is run as it stands there, and prints what the page says."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.docs.markdown import ROOT, Block, blocks, code_spans, links, matches
from towpath.bindings import check_options, parse_url
from towpath.cli import grammar

PAGE: Final = "docs/mechanisms.md"
BLOCKS: Final = list(blocks(PAGE))
EXAMPLES: Final = [block for block in BLOCKS if block.task == "run"]
LINES_MAX: Final = 40


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda block: block.section.split(":")[0])
def test_an_example_prints_what_the_page_says(example: Block, tmp_path: Path) -> None:
    said = BLOCKS[BLOCKS.index(example) + 1]
    assert (said.task, said.section) == ("prints", example.section)
    run = subprocess.run(
        [sys.executable, "-c", example.text],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    # The C library takes the first realtime signals for itself, and not each takes as many.
    output = run.stdout.replace(f"signal {signal.SIGRTMIN + 3}", "signal 37")
    assert matches(said.text, output), output
    assert len(example.text.splitlines()) <= LINES_MAX, "no longer a screen"


def test_the_page_has_all_five_and_nothing_that_is_not_run() -> None:
    assert len(EXAMPLES) == 5
    assert [block.section for block in BLOCKS if block.task not in ("run", "prints")] == []


def test_the_bindings_that_it_names_can_be() -> None:
    found = [shlex.split(span) for span in code_spans(PAGE) if span.startswith("towpath bind ")]
    assert len(found) == 5
    for words in found:
        arguments = grammar.parse(words[1:])
        assert arguments is not None
        scheme, _ = parse_url(arguments.binding_url)
        check_options(scheme, arguments.direction, dict(arguments.option))


@pytest.mark.parametrize("page", ["docs/mechanisms.md", "docs/evolution.md", "deploy/container/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in links(page):
        assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target
