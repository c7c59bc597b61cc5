"""iceoryx2 (shared memory, polled) and zenoh (peers over loopback) through their Python bindings."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Iterator
from typing import Any, Final

from tests.bench.mechanisms.link import Blocking, Receive, Send
from tests.bench.site import free_port

SAMPLES: Final = 64
POLLS: Final = 200
"""Looks at an empty queue before the processor is offered to others."""
ZENOH_QUEUE: Final = 256


class Iceoryx(Blocking):
    """iceoryx2: loan, copy in, send; the receiver polls and copies out.

    It never drops (no overflow, ``RetryUntilDelivered``) and busy-polls, the fastest that it offers; after
    ``POLLS`` looks in vain it yields the processor, without which it would not move on one core.
    """

    name = "iceoryx2"
    family = "peers"
    module = "iceoryx2"
    needs_probe = True  # without, the first messages were now and then lost

    def make(self) -> None:
        self.end = bytes(self.load.size_bytes)
        self._samples = max(2, min(SAMPLES, (16 << 20) // self.load.size_bytes))
        self._service = f"towpath-bench-{os.getpid()}-{self.word}"

    def _open(self) -> tuple[Any, Any]:
        import iceoryx2

        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        node = (
            iceoryx2.NodeBuilder.new()
            .signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
            .create(iceoryx2.ServiceType.Ipc)
        )
        service = (
            node.service_builder(iceoryx2.ServiceName.new(self._service))
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(self._samples)
            .max_subscribers(max(2, self.load.readers))
            .open_or_create()
        )
        return node, service

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        import iceoryx2

        node, service = self._open()
        publisher = (
            service.publisher_builder()
            .initial_max_slice_len(self.load.size_bytes)
            .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        size, move, loan = self.load.size_bytes, ctypes.memmove, publisher.loan_slice_uninit

        def send(payload: bytes) -> None:
            sample = loan(size)
            move(sample.payload_ptr, payload, size)
            sample.assume_init().send()

        yield send
        publisher.delete()
        del service, node

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        node, service = self._open()
        subscriber = service.subscriber_builder().create()
        take, size, copy = subscriber.receive, self.load.size_bytes, ctypes.string_at

        def receive() -> bytes:
            polls = 0
            while (sample := take()) is None:
                polls += 1
                if polls % POLLS == 0:
                    os.sched_yield()
            payload = copy(sample.payload_ptr, size)
            sample.delete()
            return payload

        yield receive
        subscriber.delete()
        del service, node


class Zenoh(Blocking):
    """zenoh, two peers over loopback TCP; congestion control *block* and a bounded FIFO at the receiver."""

    name = "zenoh"
    family = "peers"
    module = "zenoh"
    needs_probe = True

    def make(self) -> None:
        self._port = free_port()

    def _session(self, kind: str) -> Any:
        import zenoh

        config = zenoh.Config()
        config.insert_json5("mode", '"peer"')
        config.insert_json5("scouting/multicast/enabled", "false")
        config.insert_json5("scouting/gossip/enabled", "false")
        config.insert_json5("listen/endpoints", "[]")
        config.insert_json5("connect/endpoints", "[]")
        config.insert_json5(f"{kind}/endpoints", json.dumps([f"tcp/127.0.0.1:{self._port}"]))
        return zenoh.open(config)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        import zenoh

        with self._session("listen") as session:
            publisher = session.declare_publisher(
                self.word,
                congestion_control=zenoh.CongestionControl.BLOCK,
                reliability=zenoh.Reliability.RELIABLE,
            )
            yield publisher.put
            publisher.undeclare()

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        import zenoh

        with self._session("connect") as session:
            subscriber = session.declare_subscriber(self.word, zenoh.handlers.FifoChannel(ZENOH_QUEUE))
            receive = subscriber.recv
            yield lambda: receive().payload.to_bytes()
            subscriber.undeclare()


MECHANISMS: Final = (Iceoryx, Zenoh)
