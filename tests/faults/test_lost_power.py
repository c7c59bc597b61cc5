"""A crash of the host at any moment: what was not synced may be there, in part, or not. Killing a process
proves nothing about that, because the kernel keeps what it has written.

The store's writes and syncs are recorded in their order. From the record the files are put together as a disk
might have them after the power failed between any two of them: what was synced, and of what was written since
then nothing, all, or any part, the last one torn. Names of files that were made are taken to be there.
Some parcels are in rows, some in segments.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import work
from tests.faults.conftest import UnderShim

HEAD = struct.Struct("<IIQQ")
WRITE, TRUNCATE, SYNC, UNLINK = range(4)
SECTOR = 512


@dataclass
class Operation:
    kind: int
    name: str
    offset: int
    data: bytes


@dataclass
class DiskFile:
    """A file as the disk surely has it, and what was done to it since."""

    durable: bytearray = field(default_factory=bytearray)
    since: list[Operation] = field(default_factory=list)

    def after_crash(self, kept: list[Operation], torn: int | None) -> bytes:
        """What it may be: ``kept`` of what was done since; of the last one ``torn`` sectors."""
        content = bytearray(self.durable)
        for index, operation in enumerate(kept):
            is_torn = torn is not None and index == len(kept) - 1
            apply(content, operation, torn * SECTOR if is_torn and torn is not None else None)
        return bytes(content)


def apply(content: bytearray, operation: Operation, at_most: int | None = None) -> None:
    if operation.kind == TRUNCATE:
        del content[operation.offset :]
        content.extend(bytes(operation.offset - len(content)))
        return
    data = operation.data[:at_most]
    content.extend(bytes(max(0, operation.offset - len(content))))
    content[operation.offset : operation.offset + len(data)] = data


def recorded(log: Path, directory: Path) -> Iterator[Operation]:
    data = log.read_bytes()
    place = 0
    while place < len(data):
        kind, name_bytes, offset, count = HEAD.unpack_from(data, place)
        place += HEAD.size
        path = Path(data[place : place + name_bytes].decode())
        name = str(path.relative_to(directory))
        place += name_bytes
        yield Operation(kind, name, offset, data[place : place + count])
        place += count


@dataclass
class Disk:
    """The files under the directory, up to some operation."""

    files: dict[str, DiskFile] = field(default_factory=dict)
    acknowledged: int = 0
    syncs: int = 0

    def do(self, operation: Operation) -> None:
        if operation.name == "acknowledged":
            self.acknowledged = int(operation.data)
            return
        if operation.kind == UNLINK:
            self.files.pop(operation.name, None)
            return
        is_of_a_directory = operation.kind == SYNC and operation.name not in self.files
        if not operation.name.startswith("store.sqlite") or is_of_a_directory:
            return
        file = self.files.setdefault(operation.name, DiskFile())
        if operation.kind == SYNC:
            for each in file.since:
                apply(file.durable, each)
            file.since.clear()
            self.syncs += 1
        else:
            file.since.append(operation)

    def crash(self, directory: Path, generator: random.Random, share: float) -> None:
        """Write the files as they may be: each operation that was not synced is there by chance ``share``."""
        for name, file in self.files.items():
            kept = [each for each in file.since if generator.random() < share]
            torn = generator.randrange(32) if kept and 0 < share < 1 else None
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(file.after_crash(kept, torn))


def crash_and_examine(disk: Disk, directory: Path, seed: int, share: float) -> None:
    directory.mkdir()
    disk.crash(directory, random.Random(seed), share)
    if not disk.files.get("store.sqlite", DiskFile()).durable and disk.acknowledged == 0:
        return  # the file was not made yet
    last = work.examine(directory / "store.sqlite")
    assert last in (disk.acknowledged, disk.acknowledged + 1) or (last == -1 and not disk.acknowledged), (
        f"{last} is there, {disk.acknowledged} was acknowledged (seed {seed}, share {share})"
    )


def run_crashes(under_shim: UnderShim, tmp_path: Path, commits: int, every: int) -> int:
    """Crash after each ``every``-th operation, and around each sync; return how often."""
    watched = tmp_path / "watched"
    watched.mkdir()
    run = under_shim("commit_and_tell.py", watched, commits, 400_000, log=tmp_path / "log")
    assert run.returncode == 0, run.stderr
    disk, crashes, syncs = Disk(), 0, 0
    for place, operation in enumerate(recorded(tmp_path / "log", watched)):
        if operation.kind == SYNC or place % every == 0 or disk.syncs != syncs:
            for share in (0.0, 0.5, 1.0) if place % 3 == 0 else (0.5,):
                crash_and_examine(disk, tmp_path / f"crash{crashes}", crashes, share)
                crashes += 1
            syncs = disk.syncs
        disk.do(operation)
    assert disk.acknowledged == commits
    return crashes


def test_nothing_acknowledged_is_missing_after_a_loss_of_power(under_shim: UnderShim, tmp_path: Path) -> None:
    assert run_crashes(under_shim, tmp_path, 24, 60) > 80


@pytest.mark.long
def test_nothing_acknowledged_is_missing_wherever_the_power_is_lost(
    under_shim: UnderShim, tmp_path: Path
) -> None:
    assert run_crashes(under_shim, tmp_path, 120, 3) > 1_000


def test_a_store_that_does_not_sync_is_found_out(under_shim: UnderShim, tmp_path: Path) -> None:
    """The test of the test: without its syncs the same crashes lose what was acknowledged."""
    watched = tmp_path / "watched"
    watched.mkdir()
    run = under_shim("commit_and_tell.py", watched, 6, 100_000, log=tmp_path / "log")
    assert run.returncode == 0, run.stderr
    disk = Disk()
    with pytest.raises(AssertionError, match="was acknowledged"):
        for place, operation in enumerate(recorded(tmp_path / "log", watched)):
            if operation.kind != SYNC or disk.acknowledged < 2:
                disk.do(operation)
            if operation.name == "acknowledged" and disk.acknowledged > 2:
                crash_and_examine(disk, tmp_path / f"crash{place}", place, 0.0)
