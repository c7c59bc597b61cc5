"""The spans themselves; imported only where the program traces."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from towpath import convert, model
from towpath._message import Message
from towpath._version import __version__
from towpath.aio.api import AsyncPublisher
from towpath.errors import InvalidArgument, TowpathError
from towpath.loans import Loan, lent
from towpath.sync.api import Publisher
from towpath.waiting import Buffer

_W3C: Final = TraceContextTextMapPropagator()


def _tracer() -> trace.Tracer:
    return trace.get_tracer("towpath", __version__)


def _producer_span(channel: str, attributes: Mapping[str, int]) -> AbstractContextManager[Span]:
    return _tracer().start_as_current_span(
        f"publish {channel}",
        kind=SpanKind.PRODUCER,
        attributes={
            "messaging.system": "towpath",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": channel,
            **attributes,
        },
    )


def consumer_span(message: Message) -> AbstractContextManager[Span]:
    """What ``span_for`` gives where the program traces."""
    sent = _sent_in(message)
    published = trace.get_current_span(sent).get_span_context()
    is_inside = trace.get_current_span().get_span_context().is_valid
    return _tracer().start_as_current_span(
        f"process {message.channel}",
        context=None if is_inside else sent,
        kind=SpanKind.CONSUMER,
        links=[Link(published)] if published.is_valid else None,
        attributes={
            "messaging.system": "towpath",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": message.channel,
            "messaging.message.id": f"{message.source}:{message.seq}",
            "messaging.message.body.size": len(message.payload),
        },
    )


def _sent_in(message: Message) -> Context:
    """The trace context that a message brings; an empty one if it brings none that can be read."""
    try:
        headers = message.headers
    except TowpathError:
        return Context()
    return _W3C.extract({"traceparent": headers.traceparent, "tracestate": headers.tracestate}, Context())


# ---- the context of the current span, into headers ---------------------------------------------------------


def _current() -> dict[str, str]:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier


def _with(carrier: Mapping[str, str], headers: model.Headers | None) -> model.Headers | None:
    """The headers with the context in them, unless they have one or there is none."""
    headers = headers or model.NO_HEADERS
    if headers.traceparent or "traceparent" not in carrier:
        return headers
    return replace(headers, traceparent=carrier["traceparent"], tracestate=carrier.get("tracestate", ""))


def _one(headers: model.Headers | None, headers_raw: bytes | None) -> model.Headers | None:
    return _with(_current(), convert.decode_headers(headers_raw) if headers_raw else headers)


def _column(
    count: int,
    headers: model.Headers | Sequence[model.Headers | None] | None,
    headers_raw: bytes | Sequence[bytes] | None,
) -> model.Headers | list[model.Headers | None] | None:
    carrier = _current()
    if isinstance(headers_raw, bytes):
        return _with(carrier, convert.decode_headers(headers_raw))
    if headers_raw is not None:
        headers = [convert.decode_headers(raw) for raw in headers_raw]
    if headers is None or isinstance(headers, model.Headers):
        return _with(carrier, headers)
    if len(headers) != count:
        raise InvalidArgument(f"{len(headers)} headers for {count} payloads")
    return [_with(carrier, each) for each in headers]


# ---- publishers --------------------------------------------------------------------------------------------


def _size(data: Buffer) -> dict[str, int]:
    return {"messaging.message.body.size": memoryview(data).nbytes}


def _loaned(loan: Loan[Any]) -> dict[str, int]:
    return {"messaging.message.body.size": loan.nbytes}


def _count(payloads: Sequence[Buffer]) -> dict[str, int]:
    return {"messaging.batch.message_count": len(payloads)}


class TracedPublisher(Publisher):
    """A publisher whose messages say in which span they were published."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.source = publisher.source
        self.channel = publisher.channel
        self.message_bytes_max = publisher.message_bytes_max

    @property
    def is_ended(self) -> bool:
        return self._publisher.is_ended

    def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        with _producer_span(self.channel, _size(data)):
            seq = self._publisher.publish(
                data, headers=_one(headers, headers_raw), timeout=timeout, confirm=confirm
            )
        self.source = self._publisher.source
        return seq

    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """As documented; one span for the batch."""
        with _producer_span(self.channel, _count(payloads)):
            column = _column(len(payloads), headers, headers_raw)
            seq = self._publisher.publish_many(payloads, headers=column, timeout=timeout, confirm=confirm)
        self.source = self._publisher.source
        return seq

    def flush(self, timeout: float | None = None) -> None:
        self._publisher.flush(timeout)

    def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[int]:
        loan: Any = self._publisher.loan(nbytes, timeout=timeout)
        loan.publisher = self
        return loan  # type: ignore[no-any-return]

    def publish_loan(
        self,
        loan: Loan[int],
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        with _producer_span(self.channel, _loaned(loan)), lent(loan, self, self._publisher):
            seq = self._publisher.publish_loan(
                loan, headers=_one(headers, headers_raw), timeout=timeout, confirm=confirm
            )
        self.source = self._publisher.source
        return seq

    def wait_drained(self, timeout: float | None = None) -> bool:
        return self._publisher.wait_drained(timeout)

    def close(self) -> None:
        self._publisher.close()


class TracedAsyncPublisher(AsyncPublisher):
    """The same for asyncio."""

    def __init__(self, publisher: AsyncPublisher) -> None:
        self._publisher = publisher
        self.source = publisher.source
        self.channel = publisher.channel
        self.message_bytes_max = publisher.message_bytes_max

    @property
    def is_ended(self) -> bool:
        return self._publisher.is_ended

    async def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        with _producer_span(self.channel, _size(data)):
            seq = await self._publisher.publish(
                data, headers=_one(headers, headers_raw), timeout=timeout, confirm=confirm
            )
        self.source = self._publisher.source
        return seq

    async def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        with _producer_span(self.channel, _count(payloads)):
            column = _column(len(payloads), headers, headers_raw)
            seq = await self._publisher.publish_many(
                payloads, headers=column, timeout=timeout, confirm=confirm
            )
        self.source = self._publisher.source
        return seq

    async def flush(self, timeout: float | None = None) -> None:
        await self._publisher.flush(timeout)

    async def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[Awaitable[int]]:
        loan: Any = await self._publisher.loan(nbytes, timeout=timeout)
        loan.publisher = self
        return loan  # type: ignore[no-any-return]

    async def publish_loan(
        self,
        loan: Loan[Awaitable[int]],
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        with _producer_span(self.channel, _loaned(loan)), lent(loan, self, self._publisher):
            seq = await self._publisher.publish_loan(
                loan, headers=_one(headers, headers_raw), timeout=timeout, confirm=confirm
            )
        self.source = self._publisher.source
        return seq

    async def wait_drained(self, timeout: float | None = None) -> bool:
        return await self._publisher.wait_drained(timeout)

    async def close(self) -> None:
        await self._publisher.close()
