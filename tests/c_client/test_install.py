"""``make install-c``: what it puts where is enough to compile; the manual page tells of every function."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import towpath
from tests.c_client.conftest import EXAMPLES, HEADERS
from tests.support.deadlines import DEADLINE_S

ROOT = HEADERS.parents[1]
PAGE = HEADERS / "towpath.h.3"


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    done = run("make", "install-c", f"PREFIX={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_its_pkg_config_file_is_enough(prefix: Path, tmp_path: Path) -> None:
    """Read as pkg-config does, which not every machine has."""
    lines = (prefix / "lib/pkgconfig/towpath.pc").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    values = {name: value.replace("${prefix}", values["prefix"]) for name, value in values.items()}
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert values["prefix"] == str(prefix)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", fields["Version"])
    flags = fields["Cflags"].replace("${includedir}", values["includedir"]).split()
    if shutil.which("pkg-config"):
        asked = run("pkg-config", "--cflags", "towpath", PKG_CONFIG_PATH=str(prefix / "lib/pkgconfig"))
        assert asked.stdout.split() == flags
    source = tmp_path / "program.c"
    source.write_text((EXAMPLES / "producer.c").read_text().replace('"towpath.h"', "<towpath.h>"))
    done = run(
        "gcc",
        *flags,
        "-Wall",
        "-Wextra",
        "-Werror",
        str(source),
        "-o",
        str(tmp_path / "program"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_it_has_the_version_of_the_distribution(prefix: Path) -> None:
    assert f"Version: {towpath.__version__}\n" in (prefix / "lib/pkgconfig/towpath.pc").read_text()
    assert (
        f'#define TOWPATH_VERSION "{towpath.__version__}"'
        in (prefix / "include/towpath_session.h").read_text()
    )


def test_every_header_is_there(prefix: Path) -> None:
    there = {path.name for path in (prefix / "include").iterdir()}
    assert there == {path.name for path in HEADERS.glob("*.h")}


def test_a_relative_prefix_is_refused() -> None:
    done = run("tools/install_c.sh", "here")
    assert (done.returncode, done.stdout) == (2, "")
    assert "absolute" in done.stderr


def public_functions() -> set[str]:
    """What is for programs: in the headers that they use, and without an underscore at the end."""
    pattern = re.compile(
        r"^(?:static inline|__attribute__.*static inline) [^(]*?\b(towpath_\w*[a-z])\(", re.MULTILINE
    )
    sources = (HEADERS / name for name in ("towpath.h", "towpath_headers.h", "towpath_error.h"))
    return {name for source in sources for name in pattern.findall(source.read_text())}


def test_the_page_has_every_function() -> None:
    functions = public_functions()
    assert len(functions) > 20
    named = set(re.findall(r"\b(towpath_\w*[a-z])\(", PAGE.read_text().split(".SH DESCRIPTION")[0]))
    assert named == functions


def test_the_example_on_the_page_compiles(tmp_path: Path) -> None:
    text = PAGE.read_text().split(".SH EXAMPLES\n.nf\n")[1].split(".fi\n")[0]
    source = tmp_path / "page.c"
    source.write_text(text.replace("\\-", "-"))
    done = run(
        "gcc",
        f"-I{HEADERS}",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        str(source),
        "-o",
        str(tmp_path / "page"),
    )
    assert done.returncode == 0, done.stderr


def test_the_page_is_well_formed() -> None:
    """Nothing of it is unknown markup, or falls outside the width of a terminal."""
    text = PAGE.read_text()
    known = {"TH", "SH", "SS", "B", "BI", "BR", "IR", "RB", "P", "nf", "fi", '\\"'}
    assert {line[1:].split()[0] for line in text.splitlines() if line.startswith(".")} <= known
    if shutil.which("groff"):
        done = run("groff", "-man", "-Tutf8", "-ww", "-z", str(PAGE))
        assert (done.returncode, done.stderr) == (0, "")
