"""What users of FIFOs are bitten by, one test each."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from tests.bridge.rig import Rig, on_loop, shell, within
from towpath.bindings import FifoOptions
from towpath.errors import BadFrame, BindingFailed
from towpath.model import Direction
from towpath_broker.gateways.bridge.adapters.fifo import FifoAdapter

PIPE_BUF = 4096


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
            FifoAdapter(
                str(tmp_path / "fifo"),
                "both",
                FifoOptions(),
                rig.carrier,
                rig.tally,
                rig.watcher,
                rig.keeping,
            )
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
