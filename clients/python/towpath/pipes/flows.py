"""Carrying between a stream of bytes and a channel, one direction each, in the caller's thread.

Theory of operation
    An inlet reads what is there, up to ``READ_BYTES``, cuts it into frames and publishes them as a batch: a
    line goes out at once, a torrent in large batches; while a subscriber's ring is full nothing is read, and
    who writes waits. An outlet takes messages in batches and writes them; while the reader does not read, it
    waits, and by the channel's overflow policy so do publishers. Of a queue a message is acknowledged when
    it was handed to the kernel, not before: what a reader that dies leaves unread in the pipe is lost with
    it.

Invariants
    Attaching is done by the constructors: nothing published after one returned is missed.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Final

import towpath
from towpath.errors import Timeout, TowpathError
from towpath.framing import FramingOptions, decoder, encoder
from towpath.names import is_pattern
from towpath.sync.api import Client, Publisher, Subscription
from towpath.sync.consuming import Consumer

READ_BYTES: Final = 1 << 16
DRAIN_TIMEOUT_S: Final = 10.0
"""How long an inlet waits at its end until everything is read by all; it stays in the ring either way."""
STOP_S: Final = 1.0
"""How long an outlet that is to end waits for what is being written."""


class Inlet:
    """What is read from a descriptor is published.

    Attributes:
        refused: frames that were not published, as they were too long or malformed.
        last_error: why the last of them was refused.
    """

    def __init__(self, client: Client, channel: str, framing: FramingOptions) -> None:
        self._publisher: Publisher = client.publisher(channel)
        # Fixed frames that no message can hold are refused here: raises InvalidArgument.
        bytes_max = min(framing.frame_bytes_max, self._publisher.message_bytes_max)
        self._decoder = decoder(replace(framing, frame_bytes_max=bytes_max))

    @property
    def refused(self) -> int:
        return self._decoder.refused

    @property
    def last_error(self) -> TowpathError | None:
        return self._decoder.last_error

    def run(self, fd: int) -> None:
        """Publish up to the end of the stream, and wait until it was read.

        Raises:
            TowpathError: what publishing failed with; the rest of the stream was not read.
        """
        while (chunk := _read(fd)) and not self._decoder.is_broken:
            if payloads := self._decoder.feed(chunk):
                self._publisher.publish_many(payloads)
        if last := self._decoder.end():
            self._publisher.publish_many(last)
        self._settle()

    def _settle(self) -> None:
        try:
            self._publisher.flush()
            self._publisher.wait_drained(DRAIN_TIMEOUT_S)
        except towpath.NotSupported:
            pass  # from afar: what was acknowledged is in the gateway's ring, and stays there
        except Timeout:
            pass

    def close(self) -> None:
        self._publisher.close()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, READ_BYTES)
    except ConnectionResetError:
        return b""  # a socket whose other end was closed with something unread


class Outlet:
    """What comes on a channel is written to a descriptor.

    Attributes:
        refused: messages that were not written, as the framing cannot carry them.
        last_error: why the last of them was refused.
    """

    def __init__(self, client: Client, channel: str, framing: FramingOptions) -> None:
        self._encoder = encoder(framing)
        self._handing = threading.Lock()
        self._end: Subscription | Consumer
        if not is_pattern(channel) and client.channel_info(channel).kind == "queue":
            self._end = client.consume(channel)
        else:
            self._end = client.subscribe(channel, held_max=0)

    @property
    def refused(self) -> int:
        return self._encoder.refused

    @property
    def last_error(self) -> TowpathError | None:
        return self._encoder.last_error

    def run(self, fd: int, *, count_max: int | None = None) -> None:
        """Write until nobody reads any more, or so many messages were written; the descriptor stays open.

        Raises:
            TowpathError: what receiving failed with; ConnectionLost also when the client was closed.
        """
        left = count_max
        while left is None or left > 0:
            batch = self._end.receive_many(256 if left is None else min(left, 256))
            if left is not None:
                left -= len(batch)
            try:
                with self._handing:
                    _write(fd, b"".join(self._encoder.encode([each.payload for each in batch])))
                    if isinstance(self._end, Consumer):
                        for each in batch:
                            each.ack()  # type: ignore[union-attr]  # a Consumer's batch has Deliveries
                        self._end.flush()
            except (BrokenPipeError, ConnectionResetError):
                return  # a queue gets back what was not acknowledged

    def close(self) -> None:
        """End ``run`` in another thread, which raises ConnectionLost; what was written is acknowledged first,
        unless nobody reads it and nobody can tell.
        """
        has_stopped = self._handing.acquire(timeout=STOP_S)
        try:
            self._end.close()
        finally:
            if has_stopped:
                self._handing.release()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
