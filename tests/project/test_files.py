"""What may not be in the repository, and what must be said in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.project.project_files import BIN, ROOT, own_files
from tests.support.deadlines import DEADLINE_S
from tests.support.longest import LONGEST_FIRST

# Written in pieces, so that this file does not contain what it looks for.
REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "registry." + "npmjs",
    "proxy." + "golang",
    "crates" + ".io",
]
PATHS = ["/work" + "/main", "/work" + "/shared", "/tmp" + "/spec", "/opt" + "/pypi", "/root" + "/"]
# A path counts where it begins, so not in "$directory/root/x".
FORBIDDEN = re.compile(
    "|".join([*map(re.escape, REGISTRIES), *(rf"(?<![\w}}$]){re.escape(path)}" for path in PATHS)]),
    re.IGNORECASE,
)


def test_no_registry_and_no_path_of_one_machine() -> None:
    found = []
    for name in own_files():
        text = (ROOT / name).read_text(errors="replace")
        found += [
            f"{name}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}" for hit in FORBIDDEN.finditer(text)
        ]
    assert found == []


def test_nothing_that_is_built_is_kept() -> None:
    built = {".so", ".o", ".pyc", ".whl", ".gz"}
    assert [str(name) for name in own_files() if name.suffix in built] == []


@pytest.mark.parametrize("name", [".ci/run", "tools/setup.sh", "tools/check.sh"])
def test_scripts_can_be_run(name: str) -> None:
    mode = subprocess.run(
        ["git", "ls-files", "-s", name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert mode.stdout.startswith("100755 ")
    subprocess.run(["sh", "-n", name], cwd=ROOT, check=True)


def test_help_lists_every_verb() -> None:
    verbs = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert verbs
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+) +\S", listed, re.MULTILINE) == verbs[1].split()


def test_continuous_integration_runs_exactly_the_two_verbs() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]


def test_shipped_units_verify_without_a_word(tmp_path: Path) -> None:
    """The programs that units name are installed elsewhere; here they are those of the environment."""
    units = [ROOT / name for name in own_files() if name.is_relative_to("deploy/systemd")]
    units = [unit for unit in units if unit.suffix in {".service", ".socket", ".target", ".timer"}]
    assert units, "deploy/systemd has no units"
    for unit in units:
        text = re.sub(r"(?<=[=\s])/\S*/bin/(?=towpathd?\b)", f"{BIN}/", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in units)]
    run = subprocess.run(verify, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_the_longest_tests_are_there() -> None:
    assert [name for name in LONGEST_FIRST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST_FIRST)) == len(LONGEST_FIRST)
