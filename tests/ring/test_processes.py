"""``_ring`` between processes: several writers and readers, every byte checked; and SIGKILL of either side.

The children are forked, make their own handles, and pass descriptors over sockets, as a session would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import traceback
import zlib
from typing import TYPE_CHECKING, Literal

import pytest

from towpath._ring import GenerationTable, Message, Reader, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_NS = 60 * 10**9

Overflow = Literal["block", "drop"]


class Child:
    """A forked process that runs ``main(socket)``; ``socket`` is our end."""

    def __init__(self, main: Callable[[socket.socket], None]) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self.socket.close()
                main(theirs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()

    def receive(self) -> tuple[bytes, int]:
        data, descriptors, _, _ = socket.recv_fds(self.socket, 100, 1)
        return data, descriptors[0] if descriptors else -1

    def exit_code(self) -> int:
        self.socket.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def give(to: socket.socket, number: int, descriptor: int) -> None:
    socket.send_fds(to, [b"%d" % number], [descriptor])
    os.close(descriptor)


def take(source: socket.socket) -> tuple[int, int]:
    data, [descriptor], _, _ = socket.recv_fds(source, 100, 1)
    return int(data), descriptor


def payload_of(source: int, seq: int) -> bytes:
    """Bytes that follow from the two numbers, 4 to 103 of them, with a checksum."""
    body = b"%d.%d." % (source, seq) * (seq % 9)
    return body + zlib.crc32(body + b"%d" % seq).to_bytes(4, "little")


def check_payload(message: Message) -> None:
    body, checksum = message.payload[:-4], message.payload[-4:]
    assert checksum == zlib.crc32(body + b"%d" % message.seq).to_bytes(4, "little")
    assert body == b"%d.%d." % (message.source, message.seq) * (message.seq % 9)


def writer_main(
    source: int, messages: int, readers: int, overflow: Overflow
) -> Callable[[socket.socket], None]:
    def main(core: socket.socket) -> None:
        writer = Writer(source, 16384, overflow=overflow)
        give(core, source, writer.share())
        for _ in range(readers):
            reader, control = take(core)
            writer.attach(reader, control, source, -1, start="start")
            os.close(control)
        while writer.last_seq < messages:
            seq = writer.last_seq + 1
            if seq % 3:
                taken = writer.try_publish(payload_of(source, seq), b"%d" % seq)
            else:
                batch = [payload_of(source, number) for number in range(seq, min(seq + 40, messages + 1))]
                taken = writer.try_publish_many(batch, 0, [b"%d" % (seq + i) for i in range(len(batch))])
            if taken == 0:
                assert overflow == "block"
                assert writer.wait_room(len(payload_of(source, seq)) + 10, LONG_NS) == 1
        writer.close()

    return main


def reader_main(
    reader_id: int, sources: int, messages: int, overflow: Overflow
) -> Callable[[socket.socket], None]:
    def main(core: socket.socket) -> None:
        reader = Reader(reader_id)
        give(core, reader_id, reader.share())
        for _ in range(sources):
            source, ring = take(core)
            reader.add(ring, source, source, "plant", start="start")
            os.close(ring)
        last = dict.fromkeys(range(sources), 0)
        received = missed = 0
        while reader.sources():
            for message in reader.receive(50, 20_000, LONG_NS):
                assert message.seq == last[message.source] + 1 + message.missed
                assert message.headers_raw == b"%d" % message.seq
                check_payload(message)
                last[message.source] = message.seq
                missed += message.missed
                received += 1
            assert reader.take_violations() == []
            assert reader.take_detached() == []
            for source in reader.take_drained():
                reader.remove(source)
        assert set(last.values()) == {messages}
        assert received + missed == sources * messages
        assert reader.lost == missed
        assert missed == 0 or overflow == "drop"
        reader.close()

    return main


@pytest.mark.parametrize("overflow", ["block", "drop"])
@pytest.mark.parametrize("messages", [5000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_many_writers_and_readers(messages: int, overflow: Overflow) -> None:
    """Every byte is checked, and what was received and what was missed add up."""
    writers, readers = 3, 2
    writing = [Child(writer_main(source, messages, readers, overflow)) for source in range(writers)]
    reading = [Child(reader_main(100 + number, writers, messages, overflow)) for number in range(readers)]
    rings = [child.receive()[1] for child in writing]
    controls = [child.receive()[1] for child in reading]
    for source, ring in enumerate(rings):
        for child in reading:
            socket.send_fds(child.socket, [b"%d" % source], [ring])
    for number, control in enumerate(controls):
        for child in writing:
            socket.send_fds(child.socket, [b"%d" % (100 + number)], [control])
    for descriptor in rings + controls:
        os.close(descriptor)
    assert [child.exit_code() for child in writing + reading] == [0] * (writers + readers)


def test_a_killed_writer_leaves_whole_messages() -> None:
    """Killed in the middle of endless publishing: what is there is whole and contiguous, and then drained."""

    def main(core: socket.socket) -> None:
        writer = Writer(5, 65536)
        give(core, 5, writer.share())
        reader_id, control = take(core)
        writer.attach(reader_id, control, 0, -1, start="start")
        while True:
            seq = writer.last_seq + 1
            if writer.try_publish_many([payload_of(5, seq + i) for i in range(10)]) == 0:
                writer.wait_room(2000, LONG_NS)

    for enough in (1, 500, 5000):
        child, reader = Child(main), Reader(9)
        _, ring = child.receive()
        reader.add(ring, 0, 5, "plant", start="start")
        give(child.socket, 9, reader.share())
        os.close(ring)
        last = 0
        is_killed = False
        while reader.sources():
            messages = reader.receive(100, 10**6, LONG_NS)
            for message in messages:
                assert message.seq == last + 1
                assert message.payload == payload_of(5, message.seq)
                last = message.seq
            if last >= enough and not is_killed:
                os.kill(child.pid, signal.SIGKILL)
                assert child.exit_code() == -signal.SIGKILL
                reader.finish(5)
                is_killed = True
            assert reader.take_violations() == []
            for source in reader.take_drained():
                reader.remove(source)
        assert last >= enough
        reader.close()


def test_a_killed_reader_holds_nobody_for_long() -> None:
    """A dead reader blocks its writer; the core's bump ends the wait, detaching it ends the block."""

    def main(core: socket.socket) -> None:
        reader = Reader(9)
        _, ring = take(core)
        reader.add(ring, 0, 5, "plant", start="start")
        give(core, 9, reader.share())
        reader.receive(3, 10**6, LONG_NS)
        core.send(b"received")
        core.recv(1)

    table, writer, child, other = GenerationTable(1), Writer(5, 4096), Child(main), Reader(10)
    with contextlib.closing(table), contextlib.closing(writer), contextlib.closing(other):
        cells, ring, control = table.share(), writer.share(), other.share()
        writer.set_generation_table(cells, 0)
        writer.attach(10, control, 0, -1, start="start")
        other.add(ring, 0, 5, "plant", start="start")
        give(child.socket, 5, ring)
        _, theirs = child.receive()
        writer.attach(9, theirs, 0, -1, start="start")
        for descriptor in (cells, control, theirs):
            os.close(descriptor)
        writer.install(0)
        while writer.try_publish(b"x" * 200):
            pass
        assert child.receive()[0] == b"received"
        received = len(other.receive(100, 10**6, 0))
        while writer.try_publish(b"x" * 200):
            pass
        published = writer.last_seq
        assert received + len(other.receive(100, 10**6, 0)) == published > received
        assert writer.slowest_reader() == 9
        os.kill(child.pid, signal.SIGKILL)
        assert child.exit_code() == -signal.SIGKILL
        assert writer.wait_room(200, 1_000_000) == 0  # a dead reader moves no cursor
        table.bump(0)
        assert writer.wait_room(200, LONG_NS) == -1
        assert writer.detach(9)
        writer.install(1)
        assert writer.wait_room(200, LONG_NS) == 1
        assert writer.try_publish(b"on") == published + 1
        assert [message.payload for message in other.receive(10, 1000, 0)] == [b"on"]
