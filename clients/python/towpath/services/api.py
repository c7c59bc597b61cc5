"""Servers and requests, as programs see them, wherever the daemon is."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from towpath import model
from towpath.errors import ConnectionLost, Timeout
from towpath.handles import Handle
from towpath.result import attempt
from towpath.waiting import CALL_TIMEOUT_S, Buffer, deadline_ns

from .answering import needs_stream
from .request import RequestBase

if TYPE_CHECKING:
    from towpath._message import Message

Answer = Buffer | None | Iterable[Buffer]
"""What a handler returns: the reply; None for an empty one; anything else is iterated, and each item is a
part of a stream."""

Handler = Callable[["Request"], Answer]


class Request(RequestBase):
    """One request to a service. Answer it once: by :meth:`reply`, by :meth:`fail`, or, when ``is_stream``, by
    any number of :meth:`send` and then :meth:`end` or :meth:`reply`.

    Attributes:
        payload: what is asked.
    """

    @abstractmethod
    def reply(self, payload: Buffer = b"", *, headers: model.Headers | None = None) -> None:
        """Answer. Nothing happens when the caller does not wait any more.

        Raises:
            InvalidArgument: it was answered already.
            MessageTooLarge: nothing was sent; answer otherwise.
        """

    @abstractmethod
    def send(self, payload: Buffer, *, headers: model.Headers | None = None) -> bool:
        """Send a part of a stream; waits until the caller takes it. Returns False when nobody waits any more.

        Raises:
            InvalidArgument: the caller takes one reply; or it was answered already.
            MessageTooLarge: nothing was sent.
        """

    @abstractmethod
    def end(self) -> None:
        """End a stream without a last part."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Answer with an error: one of ``towpath.errors`` reaches the caller as itself, any other as
        ``ServiceFailed`` with its type and text.
        """

    @abstractmethod
    def _finish(self) -> None:
        """The program is done with it: fail it if it was not answered. More than once is fine."""

    def answer(self, handler: Handler) -> None:
        """Answer with what a handler returns or raises."""
        try:
            self._answer(handler)
        except Exception as error:  # whatever a program's handler raises is its answer
            if not self.is_answered:
                self.fail(error)
        finally:
            self._finish()

    def _answer(self, handler: Handler) -> None:
        answer = handler(self)
        if answer is None or isinstance(answer, bytes | bytearray | memoryview):
            if not self.is_answered:
                self.reply(b"" if answer is None else answer)
            return
        if not self.is_stream:
            raise needs_stream()
        for part in answer:
            if not self.send(part):
                return
        if not self.is_answered:
            self.end()


class Server(Handle):
    """One server of a service. ``for request in server`` gives one request after the other; :meth:`run`
    answers each by a function. Close it, or use it as a context manager.

    Attributes:
        channel: the service's name.
        concurrency: how many requests it works on at a time.
    """

    channel: str
    concurrency: int

    @abstractmethod
    def receive(self, timeout: float | None = None) -> Request:
        """Return the next request; waits while ``concurrency`` of them are not answered.

        Args:
            timeout: seconds to wait; None for ever, 0 not at all.

        Raises:
            Timeout: none came.
            ChannelUndeclared, ConnectionLost: the server has ended.
        """

    try_receive = attempt(receive)

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether it was closed here."""

    @abstractmethod
    def close(self) -> None:
        """Serve no more. Requests that wait go to other servers; one that was taken and not answered fails
        with ServerLost. More than once is fine.
        """

    def __iter__(self) -> Iterator[Request]:
        """Yield requests until the server is closed. With a ``concurrency`` of 1, a request that is not
        answered when the next one is asked for is failed.
        """
        while not self.is_closed:
            try:
                request = self.receive()
            except ConnectionLost:
                if self.is_closed:
                    return
                raise
            yield request
            if self.concurrency == 1:
                request._finish()

    def run(self, handler: Handler, *, timeout: float | None = None) -> None:
        """Answer every request with what ``handler`` returns for it, in ``concurrency`` threads, until the
        server is closed.

        A handler returns bytes, or None for an empty reply, or an iterable of parts for a caller that takes a
        stream; what it raises is the caller's error. It may also answer the request itself.

        Args:
            timeout: return when no request came for so many seconds; None never.

        Raises:
            ChannelUndeclared, ConnectionLost: the server has ended.
        """

        def work() -> None:
            while not self.is_closed:
                try:
                    request = self.receive(timeout)
                except Timeout:
                    return
                request.answer(handler)

        def help_out() -> None:
            with contextlib.suppress(Exception):  # the thread of `run` meets the same, and raises it
                work()

        threads = [
            threading.Thread(target=help_out, name=f"towpath-serve-{n}", daemon=True)
            for n in range(1, self.concurrency)
        ]
        for thread in threads:
            thread.start()
        try:
            work()
        except ConnectionLost:
            if not self.is_closed:
                raise
        except BaseException:
            self.close()
            raise
        finally:
            for thread in threads:
                thread.join()


class Caller(Protocol):
    """A client's way to one service."""

    def call(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Message: ...

    def call_stream(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Iterator[Message]: ...


class Services(ABC):
    """What a client can do with services."""

    def call(
        self,
        name: str,
        payload: Buffer = b"",
        *,
        timeout: float | None = CALL_TIMEOUT_S,
        idempotent: bool = False,
        headers: model.Headers | None = None,
        wait: bool = False,
    ) -> Message:
        """Ask a service, and wait for the reply.

        Args:
            name: the service's name.
            payload: any bytes-like object.
            timeout: seconds to wait for the reply; None for ever. The server is told when they are over.
            idempotent: carrying it out twice does no harm: if the server dies, another one is asked.
            headers: what travels beside it.
            wait: where nobody serves, wait for somebody to.

        Returns:
            The reply.

        Raises:
            NoServer: nobody serves. Of a core that has just been started again this is said only when servers
                have had the time to come back to it (3 s).
            ServerLost: the server is gone; it may or may not have carried it out.
            Timeout: no reply in time.
            ServiceFailed: the server failed, with an error of its own.
            TowpathError: whatever error of Towpath's the server answered with.
            ChannelNotFound, InvalidArgument (no service), MessageTooLarge.
        """
        deadline = deadline_ns(timeout)
        return self.service_caller(name).call(
            payload, headers=headers, deadline=deadline, is_idempotent=idempotent, wait=wait
        )

    try_call = attempt(call)

    def call_stream(
        self,
        name: str,
        payload: Buffer = b"",
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        headers: model.Headers | None = None,
        wait: bool = False,
    ) -> Iterator[Message]:
        """Ask a service, and iterate over its replies; the server goes ahead by at most a mebibyte.

        Closing the iterator cancels the call. Arguments and errors as for :meth:`call`; the timeout is for
        all of it. ``idempotent``: another server is asked only as long as nothing came.
        """
        deadline = deadline_ns(timeout)
        return self.service_caller(name).call_stream(
            payload, headers=headers, deadline=deadline, is_idempotent=idempotent, wait=wait
        )

    @abstractmethod
    def serve(self, name: str, *, concurrency: int = 1) -> Server:
        """Become a server of a service. Requests are spread over its servers: each goes to one that has the
        fewest.

        Args:
            concurrency: how many requests it works on at a time, 1 to 4,096.

        Raises:
            ChannelNotFound, InvalidArgument (no service), LimitExceeded (subscribers per channel),
            QuotaExceeded.
        """

    @abstractmethod
    def service_caller(self, name: str, principal: str = "") -> Caller:
        """This client's way to a service; ``principal`` is for whom a gateway calls."""
