"""Frames over a connected UNIX socket, on an asyncio loop. Used by the door and by the asyncio client.

asyncio's own streams cannot carry descriptors, so this registers the socket with the loop itself.
Everything is bounded: one read per turn of the loop, an outbox that closes the connection of a peer that
does not read, and ``pause_reading`` for a peer that asks faster than it is answered.

A peer may say its last word and leave at once: release a lock, and close. That it hears nothing more may be
noticed first, by what cannot be sent to it, or by its process's end. So then what it has said is taken in
(``leave``), before the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

from towpath import wire
from towpath.errors import ConnectionLost, SlowConsumer, TowpathError
from towpath.v1.frame_pb2 import Frame

LAST_READS_MAX: Final = 64
"""How often a peer that hears nothing more is read: more than fits into a socket at its usual size."""


class FrameTransport:
    """One connection.

    Args:
        sock: connected; owned by this object from now on, and made non-blocking.
        frame_bytes_max: the longest frame accepted.
        outbox_bytes_max: a peer that leaves more than this unread is cut off with SlowConsumer.
        on_frame: called for each frame that arrives, with its descriptors. A TowpathError that it raises
            closes the connection.
        on_closed: called exactly once, from the loop, with why: None when ``close`` was called without an
            error.
        farewell: makes the last frame, when the connection is closed for what the peer did.
        on_read: told True before the frames of one read are handed out, and False after them.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        frame_bytes_max: int,
        outbox_bytes_max: int,
        on_frame: Callable[[Frame, list[wire.Descriptor]], None],
        on_closed: Callable[[TowpathError | None], None],
        farewell: Callable[[TowpathError], Frame] | None = None,
        on_read: Callable[[bool], object] = bool,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = wire.FrameDecoder(frame_bytes_max)
        self._outbox = wire.Outbox(outbox_bytes_max)
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._farewell = farewell
        self._on_read = on_read
        self._writing = False
        self._sent: list[Callable[[], object]] = []
        self._reading = True
        self._closed = False
        self._why_leaving: TowpathError | None = None
        self._last_reads_left = LAST_READS_MAX
        self._loop.add_reader(sock, self._readable)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is sent or read any more."""
        return self._closed

    @property
    def unsent_bytes(self) -> int:
        """How much waits for the socket to take it."""
        return self._outbox.size

    def send(self, frame: Frame, descriptors: tuple[wire.Descriptor, ...] = ()) -> None:
        """Send a frame, or queue what the socket does not take now. Nothing happens on a closed
        connection, or where the peer has left.
        """
        if self._closed or self._why_leaving is not None:
            return
        if descriptors:
            frame.descriptors = len(descriptors)
        try:
            if self._writing:
                self._outbox.put(wire.encode(frame), descriptors)
            elif not self._outbox.send(self._sock, wire.encode(frame), descriptors):
                self._writing = True
                self._loop.add_writer(self._sock, self._writable)
        except SlowConsumer as error:
            self.close(error)
        except ConnectionLost as error:
            self.leave(error)

    def when_sent(self, then: Callable[[], object]) -> None:
        """Call something from the loop, once, when nothing waits to be sent; never if closed before."""
        if self._closed:
            return
        self._sent.append(then)
        if not self._writing:
            self._loop.call_soon(self._tell_sent)

    def _tell_sent(self) -> None:
        if not self._writing and not self._closed:
            told, self._sent = self._sent, []
            for then in told:
                then()

    def pause_reading(self) -> None:
        """Leave what the peer sends in the socket until ``resume_reading``."""
        if self._reading and not self._closed:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def resume_reading(self) -> None:
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)

    def leave(self, error: TowpathError) -> None:
        """Close the connection, when what the peer has sent is taken in: it hears nothing more. Nothing is
        taken in while reading is paused. More than once is fine.
        """
        if self._closed or self._why_leaving is not None:
            return
        self._why_leaving = error
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._loop.call_soon(self._read_last)

    def _read_last(self) -> None:
        self._last_reads_left -= 1
        if self._reading and self._last_reads_left and self._read():
            self._loop.call_soon(self._read_last)
        else:
            self.close(self._why_leaving)

    def close(self, error: TowpathError | None = None) -> None:
        """Close the connection; what is queued and cannot go at once is lost. More than once is fine."""
        if self._closed:
            return
        self._closed = True
        self._sent.clear()
        if (
            error is not None
            and self._farewell is not None
            and not isinstance(error, ConnectionLost | SlowConsumer)
        ):
            with contextlib.suppress(SlowConsumer, ConnectionLost):
                self._outbox.put(wire.encode(self._farewell(error)))
                self._outbox.flush(self._sock)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._loop.call_soon(self._on_closed, error)

    def _readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Take in what one read gives; whether there was anything."""
        try:
            data, descriptors = wire.receive(self._sock)
            if not data:
                self.close(ConnectionLost("the other side closed the connection"))
                return False
            frames = self._decoder.feed(data, descriptors)
            self._on_read(True)
            try:
                for frame, owned in frames:
                    self._on_frame(frame, owned)
                    if self._closed:
                        return False
            finally:
                self._on_read(False)
        except BlockingIOError:
            return False
        except TowpathError as error:
            self.close(error)
            return False
        return True

    def _writable(self) -> None:
        try:
            if self._outbox.flush(self._sock):
                self._writing = False
                self._loop.remove_writer(self._sock)
                self._tell_sent()
        except ConnectionLost as error:
            self.leave(error)
