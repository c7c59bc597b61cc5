"""The line before a full queue: publications that wait for room, in the order in which they came.

Who waits is let in as soon as there is room, and nobody goes before the first in line, though there might be
room for less.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from towpath.errors import Cancelled, QueueFull, TowpathError
from towpath_broker.core.ids import CallId, SessionId

from .commands import Publish
from .effects import Waits
from .publishing import Columns, columns_of
from .round import Round
from .shared import refuse, reply

if TYPE_CHECKING:
    from .queues import Queue


class WaitingPublish:
    """A publication that waits for room."""

    __slots__ = ("call", "command", "principal", "queue", "session", "size")

    def __init__(self, queue: Queue, session: SessionId, command: Publish, size: int) -> None:
        self.queue = queue
        self.session = session
        self.call: CallId = command.caller.call
        self.principal = command.caller.principal
        self.command = command
        self.size = size

    def leave(self, round_: Round, *, is_orderly: bool) -> None:
        """It is not wanted any more; nothing of it was published."""
        self.queue.line.withdraw(self, round_)
        if is_orderly:
            error = Cancelled(f"queue {self.queue.name!r} had no room in time: nothing was published")
            refuse(round_, self.command.caller, error)


class Line:
    """Of one queue. Attributes: nbytes: of what waits."""

    __slots__ = ("_queue", "nbytes", "waiting")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.waiting: deque[WaitingPublish] = deque()
        self.nbytes = 0

    def wait(self, command: Publish, columns: Columns, round_: Round) -> None:
        """Have a publication wait.

        Raises:
            QueueFull: so many wait already.
        """
        limits = self._queue.shared.limits
        if len(self.waiting) >= limits.waiting_publishes_per_queue_max or (
            self.waiting and self.nbytes + columns.content_bytes > self._queue.options.capacity_bytes
        ):
            raise QueueFull(
                f"{len(self.waiting)} publications of {self.nbytes} bytes wait for room in queue"
                f" {self._queue.name!r} already",
                hint="waiting_publishes_per_queue_max, and the queue's capacity_bytes, bound them",
            )
        waiting = WaitingPublish(
            self._queue, self._queue.shared.check_call(command.caller), command, columns.content_bytes
        )
        self._queue.shared.add_stream(waiting, round_.undo)
        round_.effects.append(Waits(waiting.session, waiting.call))
        round_.undo.add(self.waiting.pop)
        self.waiting.append(waiting)
        round_.undo.set(self, "nbytes", self.nbytes + columns.content_bytes)
        round_.touch(self._queue)

    def withdraw(self, waiting: WaitingPublish, round_: Round) -> None:
        """Take a publication out of the line."""
        round_.undo.add(self._restore, tuple(self.waiting))
        self.waiting.remove(waiting)
        round_.undo.set(self, "nbytes", self.nbytes - waiting.size)
        self._queue.shared.remove_stream(waiting, round_.undo)
        round_.touch(self._queue)

    def _restore(self, line: tuple[WaitingPublish, ...]) -> None:
        self.waiting.clear()
        self.waiting.extend(line)

    def admit(self, round_: Round) -> None:
        """Let in who waits, in order, as far as there is room."""
        while self.waiting:
            waiting = self.waiting[0]
            count, has_ids = len(waiting.command.payloads), any(waiting.command.message_ids)
            if not has_ids and not self._queue.intake.has_room(count, waiting.size):
                return
            columns = columns_of(waiting.command, round_.now_ns)
            mark = round_.mark()
            try:
                published = self._queue.intake.publish_now(waiting.command, columns, round_)
            except QueueFull:
                round_.roll_back(mark)
                return
            except TowpathError as error:
                round_.roll_back(mark)
                self.withdraw(waiting, round_)
                refuse(round_, waiting.command.caller, error)
            else:
                self.withdraw(waiting, round_)
                reply(round_, waiting.command.caller, published)
