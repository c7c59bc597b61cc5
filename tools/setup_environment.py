"""Make `.venv`: the system packages needed to build, the virtual environment, the packages, the C extension.

Theory of operation: each step leaves a stamp in `.venv` that holds a digest of what it depended on, so that a second
run only compares digests (well under a second) and a changed file repeats only the steps that it touches. A run holds
an exclusive lock on pyproject.toml, so that two verbs started at once do not install into each other. The output of
pip, apt and the compiler is kept back and shown in full when a step fails.

Invariants: standard library only, Python 3.11; nothing outside the checkout is changed, except that root on a machine
with apt gets the missing system packages. A stamp is written after its step has succeeded, never before.

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

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CREATED = VENV / ".created"
ENVIRONMENT_STAMP = VENV / ".environment"
EXTENSION_STAMP = VENV / ".extension"
PACKAGE = ROOT / "clients" / "python" / "towpath"
HEADERS = ROOT / "clients" / "c"
# Everything but `systemd`, which is installed by itself: where libsystemd is missing the rest must still come.
EXTRAS = "dev,broker,zmq,grpc,mq,cluster"


class SetupError(Exception):
    """A step that failed for a reason that one line can say."""


def say(text: str) -> None:
    """Write one line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def run(title: str, command: Iterable[str | Path], **environment: str) -> None:
    """Run one step in the checkout, saying its title and how long it took.

    Raises:
        SetupError: The command failed; its whole output has been shown.
    """
    arguments = [str(word) for word in command]
    started_at = time.monotonic()
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
    took = f"{time.monotonic() - started_at:.1f} s"
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise SetupError(f"{title}: failed after {took} (exit {done.returncode}): {' '.join(arguments)}")
    say(f"{title} ({took})")


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


def can_make_venv() -> bool:
    """Whether `python -m venv` will work: Debian keeps ensurepip in a package of its own."""
    return importlib.util.find_spec("venv") is not None and importlib.util.find_spec("ensurepip") is not None


def distribution_python() -> str:
    """Name the system package that this interpreter comes from, `python3` if it is not a system one."""
    versioned = f"python{sys.version_info.major}.{sys.version_info.minor}"
    real = Path(sys.base_prefix) == Path("/usr") and Path("/usr/bin", versioned).exists()
    return versioned if real else "python3"


def missing_packages() -> tuple[list[str], list[str]]:
    """List the system packages that the build lacks: those it must have, then those it can do without."""
    python = distribution_python()
    needed = []
    if not can_compile():
        needed += ["gcc", "libc6-dev"]
    if not has_python_headers():
        needed.append(f"{python}-dev")
    if not CREATED.exists() and not can_make_venv():
        needed.append(f"{python}-venv")
    wanted = [] if has_libsystemd() else ["libsystemd-dev", "pkg-config"]
    return needed, wanted


def install_system_packages() -> None:
    """Install what the build lacks where root and apt are there; otherwise say in one line what to install.

    Raises:
        SetupError: Something that the build cannot do without is missing and could not be installed.
    """
    needed, wanted = missing_packages()
    if not needed and not wanted:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        packages = needed + wanted
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
        title = f"system packages {' '.join(packages)}"
        try:
            run(f"{title}: lists", ["apt-get", "update", "-q"], DEBIAN_FRONTEND="noninteractive")
            run(title, install, DEBIAN_FRONTEND="noninteractive")
        except SetupError as error:
            say(str(error))
        needed, wanted = missing_packages()
    hint = f"sudo apt-get install {' '.join(needed + wanted)}"
    if needed == [f"{distribution_python()}-venv"] and venv_without_ensurepip():
        needed = []
    if needed:
        raise SetupError(f"missing {', '.join(needed)}; run this and try again: {hint}")
    if wanted:
        say(f"going on without systemd-python, since libsystemd is missing (to have it: {hint})")


def venv_without_ensurepip() -> bool:
    """Whether this interpreter's own pip can stand in for ensurepip."""
    return importlib.util.find_spec("venv") is not None and succeeds(
        sys.executable, "-m", "pip", "--python", sys.executable, "--version"
    )


def create_venv() -> None:
    """Create the virtual environment; keep what an unfinished run left, unless its interpreter does not run."""
    command = [sys.executable, "-m", "venv", VENV]
    if PYTHON.is_symlink() and not succeeds(str(PYTHON), "-c", ""):
        command.append("--clear")
    if not can_make_venv():
        command.append("--without-pip")
    run(f"virtual environment .venv, Python {sys.version.split()[0]}", command)
    if not can_make_venv():
        pip = [sys.executable, "-m", "pip", "--python", PYTHON, "install", "-q", "pip"]
        run("pip, which this Python does not bring", pip)
    CREATED.touch()


def install_packages(project: Mapping[str, object]) -> None:
    """Install the checkout in editable form with everything that developing it takes."""
    # By environment and not by -c, so that pip holds what it installs to build with to the same versions.
    # A relative name, since pip splits the value at spaces.
    pins = {"PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt"}
    pip = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # The extension is a step of its own, which repeats alone when a C file changes.
    run("packages", [*pip, "-e", f".[{EXTRAS}]"], TOWPATH_EXTENSION="off", **pins)
    if has_libsystemd():
        extras = project["optional-dependencies"]
        assert isinstance(extras, dict)
        try:
            run("systemd-python", [*pip, *extras["systemd"]], **pins)
        except SetupError as error:
            say(f"going on without systemd-python: {error}")


def build_extension() -> None:
    """Compile `towpath._ring` in place; a warning-free build is silent, a failed one shows all."""
    build = [PYTHON, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    run("C extension towpath._ring", build, TOWPATH_EXTENSION="required")


def digest(paths: Iterable[Path], *facts: object) -> str:
    """Condense files and facts into one string that changes when any of them does."""
    state = hashlib.sha256(json.dumps([str(ROOT), sys.version, *facts], default=str).encode())
    for path in sorted(paths):
        content = path.read_bytes()
        state.update(f"\0{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return state.hexdigest()


def is_current(stamp: Path, value: str) -> bool:
    """Whether a step has succeeded with exactly these inputs."""
    return stamp.exists() and stamp.read_text() == value


def main() -> None:
    """Bring `.venv` up to date; exit 1 with one closing line when that is not possible."""
    parser = argparse.ArgumentParser(description="Make .venv and what it takes to build and test Towpath.")
    parser.add_argument("--extension", action="store_true", help="compile the C extension again in any case")
    arguments = parser.parse_args()
    started_at = time.monotonic()
    with open(ROOT / "pyproject.toml", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        settings = tomllib.load(lock)
        # Only what decides about installation: a changed linter option needs no new environment.
        relevant = [settings["build-system"], settings["project"], settings["tool"]["setuptools"]]
        environment = digest([ROOT / "constraints.txt", ROOT / "setup.py"], relevant, has_libsystemd())
        c_files = [*PACKAGE.glob("_ring*.[ch]"), *HEADERS.glob("*.h"), ROOT / "setup.py"]
        extension = digest(c_files)
        built = any(PACKAGE.glob(f"_ring{sysconfig.get_config_var('EXT_SUFFIX')}"))
        try:
            if not CREATED.exists() or not is_current(ENVIRONMENT_STAMP, environment):
                install_system_packages()
                if not CREATED.exists():
                    create_venv()
                install_packages(settings["project"])
                environment = digest([ROOT / "constraints.txt", ROOT / "setup.py"], relevant, has_libsystemd())
                ENVIRONMENT_STAMP.write_text(environment)
            if arguments.extension or not built or not is_current(EXTENSION_STAMP, extension):
                build_extension()
                EXTENSION_STAMP.write_text(extension)
        except SetupError as error:
            say(str(error))
            sys.exit(1)
    say(f"ready in .venv ({time.monotonic() - started_at:.1f} s)")


if __name__ == "__main__":
    main()
