"""Regions of shared memory, in and out, between the adapter and a C program that knows only shm_open(3),
shmget(2), semaphores and futexes."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.bridge import foreign
from tests.bridge.rig import Rig, on_loop, open_descriptors
from tests.support.deadlines import DEADLINE_S
from towpath.bindings.shm import SHM, parse_shm
from towpath.errors import BadFrame, BindingFailed, MessageTooLarge
from towpath.model import Direction
from towpath_broker.gateways.bridge.adapters.shm import ShmAdapter
from towpath_broker.gateways.bridge.segments import Segment

COUNT = 10_000
SIZE = 4000
NUMBERED = [b"message %06d" % number for number in range(COUNT)]
_serial = count()


@dataclass(frozen=True)
class Peer:
    """The foreign program's side: a segment and two semaphores."""

    segment: str
    ready: str
    free: str

    def start(self, role: str, flags: str = "-", messages: int = 0) -> subprocess.Popen[bytes]:
        command = [
            foreign.program("shm_peer"),
            role,
            flags,
            self.segment,
            self.ready,
            self.free,
            str(messages),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def run(self, role: str, flags: str = "-", messages: int = 0) -> bytes:
        with self.start(role, flags, messages) as process:
            output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        return output

    @property
    def path(self) -> Path:
        return Path("/dev/shm") / self.segment[1:]

    def put(self, offset: int, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def without_semaphores(self) -> Peer:
        return Peer(self.segment, "-", "-")


def posix() -> Peer:
    name = f"/towpath-test-{os.getpid()}-{next(_serial)}"
    return Peer(name, f"{name}-ready", f"{name}-free")


def sysv() -> Peer:
    key = 0x7F00_0000 | os.getpid() << 4 & 0xFF_FFF0 | next(_serial) & 0xF
    return Peer(hex(key), f"{hex(key)}:0", f"{hex(key)}:1")


@pytest.fixture(params=["posix", "sysv", "mixed"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """Each kind of segment, and of semaphore."""
    made = sysv() if request.param == "sysv" else posix()
    if request.param == "mixed":
        other = sysv()
        made = Peer(made.segment, other.ready, other.free)
    yield from _made(made)


@pytest.fixture
def plain() -> Iterator[Peer]:
    """A POSIX segment alone."""
    yield from _made(posix().without_semaphores())


def _made(peer: Peer) -> Iterator[Peer]:
    peer.run("make")
    yield peer
    peer.run("remove")


def start(rig: Rig, peer: Peer, direction: Direction, **options: str) -> Rig:
    return rig.run(
        ShmAdapter(
            f"{peer.segment}@64", direction, SHM.parse_options(options), rig.carrier, rig.tally, rig.keeping
        )
    )


def hand_over(peer: Peer) -> dict[str, str]:
    return {"length_offset": "8", "semaphore": peer.ready, "free": peer.free}


# -- everything in order, where semaphores keep both sides in step -------------------------------------------


@on_loop
async def test_ten_thousand_come_in_every_one_and_in_order(peer: Peer) -> None:
    async with Rig() as rig:
        start(rig, peer, "in", **hand_over(peer), generation_offset="0")
        with peer.start("write", "g", COUNT) as writing:
            assert await rig.until_published(COUNT) == NUMBERED
            assert writing.wait(DEADLINE_S) == 0
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.refused) == (COUNT, 0)


@on_loop
async def test_ten_thousand_go_out_every_one_and_in_order(peer: Peer) -> None:
    async with Rig() as rig:
        start(rig, peer, "out", **hand_over(peer), generation_offset="0")
        rig.carrier.send(NUMBERED)
        assert (await asyncio.to_thread(peer.run, "read", "g", COUNT)).splitlines() == NUMBERED
        await rig.until(lambda: rig.tally.messages_out == COUNT)
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_each_side_is_killed_and_started_again(peer: Peer) -> None:
    """The semaphores and the segment keep what was handed over."""
    async with Rig() as rig:
        for number in range(20):
            peer.run("write", "g", 1)  # while nobody is there: the post and the region keep it
            start(rig, peer, "in", **hand_over(peer), generation_offset="0")
            await rig.until_published(2 * number + 1)
            await asyncio.to_thread(peer.run, "write", "g", 1)
            await rig.until_published(2 * number + 2)
            await rig.stop()
            rig.stop_request = type(rig.stop_request)()
        assert rig.carrier.published == [NUMBERED[0]] * 40
        assert rig.tally.refused == 0


# -- where only the latest is shown --------------------------------------------------------------------------


@pytest.mark.parametrize("teller", ["futex", "poll"])
@on_loop
async def test_a_snapshot_is_never_torn_and_what_was_overwritten_is_counted(plain: Peer, teller: str) -> None:
    changes = 50_000
    how = {"futex_offset": "4"} if teller == "futex" else {"poll_ms": "1"}
    async with Rig() as rig:
        start(rig, plain, "in", length=str(SIZE), generation_offset="0", **how)
        await rig.until_state("running")
        plain.run("write", "gfb", 1)
        await rig.until_published(1)
        with plain.start("write", "gfb", changes) as writing:
            await rig.until(lambda: rig.tally.messages_in + rig.tally.refused == changes + 1)
            assert writing.wait(DEADLINE_S) == 0
        await rig.stop()
        assert all(len(message) == SIZE and len(set(message)) == 1 for message in rig.carrier.published)
        assert rig.carrier.published[-1][0] == (changes - 1) % 255 + 1
        assert len(rig.carrier.published) == rig.tally.messages_in > 1


@on_loop
async def test_by_a_futex_word_alone(plain: Peer) -> None:
    async with Rig() as rig:
        start(rig, plain, "in", length_offset="8", futex_offset="4")
        await rig.until_state("running")
        for number in range(1, 50):
            await asyncio.to_thread(plain.run, "write", "f", 1)
            await rig.until_published(number)
        await rig.stop()
        assert rig.carrier.published == [NUMBERED[0]] * 49


@on_loop
async def test_by_looking_only_what_is_another_is_a_message(plain: Peer) -> None:
    async with Rig() as rig:
        start(rig, plain, "in", length="8", poll_ms="1")
        await rig.until_state("running")
        for text in (b"one     ", b"two     ", b"three   "):
            plain.put(64, text)
            await rig.until_published(len(rig.carrier.published) + 1)
        await rig.stop()
        assert rig.carrier.published == [b"one     ", b"two     ", b"three   "]


@on_loop
async def test_what_goes_out_is_told_by_the_word_and_the_generation(plain: Peer) -> None:
    async with Rig() as rig:
        start(rig, plain, "out", length_offset="8", generation_offset="0", futex_offset="4")
        await rig.until_state("running")
        reading = asyncio.create_task(asyncio.to_thread(plain.run, "read", "fg", 1))
        rig.carrier.send([b"hello"])
        assert await reading == b"hello\n"
        assert struct.unpack_from("=III", plain.path.read_bytes()) == (2, 1, 5)
        await rig.stop()


@on_loop
async def test_a_message_without_a_length_has_zeros_behind_it(plain: Peer) -> None:
    async with Rig() as rig:
        start(rig, plain, "out", length="8")
        rig.carrier.send([b"longer", b"short", b"much too long"])
        await rig.until(lambda: rig.tally.messages_out == 2 and rig.tally.refused == 1)
        assert plain.path.read_bytes()[64:76] == b"short" + bytes(7)
        assert isinstance(rig.tally.last_error, MessageTooLarge)
        await rig.stop()


@on_loop
async def test_the_same_is_not_told_again_to_the_next_attempt(plain: Peer) -> None:
    plain.run("write", "g", 1)
    async with Rig() as rig:
        for _ in range(3):
            start(rig, plain, "in", length_offset="8", generation_offset="0", poll_ms="1")
            await rig.until_published(1)
            await rig.stop()
            rig.stop_request = type(rig.stop_request)()
        start(rig, plain, "in", length_offset="8", generation_offset="0", poll_ms="1")
        plain.run("write", "g", 1)
        await rig.until_published(2)
        await rig.stop()
        assert len(rig.carrier.published) == 2


# -- writers that die inside a change ------------------------------------------------------------------------


@on_loop
async def test_a_writer_that_dies_inside_a_change_is_waited_for(plain: Peer) -> None:
    async with Rig() as rig:
        start(rig, plain, "in", length_offset="8", generation_offset="0", futex_offset="4")
        await rig.until_state("running")
        plain.run("half", "g")
        plain.put(4, struct.pack("=I", 77))  # what looks in finds it unfinished
        rig.stop_request.set()
        await rig.ended()
        assert rig.carrier.published == []
        rig.stop_request = type(rig.stop_request)()
        start(rig, plain, "in", length_offset="8", generation_offset="0", poll_ms="1")
        await rig.until(lambda: "inside a change" in rig.tally.detail)
        plain.run("write", "g", 1)
        assert await rig.until_published(1) == [NUMBERED[0]]
        await rig.until_state("running")
        await rig.stop()


@on_loop
async def test_a_count_that_was_left_odd_is_made_even(plain: Peer) -> None:
    plain.run("half", "g")
    async with Rig() as rig:
        start(rig, plain, "out", length="8", generation_offset="0")
        rig.carrier.send([b"after"])
        await rig.until(lambda: rig.tally.messages_out == 1)
        assert struct.unpack_from("=I", plain.path.read_bytes()) == (2,)
        await rig.stop()


# -- segments that go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("left_bytes", [0, 64, 4063])
@on_loop
async def test_a_segment_that_shrinks_is_an_error_and_no_crash(
    plain: Peer, direction: Direction, left_bytes: int
) -> None:
    for how in ({"futex_offset": "4"}, {"generation_offset": "0"}, {}):
        async with Rig() as rig:
            start(rig, plain, direction, **how)
            await rig.until_state("running")
            os.truncate(plain.path, left_bytes)
            with pytest.raises(BindingFailed, match=f"has {left_bytes} bytes") as caught:
                await rig.ended()
            assert caught.value.retryable and caught.value.hint
        assert plain.path.stat().st_size == left_bytes  # and nothing made it longer
        os.truncate(plain.path, 64 + SIZE)


def test_what_is_written_after_it_has_shrunk_is_an_error_and_does_not_make_it_longer(plain: Peer) -> None:
    segment = Segment(parse_shm("", plain.segment), is_writable=True)
    segment.write(0, b"mapped")
    word = segment.address_of(4)
    os.truncate(plain.path, 0)
    for work in (
        lambda: segment.write(0, b"x"),
        lambda: segment.advance(0),
        lambda: segment.read(0, 1),
        lambda: segment.word(0),
    ):
        with pytest.raises(BindingFailed, match="has 0 bytes"):
            work()
    assert plain.path.stat().st_size == 0 and word
    segment.close()


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
@on_loop
async def test_a_segment_that_is_removed_or_replaced_is_noticed(
    peer: Peer, direction: Direction, how: str
) -> None:
    async with Rig() as rig:
        start(rig, peer, direction)
        await rig.until_state("running")
        peer.run("remove")
        if how == "replaced":
            peer.run("make")
        with pytest.raises(BindingFailed, match="removed or replaced") as caught:
            await rig.ended()
        assert caught.value.retryable


@pytest.mark.parametrize("direction", ["in", "out"])
@on_loop
async def test_semaphores_that_are_removed_are_noticed(peer: Peer, direction: Direction) -> None:
    async with Rig() as rig:
        if direction == "out":
            rig.carrier.send([b"1", b"2"])  # the second waits for the semaphore
        start(rig, peer, direction, **hand_over(peer))
        await rig.until_state("running")
        await rig.settle()
        Peer("-", peer.ready, peer.free).run("remove")
        with pytest.raises(BindingFailed, match=r"removed or replaced|is gone") as caught:
            await rig.ended()
        assert caught.value.retryable


# -- what is not there, or is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "options", "text"),
    [
        ("/towpath-test-none", {}, "cannot open the segment /towpath-test-none: No such file"),
        ("0x7eadbeef", {}, "cannot open the System V segment 0x7eadbeef: No such file"),
        ("@4064", {}, "has 4064 bytes, and the binding needs 4065"),
        ("", {"length": "4065"}, "has 4064 bytes, and the binding needs 4065"),
        ("", {"generation_offset": "4064"}, "has 4064 bytes, and the binding needs 4068"),
        ("", {"semaphore": "/towpath-test-none"}, "cannot open the semaphore /towpath-test-none"),
        ("", {"semaphore": "0x7eadbeef:0"}, "cannot open the System V semaphore 0x7eadbeef:0"),
    ],
)
@pytest.mark.parametrize("direction", ["in", "out"])
@on_loop
async def test_what_is_not_there_is_said_and_tried_again(
    plain: Peer, place: str, options: dict[str, str], text: str, direction: Direction
) -> None:
    before = open_descriptors()
    async with Rig() as rig:
        name = place if place[:1] in ("/", "0") else plain.segment + place
        rig.run(ShmAdapter(name, direction, SHM.parse_options(options), rig.carrier, rig.tally, rig.keeping))
        with pytest.raises(BindingFailed, match=text) as caught:
            await rig.ended()
        assert caught.value.retryable
    assert open_descriptors() == before


def test_a_file_that_is_too_short_for_a_semaphore_is_refused(plain: Peer) -> None:
    @on_loop
    async def attempt() -> None:
        async with Rig() as rig:
            start(rig, plain, "in", semaphore=f"{plain.segment}-short")
            with pytest.raises(BindingFailed, match="too short"):
                await rig.ended()

    path = Path(f"/dev/shm/sem.{plain.segment[1:]}-short")
    path.write_bytes(b"short")
    try:
        attempt()
    finally:
        path.unlink()


def test_what_is_no_segment_is_left_alone() -> None:
    @on_loop
    async def attempt() -> None:
        async with Rig() as rig:
            start(rig, Peer(f"/{path.name}", "-", "-"), "in")
            with pytest.raises(BindingFailed, match="no segment") as caught:
                await rig.ended()
            assert not caught.value.retryable

    path = Path(f"/dev/shm/towpath-test-{os.getpid()}-fifo")
    os.mkfifo(path)
    try:
        attempt()
    finally:
        path.unlink()


@on_loop
async def test_a_length_that_cannot_be_is_counted(plain: Peer) -> None:
    async with Rig() as rig:
        start(rig, plain, "in", length_offset="8", poll_ms="1")
        await rig.until_state("running")
        plain.put(8, struct.pack("=I", SIZE + 1))
        await rig.until(lambda: rig.tally.refused == 1)
        assert isinstance(rig.tally.last_error, BadFrame)
        await rig.stop()


# -- what it costs -------------------------------------------------------------------------------------------


@on_loop
async def test_one_thread_waits_for_all_and_nothing_is_left(peer: Peer) -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = open_descriptors(), threads()
    rigs = [Rig() for _ in range(5)]
    for rig in rigs:
        start(rig, peer, "in", futex_offset="4")
        await rig.until_state("running")
        await rig.settle()
    assert threads() == before[1] + 1
    for rig in rigs:
        await rig.stop()
        await rig.__aexit__()
    async with Rig() as rig:
        start(rig, peer, "in", **hand_over(peer))
        await rig.until_state("running")
        await rig.stop()
    assert (open_descriptors(), threads()) == before
