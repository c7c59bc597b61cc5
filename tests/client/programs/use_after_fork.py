"""use_after_fork.py SOCKET CHANNEL: says what a forked child gets that uses its parent's handles."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import towpath
from tests.support.blocking import Blocking, BlockingClient

socket, name = sys.argv[1:]
clients: dict[str, Any] = {"sync": towpath.connect(socket), "aio": BlockingClient(socket)}
clients["sync"].declare(name)
publishers = {kind: client.publisher(name) for kind, client in clients.items()}
subscriptions = {kind: client.subscribe(name) for kind, client in clients.items()}
watches = {kind: client.watch() for kind, client in clients.items()}
queue = f"{name}.queue"
clients["sync"].declare(queue, kind="queue")
queue_publishers = {kind: client.publisher(queue) for kind, client in clients.items()}
consumers = {kind: client.consume(queue) for kind, client in clients.items()}


def inner(handle: Any) -> Any:
    """The asyncio handle itself: its loop's thread is not there in the child, and not needed."""
    return handle._inner if isinstance(handle, Blocking) else handle


def at_once(result: Any) -> None:
    """Run a coroutine to its first wait, which it must not come to."""
    if hasattr(result, "send"):
        try:
            result.send(None)
        except StopIteration:
            pass
        else:
            result.close()
            raise AssertionError("it waits")


def outcome(use: Callable[[], object]) -> str:
    try:
        at_once(use())
    except Exception as error:
        return type(error).__name__
    return "nothing"


child = os.fork()
if child == 0:
    for kind in clients:
        client, publisher = inner(clients[kind]), inner(publishers[kind])
        subscription, watch = inner(subscriptions[kind]), inner(watches[kind])
        print(f"{kind} call:", outcome(client.status))
        print(f"{kind} publisher:", outcome(partial(client.publisher, name)))
        print(f"{kind} publish:", outcome(partial(publisher.publish, b"x")))
        print(f"{kind} receive:", outcome(subscription.receive))
        print(f"{kind} watch:", outcome(watch.receive))
        consumer, queue_publisher = inner(consumers[kind]), inner(queue_publishers[kind])
        print(f"{kind} consume:", outcome(partial(client.consume, queue)))
        print(f"{kind} take:", outcome(consumer.receive))
        print(f"{kind} settle:", outcome(partial(consumer.ack, [])))
        print(f"{kind} queue:", outcome(partial(queue_publisher.publish, b"x")))
        for handle in (consumer, queue_publisher, watch, subscription, publisher, client):
            at_once(handle.close())
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
for kind in clients:
    publishers[kind].publish(b"x")
    assert subscriptions[kind].receive(timeout=60).payload == b"x"
    queue_publishers[kind].publish(b"x")
    delivery = consumers[kind].receive(timeout=60)
    delivery.ack()
    consumers[kind].flush(timeout=60)
    clients[kind].status()
    consumers[kind].close()
print("parent: ok")
for client in clients.values():
    client.close()
