"""The environment of a run: an installed wheel and the peers' packages, never the editable checkout.

Theory of operation
    The peers (the extra ``bench``) are installed once, at the versions of constraints.txt, into the
    environment that runs this; one that cannot be had is left out, with the reason. The wheel is built from
    a copy of the checkout and installed into an environment made for this run. That environment sees the
    other's packages behind its own, through a plain path: the hook of an editable install is not run from
    such a path.

Not here: what is measured.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Final

from tests.bench.site import PROGRAMS_VARIABLE
from tests.project.project_files import ROOT, copy_checkout

INSTALL_S: Final = 300


def peer_requirements() -> list[str]:
    """What pyproject.toml lists under ``bench``."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements: list[str] = settings["project"]["optional-dependencies"]["bench"]
    return requirements


def is_installed(requirement: str) -> bool:
    """Whether a distribution of that name is there, of whichever version."""
    name = re.split(r"[<>=! ]", requirement)[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def install_peers() -> dict[str, str]:
    """Install what is missing; return, for what could not be had, pip's last line."""
    missing = [requirement for requirement in peer_requirements() if not is_installed(requirement)]
    refused: dict[str, str] = {}
    for requirement in missing:
        print(f"bench: installing {requirement}", file=sys.stderr, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        pip += ["--only-binary", ":all:", "-c", str(ROOT / "constraints.txt"), requirement]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_S)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["pip failed"]
            refused[requirement] = lines[-1]
    return refused


def make(directory: Path) -> Path:
    """Build a wheel and install it; return the interpreter that has it.

    Raises:
        subprocess.CalledProcessError: it cannot be built.
    """
    source, home = directory / "checkout", directory / "environment"
    source.mkdir()
    copy_checkout(source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(directory),
        ".",
    ]
    subprocess.run(build, cwd=source, check=True, env={**os.environ, "TOWPATH_EXTENSION": "required"})
    (wheel,) = directory.glob("towpath-*.whl")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (packages,) = home.glob("lib/python3.*/site-packages")
    (packages / "peers.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "--python", str(python), *install], check=True)
    return python


def run_in(python: Path, arguments: list[str]) -> int:
    """Run the harness itself there; return its exit status."""
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, PROGRAMS_VARIABLE: programs}
    for name in [name for name in environment if name.startswith("TOWPATH_") and name != PROGRAMS_VARIABLE]:
        del environment[name]
    return subprocess.run(
        [str(python), "-m", "tests.bench", "--here", *arguments], cwd=ROOT, env=environment
    ).returncode
