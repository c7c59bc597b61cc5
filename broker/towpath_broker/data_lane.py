"""A lane of the data plane's engine: a machine, the line of commands before it, and its timer.

A lane only takes commands and says when a round is wanted (``wake``); who carries rounds out is the engine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from .core.data import commands as c
from .core.data.machine import DataMachine, Outcome
from .ports import Clock

ROUND_COMMANDS_MAX: Final = 512
ROUND_BYTES_MAX: Final = 8 << 20
"""How much one round takes from the line; bounds how long others of the event loop wait, and a commit."""
TIMER_S_MAX: Final = 60.0


class Lane:
    """A machine, the line before it, and its timer."""

    def __init__(self, machine: DataMachine, clock: Clock, wake: Callable[[], None]) -> None:
        self.machine = machine
        self.line: deque[c.DataCommand] = deque()
        self.clock = clock
        self.wake = wake
        self.rounds = 0
        self.round_bytes = 0  # about how much what was taken last adds
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    def submit(self, command: c.DataCommand) -> None:
        self.line.append(command)
        self.wake()

    def take(self) -> list[c.DataCommand]:
        """Take a round's commands from the line."""
        taken: list[c.DataCommand] = []
        size = 0
        while self.line and len(taken) < ROUND_COMMANDS_MAX and size < ROUND_BYTES_MAX:
            command = self.line.popleft()
            size += _size(command)
            taken.append(command)
        self.round_bytes = size
        return taken

    def is_patient(self) -> bool:
        """Whether nobody waits for what is in the line."""
        return all(map(self.machine.is_patient, self.line))

    def apply(self, commands: Sequence[c.DataCommand]) -> Outcome:
        self.rounds += 1
        return self.machine.apply(commands, self.clock.now_ns())

    def set_timer(self) -> None:
        """Be woken when something happens by itself."""
        due_ns = self.machine.next_deadline_ns()
        if self._timer is not None:
            if due_ns == self._timer_ns:
                return
            self._timer.cancel()
            self._timer = None
        if due_ns is not None:
            self._timer_ns = due_ns
            delay_s = max(0.0, (due_ns - self.clock.now_ns()) / 1e9)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(delay_s, TIMER_S_MAX), self._ring)

    def _ring(self) -> None:
        self._timer = None
        due_ns = self.machine.next_deadline_ns()
        if due_ns is not None and due_ns <= self.clock.now_ns():
            self.submit(c.Tick())
        else:
            self.set_timer()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.line.clear()


def _size(command: Any) -> int:
    """About how much a command adds to a round."""
    match command:
        case c.Publish():
            return sum(map(len, command.payloads))
        case c.TakeIn():
            return int(command.content_bytes)
        case c.SetValue():
            return len(command.payload)
        case c.CommitTransaction():
            return sum(map(_size, (*command.publishes, *command.values)))
        case _:
            return 0
