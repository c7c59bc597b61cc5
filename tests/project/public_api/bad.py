"""Misuse that a type checker must point out, one per line marked `# wrong`. Checked by mypy, never run."""

from __future__ import annotations

import towpath


def misuse(client: towpath.Client, subscription: towpath.Subscription) -> None:
    client.declare("a.b", kind="stream")  # wrong
    client.declare("a.b", overflow=1)  # wrong
    client.bind("a.b", "fifo:/tmp/x")  # wrong
    client.bind("a.b", "fifo:/tmp/x", direction="sideways")  # wrong
    client.channel("a.b").publish("text")  # wrong
    client.channel("a.b").publish(b"x", headers={"a": "b"})  # wrong
    client.channel("a.b").publish_many(b"x")  # wrong
    subscription.receive("1")  # wrong
    text: str = subscription.receive().payload  # wrong
    subscription.receive().payload = b"x"  # wrong
    towpath.Headers(priority="high")  # wrong
    print(text, client.no_such_method())  # wrong


def values_that_nobody_looked_for(client: towpath.Client, consumer: towpath.Consumer) -> None:
    client.try_consume("a.b").receive()  # wrong
    consumer.try_receive(timeout=1).value.ack()  # wrong
    consumer.try_receive("1")  # wrong
    number: int = client.channel("a.b").try_publish(b"x")  # wrong
    client.transaction().publish("a.b", "text")  # wrong
    consumer.ack(b"x")  # wrong
    print(number)


def services_and_states(client: towpath.Client, request: towpath.Request) -> None:
    client.call("a.b", "text")  # wrong
    client.call("a.b", b"x", 5)  # wrong
    print(client.try_call("a.b").payload)  # wrong
    request.reply("text")  # wrong
    request.payload.no_such_thing()  # wrong
    print(client.state("a.b").get().payload)  # wrong
    client.state("a.b").set("text")  # wrong
    client.state("a.b").update(lambda value: value.payload)  # wrong
    client.state("a.b").look().version = 3  # wrong


def guarded(client: towpath.Client) -> None:
    with client.guarded("a", int, initial=0) as guard:
        guard.value = "text"  # wrong
    with client.guarded("a", int, initial=0).read() as reader:
        reader.value = 1  # wrong
    client.guarded("a", int, initial="text").write().value.upper()  # wrong
    client.declare_lock_space("a", policy="luck")  # wrong
