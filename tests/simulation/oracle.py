"""What must hold, whatever happens: kept from what clients were told, and checked against what they see.

The oracle knows nothing of how queues work. It knows what was promised: what was acknowledged is kept, what
is settled does not come again, nobody has what somebody else has, and deadlines are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SLACK_S: Final = 1.0
"""How much later than its deadline a delivery may still be taken for in time: rounds take a while."""


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Holder:
    """Who has a message.

    Attributes:
        until_s: when the deadline passes.
        is_released: it was given back, or was asked to be.
    """

    consumer: int
    life: int
    attempt: int
    until_s: float
    is_released: bool = False
    was_orderly: bool = False


@dataclass
class Tracked:
    """One message.

    Attributes:
        state: ``asked``, ``kept`` (acknowledged to its publisher), ``refused``.
        is_settled: acknowledged to its consumer.
        asks: how many have asked to settle it, and were not told what became of that.
        is_gone: it may be gone for another reason: it was rejected, or dead.
    """

    payload: bytes
    queue: str
    durable: bool
    life: int
    state: str = "asked"
    is_settled: bool = False
    asks: int = 0
    is_gone: bool = False
    holder: Holder | None = None
    deliveries: int = 0


@dataclass
class Oracle:
    """All messages of queues."""

    max_deliveries: dict[str, int]
    messages: dict[bytes, Tracked] = field(default_factory=dict)
    full_until_s: float = 0.0

    def publishing(self, payload: bytes, queue: str, *, durable: bool, life: int) -> None:
        if payload not in self.messages:
            self.messages[payload] = Tracked(payload, queue, durable, life)
        elif self.messages[payload].state == "refused":
            self.messages[payload].state = "asked"

    def published(self, payload: bytes) -> None:
        self.messages[payload].state = "kept"

    def refused(self, payload: bytes) -> None:
        if self.messages[payload].state == "asked":
            self.messages[payload].state = "refused"

    def delivered(
        self, payload: bytes, queue: str, consumer: int, attempt: int, now_s: float, until_s: float, life: int
    ) -> None:
        tracked = self.messages.get(payload)
        if tracked is None or tracked.queue != queue:
            raise Violation(f"{payload!r} came out of {queue}, where nobody had put it")
        if tracked.state == "refused":
            raise Violation(f"{payload!r} was refused, and yet it is delivered")
        if tracked.is_settled:
            raise Violation(f"{payload!r} was settled, and comes again")
        if not tracked.durable and tracked.life != life:
            raise Violation(f"{payload!r} was in memory, and outlived the core")
        holder = tracked.holder
        if holder is not None and holder.life == life:
            if not holder.is_released and now_s < holder.until_s:
                raise Violation(
                    f"{payload!r} is with consumer {holder.consumer} until {holder.until_s:.3f}, and goes to"
                    f" {consumer} at {now_s:.3f}"
                )
            expected = holder.attempt + (0 if holder.was_orderly else 1)
            if attempt != expected and not (holder.was_orderly and attempt == holder.attempt + 1):
                raise Violation(f"{payload!r} comes for the {attempt}. time, not for the {expected}.")
        elif attempt > tracked.deliveries + 1:
            raise Violation(
                f"{payload!r} comes for the {attempt}. time, and was delivered {tracked.deliveries} times"
            )
        limit = self.max_deliveries.get(queue, 0)
        if limit and attempt > limit:
            raise Violation(f"{payload!r} comes for the {attempt}. time: max_deliveries is {limit}")
        tracked.deliveries += 1
        tracked.holder = Holder(consumer, life, attempt, until_s)

    def crossed(self, payload: bytes, consumer: int, attempt: int, life: int) -> None:
        """It went to somebody who was leaving."""
        tracked = self.messages[payload]
        tracked.deliveries += 1
        tracked.holder = Holder(consumer, life, attempt, 0.0, is_released=True, was_orderly=True)

    def settling(self, payload: bytes) -> None:
        self.messages[payload].asks += 1

    def settled(self, payload: bytes, asked_s: float, until_s: float) -> None:
        tracked = self.messages[payload]
        if asked_s > until_s + SLACK_S and asked_s > self.full_until_s + SLACK_S:
            raise Violation(f"{payload!r} could be settled {asked_s - until_s:.3f} s after its deadline")
        tracked.is_settled = True

    def not_settled(self, payload: bytes) -> None:
        self.messages[payload].asks -= 1

    def died(self, life: int) -> None:
        """The core has died: what was in memory is gone, what was with consumers is not any more."""
        for tracked in self.messages.values():
            if not tracked.durable and tracked.life == life:
                tracked.is_gone = True

    def finally_seen(self, drained: dict[str, list[bytes]]) -> None:
        """Compare with what all queues held at the end."""
        seen: dict[bytes, str] = {}
        for queue, payloads in drained.items():
            for payload in payloads:
                if payload in seen:
                    raise Violation(f"{payload!r} is in {seen[payload]} and in {queue}")
                seen[payload] = queue
        for tracked in self.messages.values():
            where = seen.get(tracked.payload)
            if where is not None and tracked.is_settled:
                raise Violation(f"{tracked.payload!r} was settled, and is in {where}")
            if where is not None and tracked.state == "refused":
                raise Violation(f"{tracked.payload!r} was refused, and is in {where}")
            is_due = tracked.state == "kept" and not (tracked.is_settled or tracked.asks or tracked.is_gone)
            if where is None and is_due:
                raise Violation(f"{tracked.payload!r} was acknowledged to its publisher, and is lost")
