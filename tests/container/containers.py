"""Containers without docker: the kernel's namespaces, and what deploy/container says is shared."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.daemon import DEADLINE_S, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy" / "container"
_SCRIPT: Final = Path(__file__).parent / "container.sh"
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Service:
    """What compose.yaml says of a service.

    Attributes:
        volumes: name to place.
        ipc: empty for a namespace of its own, or ``shareable``; else of which service it is.
    """

    name: str
    volumes: dict[str, str] = field(default_factory=dict)
    ipc: str = ""
    command: tuple[str, ...] = ()


def services() -> dict[str, Service]:
    """Read compose.yaml: the few forms of YAML that it uses."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "compose.yaml").read_text(), flags=re.MULTILINE)
    (body,) = re.findall(r"^services:\n(.*?)^volumes:\n", text, re.MULTILINE | re.DOTALL)
    found = {}
    for name, block in re.findall(r"^  (\w+):\n((?:    .*\n|\n)+)", body, re.MULTILINE):
        volumes = dict(re.findall(r"^      - (\w+):(/\S+)$", block, re.MULTILINE))
        ipc = re.search(r"^    ipc: (?:service:)?(\w+)$", block, re.MULTILINE)
        command = re.search(r"^    command: (\[.*\])$", block, re.MULTILINE)
        words = tuple(json.loads(command[1])) if command else ()
        found[name] = Service(name, volumes, ipc[1] if ipc else "", words)
    return found


def instructions() -> list[tuple[str, str]]:
    """Read the Containerfile: each instruction and what follows it."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)]


class Host:
    """Volumes, and the containers that run.

    Args:
        directory: for all that there is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[subprocess.Popen[str]] = []
        self._first: subprocess.Popen[str] | None = None

    def volume(self, name: str) -> Path:
        """A volume's directory."""
        place = self._directory / "volumes" / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def start(self, service: Service, *command: str) -> subprocess.Popen[str]:
        """Start a container as a service says; with its own command, or another."""
        if service.ipc not in ("", "shareable"):
            assert self._first is not None, "nobody is there whose namespace could be shared"
            ipc, shm = f"/proc/{inner_pid(self._first)}/ns/ipc", self._directory / "shm-shared"
        else:
            ipc = "-"
            shm = self._directory / ("shm-shared" if service.ipc else f"shm-{next(_numbers)}")
        shm.mkdir(exist_ok=True)
        name = f"{service.name}-{next(_numbers)}"
        volumes = [f"{self.volume(volume)}={place}" for volume, place in service.volumes.items()]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "TOWPATH_SOCKET": dict(instructions_of("ENV"))["TOWPATH_SOCKET"],
            "LC_ALL": "C.UTF-8",
            "HOME": "/tmp",
        }
        inside = ["env", "-i", *(f"{key}={value}" for key, value in environment.items())]
        process = subprocess.Popen(
            [
                *("bash", str(_SCRIPT), name, str(shm), ipc),
                *(*image(), ":", *volumes, ":"),
                *(*inside, *(command or service.command)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        if self._first is None:
            self._first = process
        return process

    def run(self, service: Service, *command: str, status: int = 0) -> str:
        """Run a container to its end; return what it printed, its complaints if it was to fail."""
        output, complaints = self.start(service, *command).communicate(timeout=2 * DEADLINE_S)
        process = self._running.pop()
        assert process.returncode == status, f"{command}: {process.returncode}\n{output}{complaints}"
        return complaints if status else output

    def close(self) -> None:
        """End all, the daemon last."""
        for process in reversed(self._running):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            process.communicate(timeout=DEADLINE_S)


def instructions_of(word: str) -> list[tuple[str, str]]:
    """What an instruction that sets names sets: ENV."""
    pairs = [rest.partition("=") for found, rest in instructions() if found == word]
    return [(key, value) for key, _, value in pairs]


def image() -> list[str]:
    """The directories that stand for the image: this machine's programs, this Python, this checkout."""
    places = [*_SYSTEM, sys.base_prefix, sys.prefix, str(ROOT)]
    kept: list[str] = []
    for place in places:
        if os.path.lexists(place) and not any(Path(place).is_relative_to(other) for other in kept):
            kept.append(place)
    return kept


def inner_pid(container: subprocess.Popen[str]) -> int:
    """The first process inside a container, as it is numbered here."""
    found: list[int] = []

    def is_there() -> bool:
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        found[:] = map(int, children)
        return bool(found)

    wait_until(is_there)
    return found[0]
