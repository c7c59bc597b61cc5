"""A lane of the data plane's engine: a machine, the line of commands before it, and its timer.

A lane only takes commands and says when a round is wanted (``wake``); who carries rounds out is the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from .core.data import commands as c
from .core.data.machine import DataMachine, Outcome
from .ports import Clock
from .timer import DueTimer

ROUND_COMMANDS_MAX: Final = 512
ROUND_BYTES_MAX: Final = 8 << 20
"""How much one round takes from the line; bounds how long others of the event loop wait, and a commit."""


class Lane:
    """A machine, the line before it, and its timer."""

    def __init__(self, machine: DataMachine, clock: Clock, wake: Callable[[], None]) -> None:
        self.machine = machine
        self.line: deque[c.DataCommand] = deque()
        self.clock = clock
        self.wake = wake
        self.rounds = 0
        self.round_bytes = 0  # about how much what was taken last adds
        self._timer = DueTimer(clock, machine.next_deadline_ns, lambda: self.submit(c.Tick()))

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
        self._timer.set()

    def stop(self) -> None:
        self._timer.stop()
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
