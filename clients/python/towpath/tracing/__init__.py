"""OpenTelemetry: where a program traces, its messages join its traces. Nothing is to be switched on.

Theory of operation
    A program that traces has imported ``opentelemetry.trace`` and set a tracer provider (or was started by
    ``opentelemetry-instrument``, which does) before it makes its publishers. ``client.publisher`` looks for
    that once: if it is so, the publisher that it gives wraps each publish in a producer span and puts that
    span's W3C trace context into the message's headers; otherwise it gives the bare publisher, and tracing
    costs nothing from then on. OpenTelemetry is never imported by Towpath where the program has not.

    Headers travel with the message over every carrier that has headers, so whoever receives it can go on
    with the trace: :func:`span_for`. What a message has of trace context when it is published (a relay's,
    say) is never replaced.

    Names and attributes follow OpenTelemetry's semantic conventions for messaging.

Not here: exporting, sampling, metrics; mechanisms without headers (FIFO, pipe), where a trace ends.
Sources: https://www.w3.org/TR/trace-context/, https://opentelemetry.io/docs/specs/semconv/messaging/
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from towpath._message import Message
    from towpath.aio.api import AsyncPublisher
    from towpath.sync.api import Publisher


def is_configured() -> bool:
    """Whether this program traces: it has imported OpenTelemetry and set a tracer provider."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None or not hasattr(api, "get_tracer_provider"):
        return False
    return not isinstance(api.get_tracer_provider(), (api.ProxyTracerProvider, api.NoOpTracerProvider))


def traced(publisher: Publisher) -> Publisher:
    """Give a publisher that traces where the program does, and the same publisher elsewhere."""
    if not is_configured():
        return publisher
    from towpath.tracing.spans import TracedPublisher

    return TracedPublisher(publisher)


def traced_async(publisher: AsyncPublisher) -> AsyncPublisher:
    """As :func:`traced`, for asyncio."""
    if not is_configured():
        return publisher
    from towpath.tracing.spans import TracedAsyncPublisher

    return TracedAsyncPublisher(publisher)


def span_for(message: Message) -> AbstractContextManager[Any]:
    """Do what a message asks for within a consumer span that belongs to the message's trace.

    ::

        for message in subscription:
            with towpath.tracing.span_for(message):
                handle(message)

    The span is linked to the one in which the message was published. It is that one's child, too, unless a
    span is current already: then it is the child of that.

    Args:
        message: as received.

    Returns:
        A context manager, for sync and asyncio code, that gives the ``opentelemetry.trace.Span``; where the
        program does not trace, one that does nothing and gives None. An exception that leaves it is recorded
        in the span.
    """
    if not is_configured():
        return nullcontext()
    from towpath.tracing.spans import consumer_span

    return consumer_span(message)
