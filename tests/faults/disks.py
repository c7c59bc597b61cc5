"""What a disk may have after the power failed, put together from a record of what was done to it.

The writes and syncs of some files are recorded in their order (``disk_shim.c``). From that the files are put
together as a disk might have them after the power failed between two of them: what was synced, and of what
was written since then nothing, all, or any part, the last one torn. Names of files that were made are there.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    """The files under the directory, up to some operation.

    Args:
        prefix: with which the names of the files begin that are followed.
    """

    prefix: str
    files: dict[str, DiskFile] = field(default_factory=dict)
    acknowledged: int = 0
    syncs: int = 0

    @property
    def is_made(self) -> bool:
        """Whether something of the file surely is there."""
        return bool(self.files.get(self.prefix, DiskFile()).durable)

    def do(self, operation: Operation) -> None:
        if operation.name == "acknowledged":
            self.acknowledged = int(operation.data)
            return
        if operation.kind == UNLINK:
            self.files.pop(operation.name, None)
            return
        is_of_a_directory = operation.kind == SYNC and operation.name not in self.files
        if not operation.name.startswith(self.prefix) or is_of_a_directory:
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
