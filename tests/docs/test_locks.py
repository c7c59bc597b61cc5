"""docs/locks.md: each example is run as it stands there, and prints what the page says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import towpath
from tests.docs.markdown import ROOT, Block, blocks, links, matches
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath.locks.spaces import POLICIES
from towpath_broker.settings import load_settings

PAGE: Final = "docs/locks.md"
BLOCKS: Final = list(blocks(PAGE))
EXAMPLES: Final = [block for block in BLOCKS if block.task == "run"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda block: block.section)
def test_an_example_prints_what_the_page_says(example: Block, daemon: DaemonHandle, tmp_path: Path) -> None:
    said = BLOCKS[BLOCKS.index(example) + 1]
    assert (said.task, said.section) == ("prints", example.section)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    command = {"sh": ["bash", "-uc"], "python": [sys.executable, "-c"]}[example.language]
    run = subprocess.run(
        [*command, example.text],
        cwd=tmp_path,
        env={**daemon.environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert matches(said.text, run.stdout), (run.stdout, run.stderr)


def test_nothing_on_the_page_is_not_run() -> None:
    assert len(EXAMPLES) == 7
    assert [block.section for block in BLOCKS if block.task not in ("run", "prints", "settings")] == []


def test_the_settings_are_good_ones(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if block.task == "settings"]
    (tmp_path / "towpath.toml").write_text(block.text)
    assert load_settings(tmp_path / "towpath.toml", environment={}).lock_permissions["plant"].see


def test_it_has_each_policy_and_what_it_names_is_there() -> None:
    text = (ROOT / PAGE).read_text()
    assert [policy for policy in POLICIES if f"| `{policy}` |" not in text] == []
    for name in ("lock", "semaphore", "acquire_all", "guarded", "barrier", "latch", "election"):
        assert f"client.{name}(" in text and hasattr(towpath.Client, name)


def test_links_lead_somewhere() -> None:
    for target in links(PAGE):
        assert (ROOT / PAGE).parent.joinpath(target.partition("#")[0]).exists(), target
