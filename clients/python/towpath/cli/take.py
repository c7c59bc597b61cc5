"""``towpath take``: messages out of a queue, each to a program that is run for it, or to standard output.

Theory of operation
    With a command, it is run once for each message (``running``): the payload on its standard input, what
    else is known in ``TOWPATH_...`` variables, its output to ours. Exit status 0 acknowledges the message, 65
    (EX_DATAERR) rejects it, so that it becomes a dead letter, and any other gives it back, to be tried again
    after ``--delay``. While the program runs the delivery's deadline is extended. Without a command each
    message is printed, and acknowledged when it is written.

    What is not settled when this process ends, however it ends, goes back into the queue at once, and the
    programs that run are ended: who gets a message next does not work beside whoever had it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final

from towpath.cli import report, running, streams
from towpath.cli.connection import connect
from towpath.errors import DeliveryLost, Timeout, TowpathError
from towpath.queues import REASON_BYTES_MAX

if TYPE_CHECKING:
    import towpath

EX_DATAERR: Final = 65
OUTPUT_BYTES_MAX: Final = 16 << 20
PRINTED_AHEAD: Final = 256
"""Messages that are printed at once, and acknowledged together."""
LEAVE_S: Final = 2
"""How long, after SIGTERM, a batch may still be written to whoever does not read it."""


def run(arguments: Namespace) -> int:
    """Take messages until there were enough, or nothing came for too long, or somebody stops it."""
    if arguments.command:
        running.check_command(arguments.command)
    work = _run_programs if arguments.command else _print
    prefetch = arguments.concurrency if arguments.command else PRINTED_AHEAD
    if arguments.count is not None:
        prefetch = min(prefetch, arguments.count)
    with connect(arguments) as client, client.consume(arguments.channel, prefetch=prefetch) as consumer:
        streams.leave_when_output_closes()
        work(arguments, consumer)
        consumer.flush()
    return 0


class _Leaving:
    """Keeps a signal from coming between the printing of messages and their acknowledgement."""

    def __init__(self) -> None:
        self._is_busy = False
        self._asked: signal.Signals | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._is_busy and self._asked is None:
            self._asked = signal.Signals(number)
            signal.alarm(LEAVE_S)
            return
        raise streams.Asked(self._asked or signal.Signals(number))

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """What is begun in here is brought to its end first.

        Raises:
            Asked: at the end, if a signal came; or in between, when it came again or ``LEAVE_S`` are over.
        """
        self._is_busy = True
        yield
        self._is_busy = False
        if self._asked is not None:
            signal.alarm(0)
            raise streams.Asked(self._asked)


def _print(arguments: Namespace, consumer: towpath.Consumer) -> None:
    leaving = _Leaving()
    output = streams.Output()
    taken = 0
    while arguments.count is None or taken < arguments.count:
        wanted = PRINTED_AHEAD if arguments.count is None else min(PRINTED_AHEAD, arguments.count - taken)
        deliveries = consumer.receive_many(wanted, timeout=arguments.timeout)
        if not deliveries:
            raise Timeout(f"no message in {arguments.channel} for {arguments.timeout:g} s", hint="")
        with leaving.later():
            output.write([_form(arguments, delivery) for delivery in deliveries])
            output.flush()
            with _tell_of_lost(arguments):
                consumer.ack(deliveries)
        taken += len(deliveries)


def _form(arguments: Namespace, delivery: towpath.Delivery) -> bytes:
    return report.delivery_json_line(delivery) if arguments.json else delivery.payload + b"\n"


# ---- a program for each


class _Left:
    """How many messages are still wanted, for all workers; and what ended one of them."""

    def __init__(self, count: int | None) -> None:
        self._count = count
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def take_one(self) -> bool:
        with self._lock:
            if self._count is None:
                return self.error is None
            self._count -= 1
            return self._count >= 0 and self.error is None


def _run_programs(arguments: Namespace, consumer: towpath.Consumer) -> None:
    left = _Left(arguments.count)
    printing = threading.Lock()

    def work() -> None:
        try:
            while left.take_one():
                _handle(arguments, consumer, consumer.receive(timeout=arguments.timeout), guard, printing)
        except BaseException as error:  # raised by the main thread, when all the others have ended
            left.error = left.error or error

    workers = [threading.Thread(target=work, daemon=True) for _ in range(arguments.concurrency)]
    with running.Guard() as guard:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if left.error is not None:
        raise left.error


def _handle(
    arguments: Namespace,
    consumer: towpath.Consumer,
    delivery: towpath.Delivery,
    guard: running.Guard,
    printing: threading.Lock,
) -> None:
    """Run the program for one message, and settle that. ``printing``: one at a time."""
    outcome = running.run(
        arguments.command,
        delivery.payload,
        guard=guard,
        environment=_environment(delivery),
        output_bytes_max=OUTPUT_BYTES_MAX,
        is_cancelled=_Keeping(consumer, delivery).is_lost,
    )
    if outcome.output:
        with printing:
            output = streams.Output()
            output.write([outcome.output])
            output.flush()
    failure = outcome.failure(arguments.command[0])
    if failure and not arguments.quiet:
        streams.warn(f"{failure} (message {delivery.seq}, attempt {delivery.attempt})")
    with _tell_of_lost(arguments):
        if not failure:
            delivery.ack()
        elif outcome.status == EX_DATAERR and not outcome.is_cut:
            delivery.nack(reject=True, reason=_shortened(failure))
        else:
            delivery.nack(delay=arguments.delay, reason=_shortened(failure))


def _shortened(failure: str) -> str:
    return failure.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


@contextlib.contextmanager
def _tell_of_lost(arguments: Namespace) -> Iterator[None]:
    """What went back while it was worked on, because the daemon was started again, comes again: go on."""
    try:
        yield
    except DeliveryLost as error:
        if not arguments.quiet:
            streams.warn(str(error))


class _Keeping:
    """Extends a delivery's deadline while its program runs."""

    def __init__(self, consumer: towpath.Consumer, delivery: towpath.Delivery) -> None:
        self._delivery = delivery
        self._every_s = consumer.ack_ms / 3_000
        self._extended_at = time.monotonic()

    def is_lost(self) -> bool:
        """Asked again and again; whether the message went back, so that its program works in vain."""
        if time.monotonic() - self._extended_at >= self._every_s:
            self._extended_at = time.monotonic()
            try:
                self._delivery.extend()
            except TowpathError:
                return True
        return False


def _environment(delivery: towpath.Delivery) -> dict[str, str]:
    headers = delivery.headers
    told = {
        "TOWPATH_CHANNEL": delivery.channel,
        "TOWPATH_SEQ": str(delivery.seq),
        "TOWPATH_ATTEMPT": str(delivery.attempt),
        "TOWPATH_CONTENT_TYPE": headers.content_type,
        "TOWPATH_KEY": os.fsdecode(headers.key),
    }
    return {name: value for name, value in told.items() if "\0" not in value}
