"""Callers on this host that wait in the program's own threads.

Theory of operation
    A call writes the caller's ring and reads the rings of the answers in the thread that calls. Where several
    threads wait, one of them reads for all (``relay``). The daemon is asked to make the ends, when the first
    call to a service is made, and who serves, when nobody is known to.

Invariants
    The state of a service's end is changed under ``_lock``, which is never held while waiting.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from towpath import calls, model
from towpath._message import Message
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.sync.messages import LocalPublisher
from towpath.v1 import frame_pb2
from towpath.waiting import CALL_TIMEOUT_S, FOREVER, Buffer, deadline_ns, far_ns, remaining_ns

from . import answering, asking
from .asking import BEGIN_LOOK_S, READ_BYTES, READ_COUNT, Calls, PendingCall
from .relay import Relay

if TYPE_CHECKING:
    from towpath.sync.client import LocalClient


class LocalCaller:
    """One client's way to one service.

    Args:
        principal: for whom a gateway calls; empty for the session's own.
    """

    def __init__(self, client: LocalClient, name: str, principal: str = "") -> None:
        self.name = name
        self._client = client
        deadline = deadline_ns(CALL_TIMEOUT_S)
        protocol = client._protocol
        info = client._call(calls.channel_info(name), deadline)
        begin = functools.partial(
            protocol.new_reader,
            name,
            "",
            wants_doorbell=False,
            role=frame_pb2.READER_ROLE_REPLIES,
        )
        self._replies = client._attach(begin, protocol.forget_reader, deadline)
        try:
            place = calls.SourcePlace(frame_pb2.SOURCE_ROLE_CALLER, self._replies.id, 0, principal)
            source = functools.partial(protocol.new_source, info, "", place=place)
            state = client._attach(source, protocol.forget_source, deadline)
        except BaseException:
            with client._sending():
                protocol.forget_reader(self._replies, ConnectionLost("it was never attached"))
            raise
        self._requests = LocalPublisher(client, state)
        self._source = state
        self._try_publish = state.writer.try_publish
        self._receive = self._replies.reader.receive
        self._lock = threading.Lock()
        self._calls = Calls(state, self._replies)
        self._relay = Relay(self._read)
        # Who comes and who goes is told by the core, in the client's thread: whoever reads looks again then.
        state.wake = self._wake

    def _wake(self) -> None:
        self._source.writer.notify()
        self._replies.reader.notify()

    @property
    def ended(self) -> TowpathError | None:
        """Why it is of no use any more; None while it is."""
        return self._calls.ended

    def close(self) -> None:
        """Leave the service: the servers learn it, and cancel what was asked. More than once is fine."""
        why = ConnectionLost("the client was closed", hint="")
        with self._client._sending():
            self._client._protocol.forget_source(self._source, why)
            self._client._protocol.forget_reader(self._replies, why)

    # ---- calling ----

    def call(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Message:
        """See :meth:`towpath.Client.call`."""
        call = PendingCall(deadline_ns=deadline, is_idempotent=is_idempotent, is_stream=False)
        raw = answering.headers_bytes(headers)
        while True:
            self._send(call, payload, raw, wait=wait)
            self._wait(call)
            reply = call.take()
            if reply is not None:
                return reply
            if not call.may_try_again:
                raise call.error or asking.lost(self.name)

    def call_stream(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Iterator[Message]:
        """See :meth:`towpath.Client.call_stream`."""
        call = PendingCall(deadline_ns=deadline, is_idempotent=is_idempotent, is_stream=True)
        raw = answering.headers_bytes(headers)
        self._send(call, payload, raw, wait=wait)
        return self._stream(call, payload, raw, wait=wait)

    def _stream(self, call: PendingCall, payload: Buffer, raw: bytes, *, wait: bool) -> Iterator[Message]:
        try:
            while True:
                self._wait(call)
                while (part := call.take()) is not None:
                    with self._lock:
                        grant = self._calls.grant(call)
                    if grant is not None:
                        self._requests.publish(b"", headers_raw=grant, timeout=_seconds(call.deadline_ns))
                    yield part
                if not call.is_over:
                    continue
                if not call.may_try_again:
                    break
                self._send(call, payload, raw, wait=wait)
        finally:
            self._withdraw(call)
        if call.error is not None:
            raise call.error

    def _send(self, call: PendingCall, payload: Buffer, raw: bytes, *, wait: bool) -> None:
        """Send a call to a server."""
        while True:
            with self._lock:
                server = self._calls.choose()
                if server is not None:
                    headers_raw = self._calls.begin(call, server) + raw
            if server is not None:
                break
            self._find_server(call, wait=wait)
        try:
            if self._replies.ended is not None:  # nobody would look again
                raise self._replies.ended.again()
            if self._try_publish(payload, headers_raw) <= 0:
                self._requests._publish_waiting(payload, headers_raw, call.deadline_ns)
            if self._source.writer.readers_changed:
                self._requests._meet_readers()
        except Timeout:
            with self._lock:
                self._calls.end(call)
            raise asking.too_late(self.name) from None
        except (ValueError, RuntimeError) as error:
            with self._lock:
                self._calls.end(call)
            raise self._source.refusal(error) from None
        except BaseException:
            with self._lock:
                self._calls.end(call)
            raise

    def _find_server(self, call: PendingCall, *, wait: bool) -> None:
        """Nobody can be asked: see whether somebody has come, and wait for that when it is wanted, or while
        the core is so young that servers of the one before may still come back.

        Raises:
            NoServer: nobody serves.
            Timeout: nobody has come in time.
        """
        if self.ended is not None:
            raise self.ended.again()
        limit = call.deadline_ns if call.deadline_ns is not None else far_ns()
        self._requests._fetch_readers(limit)
        state = self._calls
        if state.choose() is not None:
            return
        until = limit if wait else min(limit, self._client._protocol.resuming_until_ns)
        if not state.is_awaiting_server and not wait and asking.is_past(until):
            raise asking.no_server(self.name)
        if state.is_awaiting_server:  # it is there, and has not begun to read; nothing tells when it does
            time.sleep(min(BEGIN_LOOK_S, remaining_ns(limit) / 1e9))
        else:
            self._relay.wait(call, lambda: bool(state.is_awaiting_server or state.ended), until)
        if asking.is_past(limit):
            raise asking.too_late(self.name)

    def _wait(self, call: PendingCall) -> None:
        """Wait until a call has news.

        Raises:
            Timeout: its deadline has passed; the server is told.
        """
        has_news = False
        try:
            has_news = self._relay.wait(call, lambda: call.has_news, call.deadline_ns)
        finally:
            if not has_news:
                self._withdraw(call)
        if not has_news:
            raise asking.too_late(self.name)

    def _withdraw(self, call: PendingCall) -> None:
        """Tell the server that nobody waits, if there is room to; it has the deadline, too."""
        with self._lock:
            raw = self._calls.withdraw(call)
        if raw is not None:
            with contextlib.suppress(ValueError, RuntimeError):
                if self._try_publish(b"", raw) < 0:
                    self._requests._meet_readers()
                    self._try_publish(b"", raw)

    # ---- reading ----

    def _read(self, deadline: int | None) -> None:
        """Read once; see :class:`Relay`."""
        state = self._replies
        try:
            messages = self._receive(READ_COUNT, READ_BYTES, remaining_ns(deadline))
        except ValueError:  # it was closed
            messages = []
        if messages:
            with self._lock:
                told = self._calls.take_in(messages)
        else:
            with self._client._sending():
                self._client._protocol.tend(state)
            with self._lock:
                told = self._calls.find_lost()
                if state.troubles:
                    told.extend(self._meet_troubles())
            self._relay.wake_all()  # a server may have come, for those who wait for one
        for call in told:
            self._relay.wake(call)

    def _meet_troubles(self) -> list[PendingCall]:
        """A server's answers cannot be had: it is not known whose, so no call goes on."""
        error = self._replies.troubles.pop()
        self._replies.troubles.clear()
        told = list(self._calls.pending.values())
        for call in told:
            self._calls.end(call, error.again())
        return told


def _seconds(deadline: int | None) -> float | None:
    left = remaining_ns(deadline)
    return None if left == FOREVER else left / 1e9


class Callers:
    """The services that one client has called; each is left when the client is closed."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._callers: dict[tuple[str, str], LocalCaller] = {}
        self._opening = threading.Lock()

    def get(self, name: str, principal: str = "") -> LocalCaller:
        """Return the caller of a service, made when first asked for, and again when it has ended."""
        caller = self._callers.get((name, principal))
        if caller is None or caller.ended is not None:
            with self._opening:
                caller = self._callers.get((name, principal))
                if caller is None or caller.ended is not None:
                    if caller is not None:
                        caller.close()
                    caller = self._client._persist(lambda: LocalCaller(self._client, name, principal))
                    self._callers[name, principal] = caller
        return caller
