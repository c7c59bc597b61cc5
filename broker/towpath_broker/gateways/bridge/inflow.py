"""Bytes in, messages out: from a descriptor into a channel.

Theory of operation
    Read what is there in large pieces, cut it into frames, publish them as one batch, and only then read
    again. While the publisher waits for a slow subscriber nothing is read, the pipe fills, and the program
    that writes into it waits in its own write(2): back-pressure reaches the program and nothing is lost.

Invariants
    Each frame is published or counted as refused. At most one read's bytes and one unfinished frame are held.

Not here: opening, closing, and what the end of a stream means; each adapter knows that of its mechanism.
"""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from towpath.errors import BadFrame, BindingFailed, TowpathError
from towpath.framing import FramingOptions, decoder
from towpath.model import Headers
from towpath_broker.gateways.bridge.pipes import PIPE_IN_BYTES
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop

READ_BYTES_MAX: Final = 1 << 18
"""One read(2). More did not carry faster, and costs memory per binding."""


class Ended(Enum):
    """Why carrying ended."""

    STOPPED = auto()  # as asked
    EOF = auto()  # the last writer has closed
    BROKEN = auto()  # the stream does not follow its framing and cannot be followed any more


class Inflow:
    """One stream's way into a channel.

    Args:
        framing: how messages lie in it.
        publishing: the way into the channel. Where it ``hands_over``, what could not be published when this
            is cancelled is in :meth:`state`, and this is the only one that publishes through it.
        tally: the binding's account.
        headers: of each message.
    """

    def __init__(
        self,
        framing: FramingOptions,
        publishing: Publishing,
        tally: Tally,
        *,
        headers: Headers | None = None,
    ) -> None:
        self._decoder = decoder(framing)
        self._tally = tally
        self._publishing = publishing
        self._headers = headers
        self._told_refused = 0
        self._told_error: TowpathError | None = None

    async def carry(self, descriptor: int, stop: Stop) -> Ended:
        """Carry what comes.

        Args:
            descriptor: the read end, non-blocking.
            stop: ends it between two batches.

        Raises:
            TowpathError: the channel takes no more.
        """
        left, self._publishing.left = self._publishing.left, ()
        await self._publish(left)
        while not stop.is_set:
            try:
                data = await self._read(descriptor)
            except BlockingIOError:
                await stop.readable(descriptor)
                continue
            if not data:
                return Ended.EOF
            if not await self._take(data):
                return Ended.BROKEN
        return Ended.STOPPED

    async def carry_rest(self, descriptor: int) -> Ended:
        """Carry what is in the pipe now, and wait for nothing more. At most one pipe's content, however fast
        someone writes."""
        left_bytes = PIPE_IN_BYTES
        while left_bytes > 0:
            try:
                data = await self._read(descriptor)
            except BlockingIOError:
                break
            if not data:
                return Ended.EOF
            left_bytes -= len(data)
            if not await self._take(data):
                return Ended.BROKEN
        return Ended.STOPPED

    def state(self) -> bytes:
        """Return where in the stream this is, for :meth:`restore`: between two batches, or when cancelled."""
        return repr((self._decoder.state(), list(self._publishing.left))).encode()

    def restore(self, state: bytes) -> None:
        """Go on inside a stream, where a predecessor stopped.

        Raises:
            ValueError: it was one of another framing; nothing was changed.
        """
        decoder_state, left = ast.literal_eval(state.decode())
        self._publishing.left = left
        self._decoder.restore(decoder_state)
        self._told_refused = self._decoder.refused

    async def finish(self, *, is_whole: bool) -> None:
        """End the stream; another one may follow.

        Args:
            is_whole: the stream came to its own end, so that an unfinished last line is a line. Otherwise it
                is cut short, and an unfinished frame is counted as refused.
        """
        pending_bytes = self._decoder.pending_bytes
        was_refused = self._decoder.refused
        frames = self._decoder.end()
        if is_whole:
            await self._publish(frames)
        elif pending_bytes and self._decoder.refused == was_refused:
            self._tally.refuse(1, BadFrame(f"stopped inside a frame, {pending_bytes} bytes after it began"))
        self._tell_refused()

    def broken(self) -> BindingFailed:
        """The error for a stream that ended as BROKEN."""
        error = self._decoder.last_error
        assert error is not None
        return BindingFailed(f"{error.message}: the stream was closed", hint=error.hint, retryable=True)

    async def _read(self, descriptor: int) -> bytes:
        # Gives the other bindings their turn: a fast writer alone would never let the loop go on.
        await asyncio.sleep(0)
        return os.read(descriptor, READ_BYTES_MAX)

    async def _take(self, data: bytes) -> bool:
        """Publish what the data completes; False when the stream is broken."""
        frames = self._decoder.feed(data)
        self._tell_refused()
        await self._publish(frames)
        return not self._decoder.is_broken

    async def _publish(self, frames: Sequence[bytes]) -> None:
        headers = None if self._headers is None else [self._headers] * len(frames)
        await self._publishing.publish(frames, headers)

    def _tell_refused(self) -> None:
        # The error may change without a new refusal: when a frame that is too long ends, its size is known.
        error = self._decoder.last_error
        if error is not None and error is not self._told_error:
            self._tally.refuse(self._decoder.refused - self._told_refused, error)
            self._told_refused, self._told_error = self._decoder.refused, error
