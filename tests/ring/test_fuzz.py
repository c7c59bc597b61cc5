"""Whatever bytes a peer's memory holds, and whenever they change: documented errors, no crash, no wait.

The same once more with the extension built under AddressSanitizer, where an access out of bounds is a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.ring.ring_helpers import Forged, connect, shared
from tests.support.deadlines import PROGRAM_S
from towpath import _ring
from towpath._ring import Reader, RingError, Writer, check_control, check_ring, pump

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY = 4096
TAIL, WAITS_FOR, OLDEST, ANCHORS, HISTORY, DATA = 128, 256, 384, 512, 528, 4096
SLEEPING, SLOT = 128, 256

words = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, CAPACITY * 3),
    st.integers(0, CAPACITY // 4).map(lambda number: number * 8),
    st.integers(0, CAPACITY // 4).map(lambda number: number * 8 + 1),
    st.sampled_from([2**64 - 1, 2**64 - 8, 2**63, 2**32, 2**32 + 8, CAPACITY, CAPACITY + 8]),
)
ring_places = st.one_of(
    st.sampled_from([TAIL, WAITS_FOR, OLDEST, ANCHORS, ANCHORS + 8, HISTORY]),
    st.integers(0, CAPACITY // 8 - 1).map(lambda number: DATA + number * 8),
)
overflows = st.sampled_from(["block", "drop"])
starts = st.sampled_from(["tail", "start", "history"])


@given(
    overflow=overflows,
    history=st.sampled_from([0, 3]),
    start=starts,
    published=st.integers(0, 60),
    changes=st.lists(st.tuples(ring_places, words), max_size=12),
)
def test_a_hostile_ring(
    overflow: object, history: int, start: object, published: int, changes: list[tuple[int, int]]
) -> None:
    """Its bytes change while it is being read."""
    writer = Writer(7, CAPACITY, overflow=overflow, history=history)  # type: ignore[arg-type]
    for number in range(published):
        writer.try_publish(b"%d" % number * (number % 40), b"head" * (number % 3) or None)
    with shared(writer) as fd:
        forged = Forged(fd)
    for at, word in changes[: len(changes) // 2]:
        forged.put(at, "<Q", word)
    reader, honest, other = Reader(9), Writer(8, CAPACITY), Writer(50, CAPACITY)
    connect(honest, reader, 1)
    honest.try_publish(b"fine")
    with contextlib.suppress(RingError):
        reader.add(forged.fd, 0, 7, "plant", start)  # type: ignore[arg-type]
    received = []
    for at, word in [*changes[len(changes) // 2 :], (TAIL, 0)]:
        received += reader.receive(100, 10**6, 0)
        reader.arm()
        assert 0 <= reader.pending_bytes <= 2 * CAPACITY
        forged.put(at, "<Q", word)
    received += reader.receive(100, 10**6, 1)
    assert sum(message.source == 8 for message in received) == 1
    assert all(len(message.payload) + len(message.headers_raw) < CAPACITY // 4 for message in received)
    assert pump(reader, other) <= 256
    told = [
        *reader.take_drained(),
        *reader.take_detached(),
        *(source for source, _ in reader.take_violations()),
    ]
    assert told in ([], [7])
    reader.close()
    forged.close()


@given(
    overflow=overflows,
    start=starts,
    changes=st.lists(
        st.tuples(st.sampled_from([SLEEPING, SLOT, SLOT + 8]), st.one_of(words, st.just(7))), max_size=20
    ),
)
def test_a_hostile_control_page(overflow: object, start: object, changes: list[tuple[int, int]]) -> None:
    """An honest reader beside it gets everything."""
    writer, honest = Writer(7, CAPACITY, overflow=overflow, history=3), Reader(10)  # type: ignore[arg-type]
    connect(writer, honest, 1)
    with shared(Reader(9)) as fd:
        forged = Forged(fd)
    writer.attach(9, forged.fd, 0, -1, start)  # type: ignore[arg-type]
    received = 0
    for at, word in changes:
        forged.put(at, "<Q", word)
        for _ in range(5):
            if writer.try_publish(b"x" * 300) == 0:
                assert writer.wait_room(300, 0) in (0, 1)
                assert writer.arm_room(300) in (False, True)
                assert writer.stalled_reader(0) in (None, 9, 10)
        received += sum(1 + message.missed for message in honest.receive(100, 10**6, 0))
        assert writer.slowest_reader() in (None, 9, 10)
        assert writer.drained() in (False, True)
        assert set(writer.violators()) <= {9}
    writer.detach(9)
    assert writer.try_publish(b"x" * 300) > 0
    received += sum(1 + message.missed for message in honest.receive(100, 10**6, 0))
    assert received == writer.last_seq
    writer.close()
    forged.close()


@given(
    what=st.sampled_from([check_ring, check_control]),
    start=st.binary(max_size=64),
    size=st.one_of(st.integers(0, 3 * CAPACITY), st.sampled_from([2 * CAPACITY, 16896, 20480])),
    seals=st.integers(0, 15),
    is_writable=st.booleans(),
    is_true=st.booleans(),
)
def test_hostile_descriptors(
    what: Callable[[int], object], start: bytes, size: int, seals: int, is_writable: bool, is_true: bool
) -> None:
    owner = Writer(7, CAPACITY) if what is check_ring else Reader(9)
    with shared(owner) as fd:
        content = os.pread(fd, 3 * CAPACITY, 0) if is_true else b""
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    os.pwrite(fd, start if not is_true else start[:1] * (len(start) % 2), len(start))
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    given_fd = os.dup(fd) if is_writable else os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    with contextlib.suppress(RingError):
        what(given_fd)
        assert seals & 7 == 7
        assert not is_writable
    for recover in (Writer.recover, Reader.recover):
        with contextlib.suppress(RingError, PermissionError):  # the seal against writing: the system refuses
            recover(given_fd)
            assert seals & 7 == 7
            assert is_writable
    os.close(given_fd)


@given(
    overflow=overflows,
    history=st.sampled_from([0, 3]),
    published=st.integers(0, 60),
    changes=st.lists(st.tuples(ring_places, words), max_size=3),
)
def test_a_damaged_ring_is_taken_up_or_refused(
    overflow: object, history: int, published: int, changes: list[tuple[int, int]]
) -> None:
    writer = Writer(7, CAPACITY, overflow=overflow, history=history)  # type: ignore[arg-type]
    for number in range(published):
        writer.try_publish(b"%d" % number * (number % 40))
    with shared(writer) as fd:
        forged = Forged(fd)
    for at, word in changes:
        forged.put(at, "<Q", word)
    writable = os.open(f"/proc/self/fd/{forged.fd}", os.O_RDWR)
    with contextlib.suppress(RingError):
        successor, reader = Writer.recover(writable), Reader(9)
        with shared(reader) as page, shared(successor) as ring:
            successor.attach(9, page, 0, -1, "tail")
            reader.add(ring, 0, 7, "plant", "tail")
        last = successor.last_seq
        if last < 2**64 - 3:
            assert successor.try_publish(b"on") == last + 1
            assert [message.payload for message in reader.receive(10, 1000, 0)] == [b"on"]
        successor.close()
    os.close(writable)
    forged.close()


def test_under_address_sanitizer(tmp_path: Path) -> None:
    """All of the above, and the other tests of hostile peers."""
    if "RING_UNDER_ASAN" in os.environ:  # this is that run
        assert Path(_ring.__file__).parent == Path(os.environ["RING_UNDER_ASAN"])
        return
    here = Path(_ring.__file__).parent
    headers = Path(__file__).parents[2] / "clients" / "c"
    package = tmp_path / "towpath"
    package.mkdir()
    for path in here.iterdir():
        if path.name != "__pycache__" and not path.name.startswith("_ring.cpython"):
            (package / path.name).symlink_to(path)
    target = package / f"_ring{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    sources = [str(path) for path in sorted(here.glob("_ring*.c"))]
    built = subprocess.run(
        ["gcc", "-std=c11", "-O1", "-g", "-shared", "-fPIC", "-fsanitize=address", "-fno-omit-frame-pointer",
         "-isystem", include, f"-I{headers}", f"-I{here}", *sources, "-o", str(target)],
        capture_output=True, text=True, check=False, timeout=PROGRAM_S,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
         "-k", "hostile or damaged or noise or breaks or sanitizer", str(Path(__file__)),
         str(Path(__file__).with_name("test_hostile_peers.py"))],
        capture_output=True, text=True, check=False, timeout=PROGRAM_S, cwd=Path(__file__).parents[2],
        env={**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0",
             "RING_UNDER_ASAN": str(package),
             "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
    )  # fmt: skip
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert " passed" in ran.stdout
