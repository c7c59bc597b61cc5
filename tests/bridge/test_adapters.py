"""What holds for every adapter: one suite, run on a FIFO and on a command's pipe.

The far side is a FIFO in both cases: the binding's own, or one that ``cat`` copies from or to.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bridge.rig import Rig, has_children, on_loop, open_descriptors, read_bytes, within, write_all
from towpath.bindings import parse_framing
from towpath.errors import BadFrame, ChannelUndeclared, FrameTooLarge, MessageTooLarge
from towpath.framing import encoder
from towpath.model import Direction
from towpath_broker.gateways.bridge.outflow import HELD_BYTES_MAX, RECEIVE_BYTES_MAX
from towpath_broker.gateways.bridge.pipes import PIPE_OUT_BYTES

FRAMINGS: list[dict[str, str]] = [
    {"framing": "line"},
    {"framing": "length"},
    {"framing": "netstring"},
    {"framing": "delimiter", "delimiter": r"\r\n"},
    {"framing": "fixed", "frame_bytes": "8"},
    {"framing": "raw"},
]
PAYLOADS = [b"%08d" % number for number in range(50)]
# The adapter's pipe, and what cat holds and the far side's FIFO.
PIPES_BYTES = PIPE_OUT_BYTES + (1 << 18)
NUMBERED = [b"message %06d" % number for number in range(10_000)]


class FarSide:
    """The other end of an adapter."""

    def __init__(self, mechanism: str, path: Path) -> None:
        self.mechanism = mechanism
        self.path = path
        os.mkfifo(path)
        # Open both ways, so that nobody's coming or going ends the stream.
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def start(self, rig: Rig, direction: Direction, **options: str) -> None:
        if self.mechanism == "fifo":
            rig.fifo(self.path, direction, **options)
        else:
            copy = f"exec cat < {self.path}" if direction == "in" else f"exec cat > {self.path}"
            rig.pipe(["sh", "-c", copy], direction, **options)


@pytest.fixture(params=["fifo", "pipe"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FarSide]:
    side = FarSide(request.param, tmp_path / "far")
    yield side
    os.close(side.descriptor)


@pytest.mark.parametrize("options", FRAMINGS, ids=lambda options: options["framing"])
@on_loop
async def test_every_framing_comes_in(far: FarSide, options: dict[str, str]) -> None:
    async with Rig() as rig:
        far.start(rig, "in", **options)
        await write_all(far.descriptor, b"".join(encoder(parse_framing(options)).encode(PAYLOADS)))
        if options["framing"] == "raw":
            whole = b"".join(PAYLOADS)
            await rig.until(lambda: sum(map(len, rig.carrier.published)) == len(whole))
            assert b"".join(rig.carrier.published) == whole
        else:
            assert await rig.until_published(len(PAYLOADS)) == PAYLOADS
            assert rig.tally.messages_in == len(PAYLOADS)
        assert rig.tally.bytes_in == 400 and rig.tally.refused == 0
        await rig.stop()


@pytest.mark.parametrize("options", FRAMINGS, ids=lambda options: options["framing"])
@on_loop
async def test_every_framing_goes_out(far: FarSide, options: dict[str, str]) -> None:
    async with Rig() as rig:
        far.start(rig, "out", **options)
        expected = b"".join(encoder(parse_framing(options)).encode(PAYLOADS))
        rig.carrier.send(PAYLOADS)
        assert await within(read_bytes(far.descriptor, len(expected))) == expected
        await rig.until(lambda: rig.tally.messages_out == len(PAYLOADS))
        assert rig.tally.bytes_out == len(expected) and rig.tally.refused == 0
        await rig.stop()


@on_loop
async def test_ten_thousand_come_in_every_one_and_in_order(far: FarSide) -> None:
    async with Rig() as rig:
        far.start(rig, "in")
        await write_all(far.descriptor, b"\n".join(NUMBERED) + b"\n")
        assert await rig.until_published(len(NUMBERED)) == NUMBERED
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.refused) == (len(NUMBERED), 0)


@on_loop
async def test_ten_thousand_go_out_every_one_and_in_order(far: FarSide) -> None:
    async with Rig() as rig:
        far.start(rig, "out")
        rig.carrier.send(NUMBERED)
        expected = b"\n".join(NUMBERED) + b"\n"
        assert await within(read_bytes(far.descriptor, len(expected))) == expected
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (len(NUMBERED), 0)


@on_loop
async def test_a_frame_that_is_too_long_is_counted_and_the_next_one_carried(far: FarSide) -> None:
    async with Rig() as rig:
        far.start(rig, "in", frame_bytes_max="10")
        await write_all(far.descriptor, b"before\n" + b"x" * 200_000 + b"\nafter\n")
        assert await rig.until_published(2) == [b"before", b"after"]
        await rig.stop()
        assert rig.tally.refused == 1
        assert isinstance(rig.tally.last_error, FrameTooLarge)
        assert "200000 bytes" in rig.tally.last_error.message
        assert rig.tally.last_error_at_ns > 0


@on_loop
async def test_a_message_that_the_channel_cannot_carry_is_counted(far: FarSide) -> None:
    async with Rig() as rig:
        rig.carrier.message_bytes_max = 10
        far.start(rig, "in")
        await write_all(far.descriptor, b"before\n" + b"x" * 11 + b"\nafter\n")
        assert await rig.until_published(2) == [b"before", b"after"]
        await rig.stop()
        assert rig.tally.refused == 1 and isinstance(rig.tally.last_error, MessageTooLarge)


@on_loop
async def test_a_payload_that_the_framing_cannot_carry_is_counted(far: FarSide) -> None:
    async with Rig() as rig:
        far.start(rig, "out")
        rig.carrier.send([b"before", b"two\nlines", b"after"])
        assert await within(read_bytes(far.descriptor, 13)) == b"before\nafter\n"
        await rig.stop()
        assert rig.tally.refused == 1 and isinstance(rig.tally.last_error, BadFrame)
        assert rig.tally.messages_out == 2


@on_loop
async def test_the_writer_waits_while_the_publisher_does_and_nothing_is_lost(far: FarSide) -> None:
    lines = [b"%06d" % number + b"x" * 1000 for number in range(6_000)]
    async with Rig() as rig:
        rig.carrier.open.clear()
        far.start(rig, "in")
        blocked = asyncio.Event()
        writing = asyncio.create_task(write_all(far.descriptor, b"\n".join(lines) + b"\n", blocked))
        await rig.until(lambda: rig.carrier.has_waiting_publisher)
        blocked.clear()
        await within(blocked.wait())  # 6 MB fit into no pipe: the writer has to wait
        assert not writing.done() and rig.carrier.published == []
        rig.carrier.open.set()
        assert await rig.until_published(len(lines)) == lines
        await within(writing)
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_a_slow_reader_is_a_slow_subscriber(far: FarSide) -> None:
    lines = [b"%06d" % number + b"x" * 1000 for number in range(12_000)]
    expected = b"\n".join(lines) + b"\n"
    part = len(expected) // 3
    async with Rig() as rig:
        far.start(rig, "out")
        rig.carrier.send(lines)
        read = await within(read_bytes(far.descriptor, part))
        # What is neither read nor in a pipe is held up to the bound; the rest stays on the channel.
        taken_bytes = len(expected) - sum(len(line.payload) + 1 for line in rig.carrier.waiting)
        assert taken_bytes - part < HELD_BYTES_MAX + RECEIVE_BYTES_MAX + PIPES_BYTES
        read += await within(read_bytes(far.descriptor, len(expected) - part))
        assert read == expected
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (len(lines), 0)


@pytest.mark.parametrize("direction", ["in", "out"])
@on_loop
async def test_nothing_is_left_open_after_a_stop_or_a_cancellation(
    far: FarSide, direction: Direction
) -> None:
    for is_asked in (True, False):
        async with Rig() as rig:
            before = open_descriptors()
            far.start(rig, direction)
            await rig.until_state("running")
            if is_asked:
                await rig.stop()
            else:
                assert rig.task is not None
                rig.task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await rig.ended()
            assert open_descriptors() == before
            assert not has_children()


@on_loop
async def test_the_end_of_the_subscription_ends_the_adapter(far: FarSide) -> None:
    async with Rig() as rig:
        far.start(rig, "out")
        await rig.until_state("running")
        rig.carrier.fail(ChannelUndeclared("test is gone"))
        with pytest.raises(ChannelUndeclared):
            await rig.ended()


@on_loop
async def test_what_was_read_when_the_channel_went_is_counted(far: FarSide) -> None:
    async with Rig() as rig:
        rig.carrier.publish_error = ChannelUndeclared("test is gone")
        far.start(rig, "in")
        await write_all(far.descriptor, b"one\ntwo\n")
        with pytest.raises(ChannelUndeclared):
            await rig.ended()
        assert (rig.tally.messages_in, rig.tally.refused) == (0, 2)


@on_loop
async def test_what_was_read_when_a_cancellation_came_is_counted(far: FarSide) -> None:
    async with Rig() as rig:
        rig.carrier.open.clear()
        far.start(rig, "in")
        await write_all(far.descriptor, b"one\ntwo\n")
        await rig.until(lambda: rig.carrier.has_waiting_publisher)
        assert rig.task is not None
        rig.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rig.ended()
        assert (rig.tally.messages_in, rig.tally.refused) == (0, 2)
