"""What users of FIFOs are bitten by, one test each."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from tests.bridge.rig import Rig, on_loop, read_bytes, shell, within, write_all
from towpath.bindings import FifoOptions, parse_framing
from towpath.errors import BadFrame, BindingFailed, SlowConsumer
from towpath.framing import decoder
from towpath.model import Direction
from towpath_broker.gateways.bridge import outflow
from towpath_broker.gateways.bridge.adapters.fifo import FifoAdapter
from towpath_broker.gateways.bridge.inotify import IN_OPEN, PathWatcher
from towpath_broker.gateways.bridge.outflow import HELD_BYTES_MAX
from towpath_broker.gateways.bridge.pipes import unread_bytes

PIPE_BUF = 4096


def open_reader(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def open_writer(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


# -- the path ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("mode", ["0600", "0622", "0640", "0666"])
@on_loop
async def test_it_is_made_with_the_binding_s_permissions_whatever_the_umask(
    tmp_path: Path, direction: Direction, mode: str
) -> None:
    path = tmp_path / "fifo"
    umask = os.umask(0o077)
    try:
        async with Rig() as rig:
            rig.fifo(path, direction, mode=mode)
            await rig.until(lambda: rig.tally.state != "pending")
            found = path.stat().st_mode
            assert stat.S_ISFIFO(found) and stat.S_IMODE(found) == int(mode, 8)
            await rig.stop()
            assert not path.exists()
    finally:
        os.umask(umask)


@on_loop
async def test_a_fifo_that_was_there_is_adopted_as_it_is_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o620)
    path.chmod(0o620)
    inode = path.stat().st_ino
    async with Rig() as rig:
        rig.fifo(path, "in", mode="0666")
        await rig.until_state("running")
        await shell(f"echo hello > {path}")
        assert await rig.until_published(1) == [b"hello"]
        await rig.stop()
    assert path.stat().st_ino == inode and stat.S_IMODE(path.stat().st_mode) == 0o620


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("what", ["file", "directory", "socket", "link", "dangling link"])
@on_loop
async def test_what_is_not_a_fifo_is_refused_and_left_alone(
    tmp_path: Path, what: str, direction: Direction
) -> None:
    path = tmp_path / "place"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        if what == "link":
            os.mkfifo(tmp_path / "target")
        path.symlink_to(tmp_path / "target")
    before = path.lstat()
    async with Rig() as rig:
        rig.fifo(path, direction)
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
        assert not caught.value.retryable and str(path) in caught.value.message
        assert ("symbolic link" in caught.value.message) == ("link" in what)
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
        before.st_size,
    )
    assert what != "file" or path.read_text() == "precious"


@pytest.mark.parametrize("replacement", ["fifo", "file"])
@on_loop
async def test_only_what_it_made_is_removed(tmp_path: Path, replacement: str) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "in")
        await rig.until_state("running")
        os.rename(path, tmp_path / "moved")
        if replacement == "fifo":
            os.mkfifo(path)
        else:
            os.close(os.open(path, os.O_CREAT))
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
        assert caught.value.retryable and "removed or replaced" in caught.value.message
    assert path.exists() and (tmp_path / "moved").exists()


@pytest.mark.parametrize("direction", ["in", "out"])
@on_loop
async def test_a_path_that_is_removed_meanwhile_is_noticed(tmp_path: Path, direction: Direction) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, direction)
        await rig.until(lambda: rig.tally.state != "pending")
        os.unlink(path)
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
        assert caught.value.retryable


@on_loop
async def test_what_was_written_before_the_path_was_removed_is_carried(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "in")
        await rig.until_state("running")
        writer = open_writer(path)
        await rig.settle()
        os.write(writer, b"one\ntwo\n")
        os.unlink(path)
        os.close(writer)
        with pytest.raises(BindingFailed):
            await rig.ended()
        assert rig.carrier.published == [b"one", b"two"]


@pytest.mark.parametrize("place", ["missing/fifo", "fifo"], ids=["no directory", "create=false"])
@on_loop
async def test_what_may_come_later_is_tried_again(tmp_path: Path, place: str) -> None:
    async with Rig() as rig:
        rig.fifo(tmp_path / place, "in", create="false" if place == "fifo" else "true")
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
        assert caught.value.retryable and "No such file" in caught.value.message
    assert os.listdir(tmp_path) == []


@on_loop
async def test_both_directions_would_read_what_they_wrote(tmp_path: Path) -> None:
    async with Rig() as rig:
        with pytest.raises(BindingFailed) as caught:
            FifoAdapter(str(tmp_path / "fifo"), "both", FifoOptions(), rig.carrier, rig.tally, rig.watcher)
        assert not caught.value.retryable


# -- inward --------------------------------------------------------------------------------------------------


@on_loop
async def test_no_storm_of_empty_reads_when_the_last_writer_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fifo"
    reads: list[int] = []
    read = os.read

    def counted(descriptor: int, count: int) -> bytes:
        data = read(descriptor, count)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            reads.append(len(data))
        return data

    monkeypatch.setattr(os, "read", counted)
    async with Rig() as rig:
        rig.fifo(path, "in")
        await rig.until_state("running")
        for number in range(1, 4):
            await shell(f"echo {number} > {path}")
            await rig.until_published(number)
        await rig.settle()
        assert rig.carrier.published == [b"1", b"2", b"3"]
        assert 0 not in reads and len(reads) <= 6
        await rig.stop()


@on_loop
async def test_a_partial_line_waits_for_its_rest_through_writers_that_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "in")
        await rig.until_state("running")
        await shell(f"printf 'one\\ntw' > {path}")
        assert await rig.until_published(1) == [b"one"]
        await shell(f"printf 'o' > {path}; printf '\\nthree\\n' > {path}")
        assert await rig.until_published(3) == [b"one", b"two", b"three"]
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_a_partial_line_at_the_stop_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "in")
        await rig.until_state("running")
        await shell(f"printf 'whole\\nhalf' > {path}")
        await rig.until_published(1)
        await rig.stop()
        assert rig.carrier.published == [b"whole"]
        assert rig.tally.refused == 1 and isinstance(rig.tally.last_error, BadFrame)
        assert "4 bytes" in rig.tally.last_error.message


@on_loop
async def test_what_was_written_before_the_stop_is_carried(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    lines = [b"%d" % number for number in range(10_000)]
    async with Rig() as rig:
        rig.fifo(path, "in")
        await rig.until_state("running")
        writer = open_writer(path)
        await rig.settle()
        os.write(writer, b"\n".join(lines) + b"\n")
        await rig.stop()
        assert rig.carrier.published == lines
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"late\n")
        os.close(writer)


WRITER = """
import os, sys
path, letter, size, count = sys.argv[1:]
fifo = os.open(path, os.O_WRONLY)
line = letter.encode() * int(size) + b"\\n"
for _ in range(int(count)):
    os.write(fifo, line)
"""


async def write_lines_from_processes(path: Path, line_bytes: int, count: int) -> None:
    """Four processes write lines of one letter each, one write(2) per line."""
    writers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", WRITER, str(path), letter, str(line_bytes - 1), str(count)
        )
        for letter in "abcd"
    ]
    for writer in writers:
        assert await within(writer.wait()) == 0


@on_loop
async def test_lines_of_several_writers_up_to_pipe_buf_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "in")
        await rig.until_state("running")
        await write_lines_from_processes(path, PIPE_BUF, 500)
        published = await rig.until_published(2000)
        await rig.stop()
        for letter in b"abcd":
            assert published.count(bytes([letter]) * (PIPE_BUF - 1)) == 500


@on_loop
async def test_longer_lines_of_several_writers_may_mix_but_no_byte_and_no_newline_is_lost(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fifo"
    line_bytes, count = 10_000, 100
    async with Rig() as rig:
        rig.fifo(path, "in", frame_bytes_max=str(4 * line_bytes * count))
        await rig.until_state("running")
        await write_lines_from_processes(path, line_bytes, count)
        published = await rig.until_published(4 * count)
        await rig.stop()
        whole = b"".join(published)
        assert len(published) == 4 * count
        for letter in b"abcd":
            assert whole.count(bytes([letter])) == (line_bytes - 1) * count


@on_loop
async def test_a_broken_netstring_stream_is_closed_after_what_was_good(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with Rig() as rig:
        rig.fifo(path, "in", framing="netstring")
        await rig.until_state("running")
        await shell(f"printf '5:hello,oops' > {path}")
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
        assert caught.value.retryable and "oops" in caught.value.message
        assert rig.carrier.published == [b"hello"]
        assert rig.tally.refused == 1 and isinstance(rig.tally.last_error, BadFrame)


# -- outward -------------------------------------------------------------------------------------------------


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
