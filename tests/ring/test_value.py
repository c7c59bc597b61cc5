"""The value page: its C tests, plain, under sanitizers and with faults; and Python's side of it."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath import _ring
from towpath._ring import RingError, Value, ValueReader, ValueWriter
from towpath._value import PurePythonValue

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
HEADER = Path(__file__).parents[2] / "clients" / "c" / "towpath_value.h"


@pytest.mark.parametrize("flags", [(), ADDRESS, ("-O2",)], ids=["plain", "address", "optimized"])
def test_nothing_torn_and_nobody_waits(c_test: Callable[..., str], flags: tuple[str, ...]) -> None:
    """Also when the writer is killed around each of its stores."""
    assert c_test("value_test", flags) == "ok\n"


@pytest.mark.parametrize("flags", [(), ("-fsanitize=thread",)], ids=["plain", "thread"])
@pytest.mark.parametrize("values", [5_000, pytest.param(500_000, marks=pytest.mark.long)])
def test_threads(c_test: Callable[..., str], flags: tuple[str, ...], values: int) -> None:
    assert c_test("value_threads_test", flags, str(values)) == "ok\n"


@pytest.mark.parametrize("fault", [1, 2, 3, 4])
def test_faults_are_found(c_program: Callable[..., Path], fault: int) -> None:
    program = c_program("value_test", (f"-DTOWPATH_VALUE_FAULT={fault}",))
    found = subprocess.run([program], capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert found.returncode == 99, found
    assert "CHECK" in found.stderr


@pytest.mark.parametrize("command", [["gcc", "-std=c11", "-Wpedantic", "-Wshadow", "-Wconversion"], ["g++"]])
def test_header_stands_alone(command: list[str]) -> None:
    language = "c++" if command[0] == "g++" else "c"
    checked = subprocess.run(
        [*command, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", language, "-"],
        input=f'#include "{HEADER}"\n',
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.fixture
def page() -> tuple[ValueWriter, ValueReader]:
    writer = ValueWriter(1000)
    fd = writer.share()
    reader = ValueReader(fd)
    os.close(fd)
    return writer, reader


def test_get_and_look(page: tuple[ValueWriter, ValueReader]) -> None:
    writer, reader = page
    assert reader.get() is None
    nothing = reader.look()
    assert isinstance(nothing, Value)
    assert (nothing.version, nothing.is_set, nothing.payload) == (0, False, b"")
    writer.write(1, 77, b"", b"payload")
    value = reader.get()
    assert value == Value(b"payload", version=1, changed_at_ns=77)
    assert isinstance(value, Value)
    assert not value.headers.user and value.headers_raw == b""
    writer.write(2, 78, b"", None)
    assert reader.get() is None
    gone = reader.look()
    assert isinstance(gone, Value)
    assert (gone.version, gone.is_set) == (2, False)


def test_what_does_not_fit_is_elsewhere(page: tuple[ValueWriter, ValueReader]) -> None:
    writer, reader = page
    writer.write(1, 1, b"h" * 400, b"p" * 600)
    value = reader.get()
    assert value and (value.headers_raw, value.payload) == (b"h" * 400, b"p" * 600)
    writer.write(2, 1, b"h" * 400, b"p" * 601)
    assert reader.get() is False
    assert reader.look() is False
    writer.write(3, 1, b"", b"fits")
    assert reader.get() == Value(b"fits", version=3, changed_at_ns=1)
    writer.withdraw()
    assert reader.get() is False


def test_closed_ends(page: tuple[ValueWriter, ValueReader]) -> None:
    writer, reader = page
    writer.write(1, 1, b"", b"last")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(2, 1, b"", b"x")
    with pytest.raises(ValueError, match="closed"):
        writer.share()
    value = reader.get()
    assert value and value.payload == b"last"
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.get()


@pytest.mark.parametrize("size", [0, -1, 2**28 + 1, 2**40])
def test_sizes_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        ValueWriter(size)


def test_values_compare_like_those_in_python() -> None:
    for kind in (Value, PurePythonValue):
        one = kind(b"x", version=3, changed_at_ns=4)
        assert one == kind(b"x", version=3, changed_at_ns=4, headers_raw=b"", is_set=True)
        assert one != kind(b"y", version=3, changed_at_ns=4)
        assert one != kind(b"x", version=4, changed_at_ns=4)
        assert hash(one) == hash(kind(b"x", version=3, changed_at_ns=4))
        assert one.headers.content_type == ""
        with pytest.raises(AttributeError):
            one.payload = b"z"  # type: ignore[misc]


def test_only_a_sealed_page_is_mapped() -> None:
    writer = ValueWriter(100)
    ring = _ring.Writer(1, 4096)
    for fd in (ring.share(), os.memfd_create("no page"), os.open("/dev/null", os.O_RDONLY)):
        with pytest.raises(RingError):
            ValueReader(fd)
        os.close(fd)
    with pytest.raises(OSError):
        ValueReader(-1)
    fd = writer.share()
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(PermissionError if os.geteuid() else OSError):
        os.write(fd, b"x")
    os.close(fd)


SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def test_a_page_of_nonsense_is_survived() -> None:
    """A reader trusts nothing: whatever the page holds, it gives bytes of the page, or False."""
    writer = ValueWriter(512)
    shared = writer.share()
    whole = os.pread(shared, 1 << 16, 0)
    os.close(shared)
    source = random.Random(0)
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.write(fd, whole)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    reader = ValueReader(reading)
    outcomes: set[object] = set()
    for _ in range(3000):
        place = source.choice([64, 128, 256, 272, 280, source.randrange(64, len(whole) - 8)])
        number = source.choice([0, 1, 2, 3, 512, 2**31, 2**32 - 1, 2**64 - 1, source.getrandbits(64)])
        os.pwrite(fd, number.to_bytes(8, "little"), place)
        for value in (reader.get(), reader.look()):
            outcomes.add(type(value))
            if isinstance(value, Value):
                assert len(value.payload) + len(value.headers_raw) <= 512
    assert outcomes == {Value, bool, type(None)}
    os.close(reading)
    os.close(fd)


WRITER = """
import socket, sys
from towpath._ring import ValueWriter
writer = ValueWriter(100_000)
with socket.socket(fileno=int(sys.argv[1])) as sock:
    socket.send_fds(sock, [b"x"], [writer.share()])
    version = 0
    while True:
        version += 1
        writer.write(version, version, b"", bytes([version % 251]) * (version * 37 % 100_000))
"""


def test_a_writer_killed_under_load_leaves_a_whole_value() -> None:
    import socket

    for _ in range(3):
        mine, theirs = socket.socketpair()
        with mine, theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
            try:
                _, [fd], _, _ = socket.recv_fds(mine, 1, 1)
                reader = ValueReader(fd)
                os.close(fd)
                newest, deadline = 0, time.monotonic() + 60
                while not newest:  # it has its first turn when the machine gives it one
                    newest = _check_whole(reader, newest)
                    assert time.monotonic() < deadline
                for _ in range(20_000):
                    newest = _check_whole(reader, newest)
            finally:
                process.kill()
                process.wait()
            last = _check_whole(reader, newest)
            assert last >= newest > 0 and _check_whole(reader, last) == last


def _check_whole(reader: ValueReader, newest: int) -> int:
    value = reader.look()
    if value is False:  # it changed too quickly
        return newest
    assert value.version >= newest
    assert value.payload == bytes([value.version % 251]) * (value.version * 37 % 100_000)
    return value.version
