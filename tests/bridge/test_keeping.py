"""What outlives the bridge: FIFOs with what is in them, and where in a frame reading stopped."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bridge.rig import (
    MemoryCarrier,
    MemoryMessage,
    Rig,
    on_loop,
    open_descriptors,
    read_bytes,
    shell,
    within,
)
from towpath.bindings import WhenAbsent
from towpath.framing import Framing, FramingOptions, decoder
from towpath_broker.gateways.bridge.keeping import Keeping
from towpath_broker.gateways.bridge.outflow import Outflow
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.tasks import cancel


class Keeper:
    """The supervisor's side, by the letter of the packets."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    @contextlib.contextmanager
    def bridge(self, *, is_restart_possible: bool = True) -> Iterator[Keeping]:
        """A bridge from its start to its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            for name, descriptor in self.kept.items():
                packet = {"type": "stored", "names": [name]}
                socket.send_fds(ours, [json.dumps(packet).encode()], [descriptor])
            ours.send(b'{"type": "stored_end"}')
            keeping = Keeping(theirs.fileno(), is_restart_possible=is_restart_possible)
            yield keeping
            keeping.close()
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.take(*socket.recv_fds(ours, 10_000, 4)[:2])

    def take(self, data: bytes, descriptors: list[int]) -> None:
        packet = json.loads(data)
        if packet["name"] in self.kept:
            os.close(self.kept.pop(packet["name"]))
        if packet["type"] == "store":
            [self.kept[packet["name"]]] = descriptors
        else:
            assert packet["type"] == "unstore" and not descriptors

    def close(self) -> None:
        for descriptor in self.kept.values():
            os.close(descriptor)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    gc.collect()  # what other tests have left
    before = open_descriptors()
    running = Keeper()
    yield running
    running.close()
    assert open_descriptors() == before


def write_end(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def test_a_restart_loses_nothing_of_a_fifo_and_no_writer_notices(tmp_path: Path, keeper: Keeper) -> None:
    path = tmp_path / "fifo"
    writer = -1

    @on_loop
    async def first() -> None:
        nonlocal writer
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                rig.fifo(path, "in", mode="0640")
                await rig.until_state("running")
                writer = write_end(path)
                os.write(writer, b"one\ntw")
                assert await rig.until_published(1) == [b"one"]
                await rig.stop()
                assert rig.tally.refused == 0

    @on_loop
    async def second() -> None:
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                rig.fifo(path, "in", mode="0640")
                assert await rig.until_published(2) == [b"two", b"three"]
                os.write(writer, b"four\n")
                assert (await rig.until_published(3))[-1] == b"four"
                rig.keeping.is_over = True  # unbound
                await rig.stop()

    first()
    assert sorted(keeper.kept) == ["7 made", "7 rest"]
    assert path.is_fifo()
    os.write(writer, b"o\nthree\n")  # nobody of ours has it open but the keeper
    second()
    # Made by the first and inherited by the second, so it went with the binding.
    assert keeper.kept == {} and not path.exists()
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"late\n")
    os.close(writer)


def test_what_cannot_be_published_at_the_stop_is_left_to_the_successor(
    tmp_path: Path, keeper: Keeper
) -> None:
    path = tmp_path / "fifo"

    @on_loop
    async def stopped_while_subscribers_do_not_read() -> None:
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                rig.fifo(path, "in")
                await rig.until_state("running")
                rig.carrier.open.clear()
                await shell(f"printf 'one\\ntwo\\nthr' > {path}")
                await rig.until(lambda: rig.carrier.has_waiting_publisher)
                rig.stop_request.set()
                assert rig.task is not None
                await cancel(rig.task)
                assert (rig.carrier.published, rig.tally.refused) == ([], 0)

    @on_loop
    async def successor() -> None:
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                rig.fifo(path, "in")
                await shell(f"echo ee > {path}")
                assert await rig.until_published(3) == [b"one", b"two", b"three"]
                rig.keeping.is_over = True
                await rig.stop()

    stopped_while_subscribers_do_not_read()
    successor()
    assert keeper.kept == {} and not path.exists()


def test_what_is_in_a_fifo_outlives_a_bridge_that_is_killed(tmp_path: Path, keeper: Keeper) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    @on_loop
    async def killed() -> None:
        with keeper.bridge(is_restart_possible=False) as keeping:
            rig = Rig(keeping.of(7))
            rig.fifo(path, "in")
            await rig.until_state("running")
            keeping.is_restart_possible = True  # leaves everything as it is
            await rig.stop()
            rig.watcher.close()
            keeping.of(7).forget("rest")

    @on_loop
    async def successor() -> None:
        with keeper.bridge(is_restart_possible=False) as keeping:
            async with Rig(keeping.of(7)) as rig:
                rig.fifo(path, "in")
                assert await rig.until_published(1) == [b"meanwhile"]
                await rig.stop()

    killed()
    assert list(keeper.kept) == ["7 found"]
    writer = write_end(path)
    os.write(writer, b"meanwhile\n")
    os.close(writer)
    successor()
    # It was there before any bridge, and stays; with nothing to come after it nothing is kept.
    assert keeper.kept == {} and path.is_fifo()


def test_who_reads_a_fifo_does_not_notice_a_restart(tmp_path: Path, keeper: Keeper) -> None:
    """Not even where it reads slowly: what was held for it, and half a line that did not fit, comes after."""
    path = tmp_path / "fifo"
    lines = [b"%06d" % number + b"." * 1000 for number in range(600)]
    got = b""
    reader = -1

    @on_loop
    async def first() -> None:
        nonlocal reader, got
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                rig.fifo(path, "out")
                await rig.until_state("waiting")
                reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                await rig.until_state("running")
                rig.carrier.send(lines)
                got = await read_bytes(reader, 10)
                await rig.until(lambda: not rig.carrier.waiting)
                await rig.settle()
                await rig.stop()
                assert 0 < rig.tally.messages_out < len(lines) and rig.tally.refused == 0

    @on_loop
    async def second() -> None:
        nonlocal got
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                rig.fifo(path, "out")
                await rig.until_state("running")
                rig.carrier.send([b"last"])
                expected = b"".join(line + b"\n" for line in lines) + b"last\n"
                got += await within(read_bytes(reader, len(expected) - len(got)))
                assert got == expected
                rig.keeping.is_over = True
                await rig.stop()

    first()
    assert sorted(keeper.kept) == ["7 made", "7 rest"] and path.is_fifo()
    second()
    assert keeper.kept == {} and not path.exists()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_is_no_state_of_what_was_held_is_refused() -> None:
    def outflow(carrier: MemoryCarrier) -> Outflow:
        tally = Tally(lambda _: None)
        options = FramingOptions()
        return Outflow(options, carrier, tally, when_absent=WhenAbsent.DROP, look=lambda: None)

    carrier = MemoryCarrier(lambda: None)
    one = outflow(carrier)
    one._hold([MemoryMessage(b"a"), MemoryMessage(b"bc")])
    state = one.state()
    for bad in (b"", state[:10], state[:-1], state + b"x", b"\xff" * 16):
        with pytest.raises(ValueError, match="not whole"):
            outflow(carrier).restore(bad)
    other = outflow(carrier)
    other.restore(state)
    assert other.state() == state


@on_loop
async def test_a_fifo_that_was_replaced_meanwhile_is_another(tmp_path: Path, keeper: Keeper) -> None:
    path = tmp_path / "fifo"
    with keeper.bridge() as keeping:
        async with Rig(keeping.of(7)) as rig:
            rig.fifo(path, "in")
            await rig.until_state("running")
            await shell(f"printf hal > {path}")
            await rig.settle()
            await rig.stop()
    path.unlink()
    os.mkfifo(path)
    with keeper.bridge() as keeping:
        async with Rig(keeping.of(7)) as rig:
            rig.fifo(path, "in")
            await rig.until_state("running")
            await shell(f"echo whole > {path}")
            assert await rig.until_published(1) == [b"whole"]
            await rig.stop()
    assert sorted(keeper.kept) == ["7 found", "7 rest"]


def test_what_bindings_that_are_gone_have_left_is_let_go(keeper: Keeper) -> None:
    with keeper.bridge() as keeping:
        for binding in (1, 2, 12):
            keeping.of(binding).store_bytes("rest", b"x")
    assert sorted(keeper.kept) == ["1 rest", "12 rest", "2 rest"]
    with keeper.bridge() as keeping:
        keeping.forget_others([12])
        assert keeping.of(1).take_bytes("rest") == b""
        assert keeping.of(12).take_bytes("rest") == b"x"
    assert keeper.kept == {}


OPTIONS = [
    FramingOptions(frame_bytes_max=10),
    FramingOptions(Framing.DELIMITER, delimiter=b"ab", frame_bytes_max=10),
    FramingOptions(Framing.LENGTH, frame_bytes_max=10),
    FramingOptions(Framing.NETSTRING, frame_bytes_max=10),
    FramingOptions(Framing.FIXED, frame_bytes=5, frame_bytes_max=10),
    FramingOptions(Framing.RAW),
]
STREAMS = [
    b"one\ntoo long for it\ntwo\nx",
    b"one\nababtoo long for it\nabtwoabx",
    b"\0\0\0\3one\0\0\0\x13too long by a margin\0\0\0\3two",
    b"3:one,19:too long by a margin,3:two,",
    b"1234512345123",
    b"anything",
]


@pytest.mark.parametrize(("options", "stream"), list(zip(OPTIONS, STREAMS, strict=True)))
def test_a_decoder_goes_on_where_another_stopped(options: FramingOptions, stream: bytes) -> None:
    """Cut anywhere, also inside a frame that is too long."""
    whole = decoder(options)
    at_once = [*whole.feed(stream), *whole.end()]
    if options.framing is Framing.RAW:
        return
    for cut in range(len(stream) + 1):
        first, second = decoder(options), decoder(options)
        frames = first.feed(stream[:cut])
        second.restore(first.state())
        frames += [*second.feed(stream[cut:]), *second.end()]
        assert (frames, second.refused) == (at_once, whole.refused)


@pytest.mark.parametrize(
    "spoil",
    [lambda s: b"", lambda s: b"{", lambda s: b"{}", lambda s: s.replace(b"b'", b"'"), lambda s: s[:-5]],
)
def test_what_is_no_state_is_refused_and_changes_nothing(spoil: Callable[[bytes], bytes]) -> None:
    one = decoder(FramingOptions())
    one.feed(b"half")
    with pytest.raises(ValueError):
        one.restore(spoil(one.state()))
    assert one.feed(b" whole\n") == [b"half whole"]
