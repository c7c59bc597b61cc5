"""The bridge's end of a helper that waits in msgrcv(2) or msgsnd(2); see ``sysv_waiter``.

Theory of operation
    One helper does one thing at a time. What was asked for is either answered, or ended by :meth:`close`,
    which gives back what the helper had already taken. The helper is started when it is first needed, and
    costs a sleeping Python process (about 10 MB) from then on.

Invariants
    A message that the helper took is returned by ``receive`` or by ``close``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Final

from towpath.errors import BindingFailed
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.sysv_waiter import SIZE, TYPE

AGAIN_S: Final = 0.02
"""A signal that came before the helper's wait did not end it; another one follows, for ``CLOSE_S``."""
CLOSE_S: Final = 2.0
_READ_BYTES: Final = 65_536


class SysvHelper:
    """A helper process for one queue.

    Args:
        key, identifier: the queue's.
        bytes_max: its largest message.
    """

    def __init__(self, key: int, identifier: int, bytes_max: int) -> None:
        self._arguments = [str(each) for each in (key, identifier, bytes_max, os.getpid())]
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = self._answers = self._pidfd = -1
        self._held = bytearray()
        self._is_asked = False

    async def receive(self, kind: int, stop: Stop) -> tuple[bytes, int] | None:
        """Wait for a message.

        Returns:
            It and its type; None when the stop ended the wait: then call :meth:`close`.

        Raises:
            BindingFailed: the queue is gone, or the helper.
        """
        answer = await self._ask(b"r" + TYPE.pack(kind), stop)
        return None if answer is None else _message(answer)

    async def send(self, payload: bytes, kind: int, stop: Stop) -> bool:
        """Wait until a message could be sent.

        Returns:
            False when the stop ended the wait: then :meth:`close` tells whether it was sent.

        Raises:
            BindingFailed: the queue is gone, or the helper.
        """
        command = b"s" + TYPE.pack(kind) + SIZE.pack(len(payload)) + payload
        return await self._ask(command, stop) is not None

    async def close(self) -> bytes:
        """End the helper.

        Returns:
            The answer that it had ready, for :func:`message_of` and :func:`was_sent`; empty for none.
        """
        if self._process is None:
            return b""
        os.close(self._asked)
        self._asked = -1
        try:
            attempts = int(CLOSE_S / AGAIN_S)
            while self._is_asked and attempts and not await self._exited(AGAIN_S):
                self._process.send_signal(signal.SIGTERM)
                attempts -= 1
            if not await self._exited(CLOSE_S):
                self._process.kill()
            self._process.wait()
            while piece := self._read():
                self._held += piece
            return bytes(self._held)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the helper at once; what it has taken is lost."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        for descriptor in (self._asked, self._answers, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._asked = self._answers = self._pidfd = -1
        self._held.clear()
        self._is_asked = False

    def _start(self) -> None:
        theirs, self._asked = os.pipe2(os.O_CLOEXEC)
        self._answers, theirs_too = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "towpath_broker.gateways.bridge.sysv_waiter", *self._arguments],
                stdin=theirs,
                stdout=theirs_too,
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            os.close(self._asked)
            os.close(self._answers)
            raise
        finally:
            os.close(theirs)
            os.close(theirs_too)
        os.set_blocking(self._asked, False)
        os.set_blocking(self._answers, False)

    async def _ask(self, command: bytes, stop: Stop) -> bytes | None:
        assert not self._is_asked
        if self._process is None:
            self._start()
        self._is_asked = True
        view = memoryview(command)
        try:
            while view:
                try:
                    view = view[os.write(self._asked, view) :]
                except BlockingIOError:
                    await stop.writable(self._asked)
                    if stop.is_set:
                        self.kill()  # it has only a part of the command, and so nothing in its hands
                        return None
        except BrokenPipeError:
            raise self._gone() from None
        while not _is_whole(self._held):
            if not await stop.readable(self._answers):
                return None
            piece = self._read()
            if not piece:
                raise self._gone()
            self._held += piece
        answer = bytes(self._held)
        self._held.clear()
        self._is_asked = False
        raise_refusal(answer)
        return answer

    def _read(self) -> bytes:
        try:
            return os.read(self._answers, _READ_BYTES)
        except BlockingIOError:
            return b""

    async def _exited(self, timeout_s: float) -> bool:
        ended = Stop()
        timer = asyncio.get_running_loop().call_later(timeout_s, ended.set)
        try:
            return await ended.readable(self._pidfd)
        finally:
            timer.cancel()

    def _gone(self) -> BindingFailed:
        self.kill()
        return BindingFailed("the helper that waits for the System V queue has ended", retryable=True)


def message_of(answer: bytes) -> tuple[bytes, int] | None:
    """The message that an answer has, if any."""
    return _message(answer) if answer.startswith(b"m") and _is_whole(answer) else None


def was_sent(answer: bytes) -> bool:
    """Whether an answer says that a message was sent."""
    return answer == b"o"


class QueueGone(BindingFailed):
    """The queue was removed."""


def raise_refusal(answer: bytes) -> None:
    """Raise what an answer says went wrong."""
    if answer.startswith(b"x"):
        raise QueueGone("the System V message queue was removed", retryable=True)
    if answer.startswith(b"e"):
        text = answer[1 + SIZE.size :].decode(errors="replace")
        raise BindingFailed(f"the System V message queue failed: {text}", retryable=True)


def _message(answer: bytes) -> tuple[bytes, int]:
    (kind,) = TYPE.unpack_from(answer, 1)
    return answer[1 + TYPE.size + SIZE.size :], kind


def _is_whole(answer: bytes | bytearray) -> bool:
    if answer[:1] in (b"o", b"x"):
        return True
    head_bytes = 1 + (TYPE.size if answer[:1] == b"m" else 0)
    if len(answer) < head_bytes + SIZE.size:
        return False
    (size_bytes,) = SIZE.unpack_from(answer, head_bytes)
    return len(answer) >= head_bytes + SIZE.size + int(size_bytes)
