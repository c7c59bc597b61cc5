"""What is to be published, in columns: checked, measured, freed of what was there before, cut into runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, TypeVar

from towpath.errors import InvalidArgument

from .commands import Publish
from .dedupe import Ids
from .rows import Run

PAYLOADS_MAX: Final = 10_000
PRIORITY_MAX: Final = 31
MESSAGE_ID_BYTES_MAX: Final = 128


_Entry = TypeVar("_Entry")


def _picked(column: Sequence[_Entry], kept: Sequence[int]) -> Sequence[_Entry]:
    return [column[index] for index in kept] if column else ()


class Columns:
    """Messages side by side.

    Attributes:
        count, content_bytes: how many, and of how many bytes of payload and headers.
    """

    __slots__ = (
        "content_bytes",
        "count",
        "deliver_at_ns",
        "headers",
        "message_ids",
        "origins",
        "payloads",
        "priorities",
        "time_ns",
        "times_ns",
    )

    def __init__(
        self,
        payloads: Sequence[bytes],
        headers: Sequence[bytes] = (),
        *,
        priorities: Sequence[int] = (),
        deliver_at_ns: Sequence[int] = (),
        message_ids: Sequence[str] = (),
        origins: Sequence[tuple[int, int]] = (),
        times_ns: Sequence[int] = (),
        time_ns: int = 0,
    ) -> None:
        self.payloads = payloads
        self.headers = headers
        self.priorities = priorities
        self.deliver_at_ns = deliver_at_ns
        self.message_ids = message_ids
        self.origins = origins
        self.times_ns = times_ns
        self.time_ns = time_ns
        self.count = len(payloads)
        self.content_bytes = sum(map(len, payloads)) + sum(map(len, headers))

    def without_known(self, ids: Ids, now_ns: int) -> tuple[Columns, int, int]:
        """Leave out what was published before, and what is in it twice.

        Returns:
            The rest; how many were left out; the seq that the first of those had been given (0: the first of
            them is a repetition within).
        """
        if not ids.window_ns or not any(self.message_ids):
            return self, 0, 0
        seen: set[str] = set()
        kept: list[int] = []
        first_known = 0
        for index, message_id in enumerate(self.message_ids):
            if message_id:
                known = ids.seq_of(message_id, now_ns)
                if known or message_id in seen:
                    first_known = first_known or known
                    continue
                seen.add(message_id)
            kept.append(index)
        if len(kept) == self.count:
            return self, 0, 0
        return self._only(kept), self.count - len(kept), first_known

    def _only(self, kept: Sequence[int]) -> Columns:
        return Columns(
            _picked(self.payloads, kept),
            _picked(self.headers, kept),
            priorities=_picked(self.priorities, kept),
            deliver_at_ns=_picked(self.deliver_at_ns, kept),
            message_ids=_picked(self.message_ids, kept),
            origins=_picked(self.origins, kept),
            times_ns=_picked(self.times_ns, kept),
            time_ns=self.time_ns,
        )

    def ids_from(self, first_seq: int) -> list[tuple[str, int]]:
        """Return the message ids that there are, each with its seq."""
        return [(each, seq) for seq, each in enumerate(self.message_ids, first_seq) if each]

    def run(self) -> Run:
        """Return all of them as one run."""
        return Run(self.payloads, self.headers, self.time_ns, self.times_ns, self.origins)

    def runs(self, count_max: int, time_ns: int = 0) -> Iterator[tuple[Run, int, int]]:
        """Yield runs of one priority and one time of delivery, in order, each of at most ``count_max``."""
        time_ns = time_ns or self.time_ns
        if not self.priorities and not self.deliver_at_ns:
            stretches = [(0, 0, 0, self.count)]
        else:
            stretches = self._stretches()
        for priority, due_ns, start, end in stretches:
            for first in range(start, end, count_max):
                last = min(first + count_max, end)
                if last - first == self.count:
                    yield Run(self.payloads, self.headers, time_ns), priority, due_ns
                else:
                    yield Run(self.payloads[first:last], self.headers[first:last], time_ns), priority, due_ns

    def _stretches(self) -> list[tuple[int, int, int, int]]:
        priorities = self.priorities or [0] * self.count
        dues = self.deliver_at_ns or [0] * self.count
        stretches = []
        start = 0
        for (priority, due_ns), same in groupby(zip(priorities, dues, strict=True)):
            end = start + sum(1 for _ in same)
            stretches.append((priority, due_ns, start, end))
            start = end
        return stretches


def columns_of(command: Publish, now_ns: int) -> Columns:
    """Check what is to be published. What is to be delivered at a time that has passed is due at once.

    Raises:
        InvalidArgument: a value is out of its range.
    """
    count = len(command.payloads)
    if not 1 <= count <= PAYLOADS_MAX:
        raise InvalidArgument(f"{count} payloads; 1 to {PAYLOADS_MAX} are allowed")
    for column in (command.headers, command.priorities, command.deliver_at_ns, command.message_ids):
        assert len(column) in (0, count)
    if command.priorities and not 0 <= min(command.priorities) <= max(command.priorities) <= PRIORITY_MAX:
        raise InvalidArgument("a priority is out of its range", hint=f"priorities are 0 to {PRIORITY_MAX}")
    for message_id in command.message_ids:
        if len(message_id.encode(errors="replace")) > MESSAGE_ID_BYTES_MAX:
            raise InvalidArgument(f"a message id has at most {MESSAGE_ID_BYTES_MAX} bytes")
    dues = command.deliver_at_ns
    if dues:
        dues = [due if due > now_ns else 0 for due in dues]
    return Columns(
        command.payloads,
        command.headers,
        priorities=command.priorities,
        deliver_at_ns=dues if any(dues) else (),
        message_ids=command.message_ids,
        time_ns=now_ns,
    )
