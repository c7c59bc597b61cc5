"""A program that traces, as its author would write it: prints its spans and received headers as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import towpath
from towpath.tracing import span_for

GIVEN = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
DEADLINE_S = 60.0


def described(span: ReadableSpan) -> dict[str, Any]:
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace": f"{span.context.trace_id:032x}",
        "span": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else "",
        "links": [f"{link.context.span_id:016x}" for link in span.links],
        "attributes": dict(span.attributes or {}),
        "status": span.status.status_code.name,
    }


def publish(client: towpath.Client, tracer: trace.Tracer) -> list[towpath.Message]:
    with client.subscribe("traced") as subscription, client.publisher("traced") as publisher:
        with tracer.start_as_current_span("the program's own"):
            publisher.publish(b"one")
        publisher.publish_many([b"two", b"three"], headers=towpath.Headers(content_type="text/plain"))
        publisher.publish(b"relayed", headers=towpath.Headers(traceparent=GIVEN))
        raw = publisher.publish(b"raw", headers_raw=b"\x0a\x01t")
        assert raw == 5 and publisher.wait_drained(0) is False
        received = [subscription.receive(timeout=DEADLINE_S) for _ in range(5)]
        with span_for(received[0]):
            pass
        with tracer.start_as_current_span("a span around"), span_for(received[1]):
            pass
        with contextlib.suppress(ValueError), span_for(received[2]):
            raise ValueError("that failed")
        with contextlib.suppress(towpath.errors.MessageTooLarge):
            publisher.publish(bytes(publisher.message_bytes_max + 1))
    return received


async def publish_async(socket: str) -> towpath.Message:
    async with await towpath.aio.connect(socket) as client, await client.subscribe("traced") as subscription:
        publisher = await client.publisher("traced")
        await publisher.publish_many([b"from a loop"])
        message = await subscription.receive(timeout=DEADLINE_S)
        with span_for(message):
            await asyncio.sleep(0)
        assert await publisher.wait_drained(DEADLINE_S)
        await publisher.close()
        return message


def publish_stored(client: towpath.Client) -> list[int]:
    """What is stored after each way to wait for that."""
    client.declare("stored", durable=True)
    stored: list[int] = []

    def look() -> None:
        contents = client.channel_info("stored").contents
        assert contents is not None
        stored.append(contents.next_seq - 1)

    with client.publisher("stored") as publisher:
        publisher.publish(b"1", confirm=True, timeout=DEADLINE_S)
        look()
        publisher.publish_many([b"2", b"3"], confirm=True, timeout=DEADLINE_S)
        look()
        publisher.publish_many([b"x"] * 500)
        publisher.flush(DEADLINE_S)
        look()
    return stored


async def publish_stored_async(socket: str) -> list[int]:
    stored: list[int] = []
    async with await towpath.aio.connect(socket) as client:

        async def look() -> None:
            contents = (await client.channel_info("stored")).contents
            assert contents is not None
            stored.append(contents.next_seq - 1)

        publisher = await client.publisher("stored")
        await publisher.publish(b"1", confirm=True, timeout=DEADLINE_S)
        await look()
        await publisher.publish_many([b"x"] * 500)
        await publisher.flush(DEADLINE_S)
        await look()
        await publisher.close()
    return stored


def main(socket: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with towpath.connect(socket) as client:
        client.declare("traced")
        received = publish(client, trace.get_tracer("program"))
    received.append(asyncio.run(publish_async(socket)))
    spans = [described(span) for span in exporter.get_finished_spans()]
    # Without the flags, which are the SDK's own affair.
    headers = [
        (each.payload.decode(), each.headers.traceparent[:-3], each.headers.content_type) for each in received
    ]
    with towpath.connect(socket) as client:
        stored = [publish_stored(client), asyncio.run(publish_stored_async(socket))]
    print(json.dumps({"spans": spans, "headers": headers, "stored": stored}))


main(sys.argv[1])
