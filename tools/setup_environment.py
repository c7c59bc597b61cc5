"""Make `.venv`: the system packages needed to build, the virtual environment, the packages, the C extension.

Theory of operation: each step leaves a stamp in `.venv` that holds a digest of what it depended on, so that
a second run only compares digests (well under a second) and a changed file repeats only the steps that it
touches. A run holds an exclusive lock on pyproject.toml, so that two verbs started at once do not install
into each other. The output of pip, apt and the compiler is kept back and shown in full when a step fails.

Invariants: standard library only, Python 3.11; nothing outside the checkout is changed, except that root on
a machine with apt gets the missing system packages. A stamp is written after its step has succeeded, never
before.

Not here: finding Python itself (tools/setup.sh), generated code (tools/generate_protos.py).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CREATED = VENV / ".created"
ENVIRONMENT_STAMP = VENV / ".environment"
EXTENSION_STAMP = VENV / ".extension"
PACKAGE = ROOT / "clients" / "python" / "towpath"
BRIDGE = ROOT / "broker" / "towpath_broker" / "gateways" / "bridge"
HEADERS = ROOT / "clients" / "c"
# All but `systemd`, which is installed by itself: where libsystemd is missing the rest must still come.
EXTRAS = "dev,broker,zmq,grpc,mq,sysv,cluster,tracing,plot"


class SetupError(Exception):
    """A step that failed for a reason that one line can say."""


def say(text: str) -> None:
    """Write one line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def run(title: str, command: Iterable[str | Path], **environment: str) -> str:
    """Run one step in the checkout, saying its title and how long it took.

    Returns:
        What the command wrote.

    Raises:
        SetupError: The command failed; its whole output has been shown.
    """
    arguments = [str(word) for word in command]
    started_at = time.monotonic()
    print(f"setup: {title} ... ", end="", file=sys.stderr, flush=True)
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    print(f"{time.monotonic() - started_at:.1f} s", file=sys.stderr, flush=True)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise SetupError(f"{title} failed (exit {done.returncode}): {' '.join(arguments)}")
    return done.stdout


def succeeds(*command: str, text: str = "") -> bool:
    """Whether a command is there and exits 0."""
    try:
        return subprocess.run(command, input=text, text=True, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def has_libsystemd() -> bool:
    """Whether systemd-python can be built."""
    return succeeds("pkg-config", "--exists", "libsystemd")


def can_compile() -> bool:
    """Whether there is a C compiler with the C library's headers."""
    return succeeds("gcc", "-fsyntax-only", "-xc", "-", text="#include <stdio.h>\n")


def has_python_headers() -> bool:
    """Whether an extension for this interpreter can be compiled."""
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def runs_in_venv() -> bool:
    """Whether this is the environment's own interpreter: tools/setup.sh takes it once it is complete."""
    return Path(sys.prefix).resolve() == VENV


def can_make_venv() -> bool:
    """Whether `python -m venv` will work: Debian keeps ensurepip in a package of its own."""
    return importlib.util.find_spec("venv") is not None and importlib.util.find_spec("ensurepip") is not None


def distribution_python() -> str:
    """Name the system package that this interpreter comes from, `python3` if it is not a system one."""
    versioned = f"python{sys.version_info.major}.{sys.version_info.minor}"
    real = Path(sys.base_prefix) == Path("/usr") and Path("/usr/bin", versioned).exists()
    return versioned if real else "python3"


def missing_packages() -> tuple[list[str], list[str]]:
    """List the system packages that are missing: those the build must have, then those it can do without."""
    python = distribution_python()
    needed: list[str] = []
    if not can_compile():
        needed += ["gcc", "libc6-dev"]
    if not has_python_headers():
        needed.append(f"{python}-dev")
    if not runs_in_venv() and not can_make_venv():
        needed.append(f"{python}-venv")
    wanted = [] if has_libsystemd() else ["libsystemd-dev", "pkg-config"]
    if not shutil.which("systemd-analyze"):
        wanted.append("systemd")  # a test lets it verify the shipped units
    return needed, wanted


def ask_apt(*lists: list[str]) -> None:
    """Install each list of system packages; a failure is shown, and what is missing is looked up again."""
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends"]
    try:
        run("package lists", ["apt-get", "update", "-q"], DEBIAN_FRONTEND="noninteractive")
        for packages in filter(None, lists):
            title = f"system packages {' '.join(packages)}"
            run(title, [*install, *packages], DEBIAN_FRONTEND="noninteractive")
    except SetupError as error:
        say(str(error))
    importlib.invalidate_caches()


def install_system_packages() -> None:
    """Install what is missing where root and apt are there; otherwise say in one line what to install.

    Raises:
        SetupError: Something that the build cannot do without is missing and could not be installed.
    """
    needed, wanted = missing_packages()
    if (needed or wanted) and os.geteuid() == 0 and shutil.which("apt-get"):
        # Apart, so that a distribution without the second kind still gives the first.
        ask_apt(needed, wanted)
        needed, wanted = missing_packages()
    hint = f"apt-get install {' '.join(needed + wanted)} (as root)"
    if needed == [f"{distribution_python()}-venv"] and venv_without_ensurepip():
        needed = []
    if needed:
        raise SetupError(f"{', '.join(needed)} missing; install with {hint} and run this again")
    if wanted:
        say(f"going on without {', '.join(wanted)}, so without systemd's part; to have it: {hint}")


def venv_without_ensurepip() -> bool:
    """Whether this interpreter's own pip can stand in for ensurepip."""
    return importlib.util.find_spec("venv") is not None and succeeds(
        sys.executable, "-m", "pip", "--python", sys.executable, "--version"
    )


def create_venv() -> None:
    """Create the virtual environment, over what is there if that is only unfinished."""
    command: list[str | Path] = [sys.executable, "-m", "venv", VENV]
    # Once finished and yet not ours to run: the checkout was moved, or its Python is gone.
    if CREATED.exists() or (PYTHON.is_symlink() and not succeeds(str(PYTHON), "-c", "")):
        command.append("--clear")
    if not can_make_venv():
        command.append("--without-pip")
    run(f"virtual environment .venv, Python {sys.version.split()[0]}", command)
    if not can_make_venv():
        install = ["install", "-q", "pip"]
        run("pip", [sys.executable, "-m", "pip", "--python", PYTHON, *install])
    CREATED.write_text(f"{ROOT}\n")


def install_packages(systemd: Iterable[str]) -> None:
    """Install the checkout in editable form with everything that developing it takes.

    Args:
        systemd: The requirements of the extra `systemd`, which may fail.
    """
    # By environment and not by -c, so that pip holds what it installs to build with to the same versions. A
    # relative name, since pip splits the value at spaces.
    pins = {"PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt"}
    pip: list[str | Path] = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # The extension is a step of its own, which repeats alone when a C file changes.
    run("packages", [*pip, "-e", f".[{EXTRAS}]"], TOWPATH_EXTENSION="off", **pins)
    name_folders()
    if has_libsystemd():
        try:
            run("systemd-python", [*pip, *systemd], **pins)
        except SetupError as error:
            say(f"going on without systemd-python: {error}")


def name_folders() -> None:
    """Have Python find the checkout's packages by their folders' names, as it finds those of a wheel.

    pip leaves a program there instead, which takes as long as Python itself does to start, in every process.
    """
    [left] = VENV.glob("lib/python*/site-packages/__editable__.towpath-*.pth")
    left.write_text(f"{PACKAGE.parent}\n{ROOT / 'broker'}\n")


def build_extension() -> None:
    """Compile `towpath._ring` and the bridge's `_native` in place and show the compiler's warnings.

    With `--force`, since a changed flag leaves no newer file behind.
    """
    build: list[str | Path] = [PYTHON, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    warnings = run("C extensions towpath._ring and _native", build, TOWPATH_EXTENSION="required")
    print(warnings, end="", file=sys.stderr)


def digest(paths: Iterable[Path], *facts: object) -> str:
    """Condense files and facts into one string that changes when any of them does."""
    state = hashlib.sha256(
        json.dumps([str(ROOT), sys.implementation.cache_tag, *facts], default=str).encode()
    )
    for path in sorted(paths):
        content = path.read_bytes()
        state.update(f"\0{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return state.hexdigest()


def is_current(stamp: Path, value: str) -> bool:
    """Whether a step has succeeded with exactly these inputs."""
    return stamp.exists() and stamp.read_text() == value


def bring_environment_up_to_date(settings: Mapping[str, Any]) -> None:
    """Do the steps before the extension, if what they depend on has changed since they last succeeded."""

    def inputs() -> str:
        # Only what decides about installation: a changed linter option needs no new environment.
        relevant = [settings["build-system"], settings["project"], settings["tool"]["setuptools"]]
        return digest([ROOT / "constraints.txt", ROOT / "setup.py"], relevant, EXTRAS, has_libsystemd())

    if runs_in_venv() and is_current(ENVIRONMENT_STAMP, inputs()):
        return
    install_system_packages()
    if not runs_in_venv():
        create_venv()
    install_packages(settings["project"]["optional-dependencies"]["systemd"])
    ENVIRONMENT_STAMP.write_text(inputs())


def bring_extension_up_to_date(again: bool) -> None:
    """Compile the extension if it is not there, a file of it has changed, or it is asked for again."""
    native = BRIDGE.glob("_native*.[ch]")
    inputs = digest([*PACKAGE.glob("_ring*.[ch]"), *native, *HEADERS.glob("*.h"), ROOT / "setup.py"])
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    is_built = (PACKAGE / f"_ring{suffix}").exists() and (BRIDGE / f"_native{suffix}").exists()
    if again or not is_built or not is_current(EXTENSION_STAMP, inputs):
        build_extension()
        EXTENSION_STAMP.write_text(inputs)


def main() -> None:
    """Bring `.venv` up to date; exit 1 with one closing line when that is not possible."""
    parser = argparse.ArgumentParser(description="Make .venv and what it takes to build and test Towpath.")
    parser.add_argument("--extension", action="store_true", help="compile the C extension again in any case")
    arguments = parser.parse_args()
    started_at = time.monotonic()
    with open(ROOT / "pyproject.toml", "rb") as pyproject:
        fcntl.flock(pyproject, fcntl.LOCK_EX)
        try:
            bring_environment_up_to_date(tomllib.load(pyproject))
            bring_extension_up_to_date(arguments.extension)
        except SetupError as error:
            say(str(error))
            sys.exit(1)
    say(f"ready in .venv ({time.monotonic() - started_at:.1f} s)")


if __name__ == "__main__":
    main()
