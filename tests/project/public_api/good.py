"""How programs use the library, with the type of everything that comes back. Checked by mypy, never run."""

from __future__ import annotations

from typing import assert_type

import towpath
from towpath import Err, Ok, Result, aio, errors


def synchronous() -> None:
    with towpath.connect() as client:
        assert_type(client, towpath.Client)
        assert_type(client.declare("a.b", kind="topic", ring_bytes=65536), towpath.ChannelInfo)
        assert_type(client.channels(), list[towpath.ChannelInfo])
        assert_type(client.status(), towpath.Status)
        assert_type(client.bind("a.b", "fifo:/tmp/x", direction="in"), towpath.BindingInfo)
        assert_type(client.status().gateways[0].endpoints["sub"], str)
        channel = client.channel("a.b")
        assert_type(channel, towpath.Channel)
        assert_type(channel.publish(b"x", headers=towpath.Headers(priority=3)), int)
        assert_type(channel.publish_many([b"x", bytearray(b"y"), memoryview(b"z")]), int)
        with client.publisher("a.b") as publisher, client.subscribe("a.b") as subscription:
            assert_type(publisher, towpath.Publisher)
            assert_type(publisher.publish(b"x", timeout=1.5), int)
            message = subscription.receive(timeout=1)
            assert_type(message, towpath.Message)
            assert_type(message.payload, bytes)
            assert_type(message.seq, int)
            assert_type(message.time_ns, int)
            assert_type(message.headers, towpath.Headers)
            assert_type(message.headers.user["a"], str)
            assert_type(subscription.receive_many(10), list[towpath.Message])
            for each in subscription:
                assert_type(each, towpath.Message)
        for event in client.watch():
            assert_type(event, towpath.WatchEvent)


async def asynchronous() -> None:
    async with await aio.connect() as client:
        assert_type(client, aio.AsyncClient)
        assert_type(await client.declare("a.b"), towpath.ChannelInfo)
        channel = client.channel("a.b")
        assert_type(await channel.publish(b"x"), int)
        subscription = await client.subscribe("a.b")
        assert_type(await subscription.receive(timeout=1), towpath.Message)
        async for message in subscription:
            assert_type(message.payload, bytes)


def errors_are_typed(error: towpath.TowpathError) -> None:
    assert_type(error.code, towpath.Code)
    assert_type(error.row.exit_code, int)
    assert_type(errors.error_from_code(40, "late"), towpath.TowpathError)


def errors_as_values(client: towpath.Client) -> None:
    assert_type(client.try_declare("a.b", kind="queue"), Result[towpath.ChannelInfo])
    assert_type(client.channel("a.b").try_publish(b"x"), Result[int])
    match client.try_consume("a.b", prefetch=10):
        case Ok(consumer):
            assert_type(consumer, towpath.Consumer)
            match consumer.try_receive(timeout=1):
                case Ok(delivery):
                    assert_type(delivery, towpath.Delivery)
                case Err(error):
                    assert_type(error, towpath.TowpathError)
        case Err(error):
            assert_type(error.hint, str)
    outcome = client.try_subscribe("a.b")
    if isinstance(outcome, Ok):
        assert_type(outcome.value.try_receive_many(), Result[list[towpath.Message]])


def queues(client: towpath.Client) -> None:
    with client.consume("jobs", prefetch=64) as consumer:
        assert_type(consumer, towpath.Consumer)
        for delivery in consumer:
            assert_type(delivery.payload, bytes)
            assert_type(delivery.attempt, int)
            assert_type(delivery.headers, towpath.Headers)
            delivery.extend(10)
            delivery.nack(delay=1.5, reason="later")
        consumer.ack(consumer.receive_many(100))
        consumer.flush(timeout=1)
        with client.transaction() as transaction:
            transaction.ack(consumer.receive())
            transaction.publish("done", b"x", headers=towpath.Headers(message_id="1"))
            transaction.set("total", b"1", if_version=0)
        assert_type(transaction.result, towpath.Committed | None)


async def queues_with_asyncio() -> None:
    async with await aio.connect() as client, await client.consume("jobs") as consumer:
        async for delivery in consumer:
            delivery.ack()
        await consumer.flush()
        match await consumer.try_receive(timeout=0):
            case Ok(delivery):
                assert_type(delivery, towpath.Delivery)
            case Err(error):
                assert_type(error.code, towpath.Code)
        async with client.transaction() as transaction:
            transaction.publish("done", b"x")
        assert_type(await transaction.try_commit(), Result[towpath.Committed])


def services_and_states(client: towpath.Client) -> None:
    assert_type(client.call("a.b", b"x", timeout=1, idempotent=True), towpath.Message)
    assert_type(client.try_call("a.b"), Result[towpath.Message])
    for part in client.call_stream("a.b", b"x"):
        assert_type(part.payload, bytes)
    with client.serve("a.b", concurrency=4) as server:
        for request in server:
            assert_type(request, towpath.Request)
            assert_type(request.payload, bytes)
            assert_type(request.time_left, float | None)
            request.reply(b"y", headers=towpath.Headers(content_type="text/plain"))
        server.run(lambda request: request.payload)
    state = client.state("a.c")
    assert_type(state, towpath.State)
    assert_type(state.get(), towpath.Value | None)
    assert_type(state.try_get(), Result[towpath.Value | None])
    assert_type(state.set(b"x", if_version=3), int)
    assert_type(state.update(lambda value: value.payload if value else b""), int)
    with state.watch(after_version=3) as watch:
        assert_type(watch.receive(timeout=1), towpath.Value)


async def services_and_states_with_asyncio(client: aio.AsyncClient) -> None:
    assert_type(await client.call("a.b", b"x"), towpath.Message)
    assert_type(await client.try_call("a.b"), Result[towpath.Message])
    async for part in client.call_stream("a.b"):
        assert_type(part, towpath.Message)
    async with await client.serve("a.b") as server:
        async for request in server:
            assert_type(request, aio.AsyncRequest)
            await request.reply(b"y")
    state = client.state("a.c")
    assert_type(await state.get(), towpath.Value | None)
    async for value in state.watch():
        assert_type(value.version, int)


def guarded(client: towpath.Client) -> None:
    assert_type(client.guarded("a"), towpath.Guarded[bytes])
    assert_type(client.guarded("a", int, initial=0), towpath.Guarded[int])
    assert_type(client.guarded("a", int), towpath.Guarded[int | None])
    with client.guarded("a", int, initial=0) as guard:
        assert_type(guard, towpath.WriteGuard[int])
        guard.value += 1
    with client.guarded("a", int, initial=0).read(timeout=1) as reader:
        assert_type(reader.value, int)


async def guarded_by_tasks(client: aio.AsyncClient) -> None:
    async with client.guarded("a", int, initial=0) as guard:
        assert_type(guard.value, int)
    assert_type(await client.guarded("a").write(), aio.AsyncWriteGuard[bytes])
