"""Outgoing FIFOs: readers that come and go, read half a frame, read slowly, or are not there at all."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.bridge.rig import Rig, on_loop, read_bytes, shell, within, write_all
from towpath.bindings import parse_framing
from towpath.errors import BindingFailed, SlowConsumer
from towpath.framing import decoder
from towpath_broker.gateways.bridge import outflow
from towpath_broker.gateways.bridge.inotify import IN_OPEN, PathWatcher
from towpath_broker.gateways.bridge.outflow import HELD_BYTES_MAX
from towpath_broker.gateways.bridge.pipes import unread_bytes


def open_reader(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def open_writer(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


@on_loop
async def test_a_reader_s_coming_and_going_is_told_without_a_message(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        for _ in range(3):
            reader = open_reader(path)
            await rig.until_state("running")
            os.close(reader)
            await rig.until_state("waiting")
        await rig.stop()


@on_loop
async def test_opening_does_not_hang_and_messages_reach_a_shell_s_read(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        reading = asyncio.create_task(shell(f"read x < {path}; echo got $x"))
        await rig.until_state("running")
        rig.carrier.send([b"hello"])
        assert await within(reading) == b"got hello\n"
        await rig.until_state("waiting")
        await rig.stop()


@on_loop
async def test_a_loop_that_opens_the_fifo_for_each_line_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    count = 200
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        rig.carrier.send([b"%d" % number for number in range(count // 2)])
        script = f"i=0; while [ $i -lt {count} ]; do read x < {path}; echo $x; i=$((i+1)); done"
        reading = asyncio.create_task(shell(script))
        await rig.until(lambda: rig.tally.messages_out >= 20)
        rig.carrier.send([b"%d" % number for number in range(count // 2, count)])
        assert await within(reading) == b"".join(b"%d\n" % number for number in range(count))
        await rig.until(lambda: rig.tally.messages_out == count)
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (count, 0)


@on_loop
async def test_a_frame_that_was_half_read_is_sent_again_whole(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    frames = [b"a" * 100, b"b" * 100, b"c" * 100]
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        reader = open_reader(path)
        rig.carrier.send(frames)
        assert await within(read_bytes(reader, 150)) == b"a" * 100 + b"\n" + b"b" * 49
        os.close(reader)
        await rig.until_state("waiting")
        rig.carrier.send([b"d"])
        reader = open_reader(path)
        expected = b"b" * 100 + b"\n" + b"c" * 100 + b"\nd\n"
        assert await within(read_bytes(reader, len(expected))) == expected
        await rig.stop()
        assert os.read(reader, 100) == b""
        os.close(reader)
        assert (rig.tally.messages_out, rig.tally.bytes_out, rig.tally.refused) == (4, 305, 0)


@on_loop
async def test_a_frame_larger_than_the_pipe_is_sent_again_whole(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    big = bytes(range(256)) * 4096  # 1 MiB, with newlines in it
    async with Rig() as rig:
        rig.fifo(path, "out", framing="length", frame_bytes_max=str(len(big)))
        await rig.until_state("waiting")
        reader = open_reader(path)
        rig.carrier.send([b"first", big, b"last"])
        whole = b"\0\0\0\5first" + len(big).to_bytes(4, "big") + big + b"\0\0\0\4last"
        assert await within(read_bytes(reader, 600_000)) == whole[:600_000]
        os.close(reader)
        await rig.until_state("waiting")
        reader = open_reader(path)
        assert await within(read_bytes(reader, len(whole) - 9)) == whole[9:]
        os.close(reader)
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (3, 0)


@on_loop
async def test_while_nobody_reads_the_oldest_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    count = 4 * HELD_BYTES_MAX // 1000
    lines = [b"%06d" % number + b"x" * 993 for number in range(count)]
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        rig.carrier.send(lines)
        await rig.until(lambda: not rig.carrier.waiting and rig.tally.refused > 0)
        dropped = rig.tally.refused
        assert isinstance(rig.tally.last_error, BindingFailed) and "dropped" in rig.tally.last_error.message
        assert 0 < (count - dropped) * 1000 <= HELD_BYTES_MAX + (1 << 18)
        reader = open_reader(path)
        expected = b"\n".join(lines[dropped:]) + b"\n"
        assert await within(read_bytes(reader, len(expected))) == expected
        await rig.stop()
        os.close(reader)
        assert rig.tally.messages_out + rig.tally.refused == count


@on_loop
async def test_what_the_channel_drops_is_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        reader = open_reader(path)
        rig.carrier.lost_count = 3  # as a channel with overflow=drop does
        rig.carrier.send([b"next"])
        assert await within(read_bytes(reader, 5)) == b"next\n"
        assert rig.tally.refused == 3
        assert isinstance(rig.tally.last_error, SlowConsumer)
        await rig.stop()
        os.close(reader)


@on_loop
async def test_what_is_dropped_never_tears_a_frame_that_is_partly_in_the_pipe(tmp_path: Path) -> None:
    """The reader stops between two frames, while the pipe holds a part of a third; then many are dropped."""
    path = tmp_path / "fifo"
    options = {"framing": "length", "frame_bytes_max": "300000"}
    frames = [bytes([number]) * 200_000 for number in range(40)]
    async with Rig() as rig:
        rig.fifo(path, "out", **options)
        await rig.until_state("waiting")
        reader = open_reader(path)
        rig.carrier.send(frames[:3])
        read = decoder(parse_framing(options)).feed(await within(read_bytes(reader, 200_004)))
        await rig.settle()
        assert 200_004 < unread_bytes(reader) < 400_008
        os.close(reader)
        await rig.until_state("waiting")
        rig.carrier.send(frames[3:])
        await rig.until(lambda: not rig.carrier.waiting and rig.tally.refused > 0)
        reader = open_reader(path)
        expected = len(frames) - 1 - rig.tally.refused
        read += decoder(parse_framing(options)).feed(await within(read_bytes(reader, expected * 200_004)))
        await rig.stop()
        assert os.read(reader, 1) == b""
        os.close(reader)
        assert read[:3] == frames[:3] and read[3:] == frames[rig.tally.refused + 3 :]


@pytest.mark.parametrize("is_asked", [True, False], ids=["stop", "subscription ended"])
@on_loop
async def test_a_reader_that_never_reads_does_not_hold_the_end_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    monkeypatch.setattr(outflow, "FLUSH_S", 0.01)
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        reader = open_reader(path)  # and never reads
        rig.carrier.send([b"x" * 1000] * 500)
        await rig.until(lambda: not rig.carrier.waiting)
        if is_asked:
            await rig.stop()
        else:
            rig.carrier.fail(SlowConsumer("cut off"))
            with pytest.raises(SlowConsumer):
                await rig.ended()
        os.close(reader)
        assert rig.tally.messages_out + rig.tally.refused == 500


@on_loop
async def test_nothing_is_dropped_when_a_reader_came_a_moment_ago(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    lines = [b"%06d" % number + b"x" * 993 for number in range(4 * HELD_BYTES_MAX // 1000)]
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        rig.carrier.send(lines[:900])
        await rig.until(lambda: not rig.carrier.waiting)
        await rig.settle()
        rig.carrier.send(lines[900:])
        reader = open_reader(path)
        expected = b"\n".join(lines) + b"\n"
        assert await within(read_bytes(reader, len(expected))) == expected
        os.close(reader)
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (len(lines), 0)


@on_loop
async def test_while_nobody_reads_when_absent_block_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    lines = [b"%06d" % number + b"x" * 993 for number in range(4 * HELD_BYTES_MAX // 1000)]
    async with Rig() as rig:
        rig.fifo(path, "out", when_absent="block")
        await rig.until_state("waiting")
        rig.carrier.send(lines)
        await rig.until(lambda: len(lines) - len(rig.carrier.waiting) >= HELD_BYTES_MAX // 1000)
        await rig.settle()
        assert len(rig.carrier.waiting) * 1000 > 2 * HELD_BYTES_MAX
        reader = open_reader(path)
        expected = b"\n".join(lines) + b"\n"
        assert await within(read_bytes(reader, len(expected))) == expected
        await rig.stop()
        os.close(reader)
        assert (rig.tally.messages_out, rig.tally.refused) == (len(lines), 0)


@on_loop
async def test_what_is_held_at_the_stop_is_counted(tmp_path: Path) -> None:
    async with Rig() as rig:
        rig.fifo(tmp_path / "fifo", "out")
        await rig.until_state("waiting")
        rig.carrier.send([b"one", b"two"])
        await rig.until(lambda: not rig.carrier.waiting)
        await rig.stop()
        assert rig.tally.refused == 2 and isinstance(rig.tally.last_error, BindingFailed)


@on_loop
async def test_at_the_stop_a_reader_gets_what_was_taken_in_and_then_the_end(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        reading = asyncio.create_task(shell(f"cat {path}"))
        await rig.until_state("running")
        rig.carrier.send([b"one", b"two"])
        await rig.until(lambda: rig.tally.messages_out == 2)
        await rig.stop()
        assert await within(reading) == b"one\ntwo\n"


@on_loop
async def test_two_fifos_share_one_watcher_and_hear_only_of_their_own(tmp_path: Path) -> None:
    heard: list[str] = []
    has_heard = asyncio.Event()
    watcher = PathWatcher()

    def watch(path: Path) -> int:
        def hear() -> None:
            heard.append(path.name)
            has_heard.set()

        os.mkfifo(path)
        return watcher.watch(str(path), IN_OPEN, hear)

    watches = [watch(tmp_path / "a"), watch(tmp_path / "b")]
    reader = open_reader(tmp_path / "b")
    await within(has_heard.wait())
    os.close(reader)
    watcher.unwatch(watches[1])
    has_heard.clear()
    os.close(open_reader(tmp_path / "b"))
    os.close(open_reader(tmp_path / "a"))
    await within(has_heard.wait())
    assert heard == ["b", "a"]
    watcher.close()


@on_loop
async def test_writers_in_the_way_of_an_outgoing_fifo_do_no_harm(tmp_path: Path) -> None:
    """Another program that writes into our FIFO is read by our reader, and the account of ours survives
    it."""
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "out")
        await rig.until_state("waiting")
        reader = open_reader(path)
        await rig.until_state("running")
        writer = open_writer(path)
        rig.carrier.send([b"ours"])
        await rig.until(lambda: rig.tally.messages_out == 1)
        await write_all(writer, b"theirs " * 1000)
        os.close(reader)
        await rig.until_state("waiting")
        reader = open_reader(path)
        assert await within(read_bytes(reader, 5)) == b"ours\n"
        os.close(writer)
        os.close(reader)
        await rig.stop()
