"""A machine for small concurrent programs, run in every possible order: an exhaustive model checker.

Theory of operation
    A program is text, one instruction a line (see ``compile_program``). Each process has registers of its
    own and a store buffer: what it stores waits there, is seen by its own loads, and reaches memory later.
    In TSO mode (x86) the buffer is one queue; in PSO mode there is a queue for each variable, so that
    stores to different variables may pass each other (what a release store or a release fence is there to
    prevent). Loads are never reordered. A state is the memory, and each process's place, registers, buffer,
    and what it sleeps on. ``explore`` visits all states that can be reached by any interleaving of
    instructions and of buffers reaching memory, and returns the first that is wrong, with the way to it: a
    ``check`` that fails, or nobody who can go on although not all are at their end.

Invariants
    Purely functional: a state is a tuple and never changes. No randomness; the same programs give the same
    states in the same order.

Not here: the ring's protocol (``protocols``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

STATES_MAX: Final = 2_000_000
"""A model that has more is too large to be checked here."""

Memory = dict[str, int]
Expression = Callable[[tuple[int, ...]], int]


class Instruction(NamedTuple):
    """One line. Which of the fields mean something depends on ``kind``."""

    kind: str
    text: str
    variable: str = ""
    which: Expression | None = None
    value: Expression | None = None
    register: int = -1
    target: int = -1
    is_release: bool = False
    used: frozenset[int] = frozenset()


class Process(NamedTuple):
    """Where a process is. ``buffer``: (variable, value) in order. ``asleep_on``: a variable, or empty."""

    at: int
    registers: tuple[int, ...]
    buffer: tuple[tuple[str, int], ...] = ()
    asleep_on: str = ""


State = tuple[tuple[int, ...], tuple[Process, ...]]


@dataclass(frozen=True)
class Program:
    """A compiled program."""

    name: str
    instructions: tuple[Instruction, ...]
    registers: tuple[str, ...]
    live: tuple[frozenset[int], ...]
    """Of each instruction, the registers whose values still matter there: the others count as 0, so that
    states which differ in nothing else are one."""


_FORMS: Final = (
    ("load", re.compile(r"(?P<register>[a-z_]+) <- (?P<variable>[A-Z_]+)(\[(?P<index>.+)\])?$")),
    ("store", re.compile(r"(?P<variable>[A-Z_]+)(\[(?P<index>.+)\])? (?P<how>:=|release=) (?P<value>.+)$")),
    ("set", re.compile(r"(?P<register>[a-z_]+) = (?P<value>.+)$")),
    ("jump", re.compile(r"if (?P<value>.+) goto (?P<label>\w+)$")),
    ("jump", re.compile(r"goto (?P<label>\w+)$")),
    ("sleep", re.compile(r"sleep (?P<variable>[A-Z_]+) while (?P<value>.+)$")),
    ("wake", re.compile(r"wake (?P<variable>[A-Z_]+)$")),
    ("tell", re.compile(r"tell (?P<variable>[A-Z_]+) (?P<value>.+)$")),
    ("hear", re.compile(r"hear (?P<variable>[A-Z_]+)$")),
    ("check", re.compile(r"check (?P<value>.+)$")),
    ("fence", re.compile(r"fence$")),
    ("order", re.compile(r"order stores$")),
    ("end", re.compile(r"end( (?P<results>.+))?$")),
)


def compile_program(name: str, text: str, *, without: str = "") -> Program:
    """Compile a program. One instruction a line; ``#NAME`` at the end of a line tags it.

    ======================  ==================================================================================
    ``x <- VAR``            load; ``VAR[expression]`` names one of several
    ``VAR := expression``   store; ``VAR release= expression`` not before the stores before it
    ``x = expression``      of registers (lower case), Python's operators
    ``if e goto label``     and ``goto label``; a label is a line ``label:``
    ``fence``               go on when all stores have reached memory (sequentially consistent fence)
    ``order stores``        the stores before it reach memory before those after it (release fence)
    ``sleep VAR while e``   futex wait: if memory has VAR == e, sleep until woken; else go on
    ``wake VAR``            futex wake: all who sleep on VAR
    ``tell VAR e``          a system call that others hear of: all stores reach memory, VAR = e
    ``hear VAR``            wait until VAR is not 0, and set it to 0 (a doorbell, or a message of the core's)
    ``check e``             the model is wrong if e is 0 here
    ``end``                 the process is at its end; ``end x y``: with these results, for ``at_end``
    ======================  ==================================================================================

    Args:
        name: for traces.
        text: the program.
        without: a tag; lines that have it are left out, which is how a fault is seeded.

    Raises:
        ValueError: a line that is none of these; a tag or label that does not exist.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    tags: set[str] = set()
    for line in text.splitlines():
        code, _, tag = line.strip().partition("#")
        tags.add(tag.strip())
        if code.strip().endswith(":"):
            labels[code.strip()[:-1]] = len(lines)
        elif code.strip() and (not without or tag.strip() != without):
            lines.append(code.strip())
    if without and without not in tags:
        raise ValueError(f"{name} has no line tagged {without}")
    names = sorted({name for line in lines for name in re.findall(r"^([a-z_]+) (?:<-|=)", line)})
    instructions = tuple(_parse(line, labels, tuple(names)) for line in lines)
    return Program(name, instructions, tuple(names), _live(instructions))


def _live(instructions: tuple[Instruction, ...]) -> tuple[frozenset[int], ...]:
    live: list[frozenset[int]] = [frozenset()] * len(instructions)
    is_stable = False
    while not is_stable:
        is_stable = True
        for at in reversed(range(len(instructions))):
            line = instructions[at]
            after: frozenset[int] = frozenset()
            if line.kind != "end" and line.text.split()[0] != "goto":
                after |= live[at + 1]
            if line.target >= 0:
                after |= live[line.target]
            found = (after - {line.register}) | line.used
            is_stable = is_stable and found == live[at]
            live[at] = found
    return tuple(live)


def _parse(line: str, labels: Mapping[str, int], names: tuple[str, ...]) -> Instruction:
    for kind, form in _FORMS:
        match = form.match(line)
        if match is None:
            continue
        part = match.groupdict()
        read = " ".join(part.get(each) or "" for each in ("value", "index", "results"))
        return Instruction(
            kind,
            line,
            variable=part.get("variable") or "",
            which=_expression(part.get("index"), names),
            value=_expression(part.get("value"), names),
            register=names.index(part["register"]) if part.get("register") else -1,
            target=labels[part["label"]] if part.get("label") else -1,
            is_release=part.get("how") == "release=",
            used=frozenset(names.index(name) for name in re.findall(r"[a-z_]+", read) if name in names),
        )
    raise ValueError(f"not an instruction: {line}")


def _expression(text: str | None, names: tuple[str, ...]) -> Expression | None:
    if text is None:
        return None
    places = {name: f"r[{i}]" for i, name in enumerate(names)}
    code = re.sub(r"[a-z_]+", lambda found: places.get(found.group(), found.group()), text)
    compiled: Expression = eval(f"lambda r: {code}", {"__builtins__": {}, "max": max, "min": min})
    return compiled


class Wrong(NamedTuple):
    """What is wrong, and how it came about: one line for each step."""

    what: str
    trace: list[str]


class Model:
    """Programs that share a memory.

    Args:
        programs: one process runs each.
        memory: the variables, with their values at first; ``VAR[i]`` is named ``VAR0``, ``VAR1``, ...
        is_pso: stores to different variables may pass each other.
        at_end: called with the memory and the registers of each process (by name) when all are at their end;
            says what is wrong, or nothing.
    """

    def __init__(
        self,
        programs: list[Program],
        memory: Memory,
        *,
        is_pso: bool = False,
        at_end: Callable[[Memory, list[dict[str, int]]], str] = lambda memory, registers: "",
    ) -> None:
        self.programs = programs
        self.names = tuple(memory)
        self.places = {name: i for i, name in enumerate(memory)}
        self.is_pso = is_pso
        self.at_end = at_end
        self.first: State = (
            tuple(memory.values()),
            tuple(Process(0, (0,) * len(program.registers)) for program in programs),
        )

    def explore(self) -> tuple[int, Wrong | None]:
        """Visit every state. Returns how many there are, and the first thing found wrong.

        Raises:
            RuntimeError: there are more than STATES_MAX.
        """
        came_from: dict[State, tuple[State, str] | None] = {self.first: None}
        to_visit = [self.first]
        while to_visit:
            state = to_visit.pop()
            steps = 0
            for text, successor, wrong in self._steps(state):
                steps += 1
                if wrong:
                    return len(came_from), Wrong(wrong, [*self._trace(came_from, state), text])
                if successor not in came_from:
                    came_from[successor] = (state, text)
                    to_visit.append(successor)
            if not steps and (wrong := self._wrong_at_rest(state)):
                return len(came_from), Wrong(wrong, self._trace(came_from, state))
            if len(came_from) > STATES_MAX:
                raise RuntimeError("too many states")
        return len(came_from), None

    def _trace(self, came_from: dict[State, tuple[State, str] | None], state: State) -> list[str]:
        trace: list[str] = []
        while (step := came_from[state]) is not None:
            state, text = step
            trace.append(text)
        return trace[::-1]

    def _wrong_at_rest(self, state: State) -> str:
        memory, processes = state
        for program, process in zip(self.programs, processes, strict=True):
            line = program.instructions[process.at - 1 if process.asleep_on else process.at]
            if line.kind != "end":
                return f"{program.name} never goes on: {line.text}"
        registers = [
            dict(zip(program.registers, process.registers, strict=True))
            for program, process in zip(self.programs, processes, strict=True)
        ]
        return self.at_end(dict(zip(self.names, memory, strict=True)), registers)

    def _steps(self, state: State) -> Iterator[tuple[str, State, str]]:
        """Every step possible in a state: its text, the state after it, and what is wrong with it."""
        memory, processes = state
        for number, process in enumerate(processes):
            kind = self.programs[number].instructions[process.at].kind
            if kind in ("set", "jump", "check") and not process.asleep_on:
                # Nobody else sees that, nor does it see anybody else: it may as well come first.
                yield from self._execute(memory, processes, number)
                return
        for number, process in enumerate(processes):
            for queued in self._first_in_queues(process.buffer):
                variable, value = process.buffer[queued]
                after = list(memory)
                after[self.places[variable]] = value
                left = process._replace(buffer=process.buffer[:queued] + process.buffer[queued + 1 :])
                text = f"{self.programs[number].name}: {variable} = {value} reaches memory"
                yield text, (tuple(after), _with(processes, number, left)), ""
            if not process.asleep_on:
                yield from self._execute(memory, processes, number)

    def _first_in_queues(self, buffer: tuple[tuple[str, int], ...]) -> list[int]:
        if not self.is_pso:
            return [0] if buffer else []
        first: dict[str, int] = {}
        for i, (variable, _) in enumerate(buffer):
            first.setdefault(variable, i)
        return list(first.values())

    def _execute(
        self, memory: tuple[int, ...], processes: tuple[Process, ...], number: int
    ) -> Iterator[tuple[str, State, str]]:
        process, program = processes[number], self.programs[number]
        line = program.instructions[process.at]
        registers, buffer = process.registers, process.buffer
        value = line.value(registers) if line.value is not None else 1
        name = f"{line.variable}{line.which(registers)}" if line.which is not None else line.variable
        drains = line.kind in ("fence", "sleep", "wake", "tell", "hear")
        orders = self.is_pso and (line.kind == "order" or line.is_release)
        if line.kind == "end" or ((drains or orders) and buffer):
            return
        following, wrong, after = process._replace(at=process.at + 1), "", list(memory)
        others: dict[int, Process] = {}
        match line.kind:
            case "load":
                found = [stored for variable, stored in buffer if variable == name]
                loaded = found[-1] if found else memory[self.places[name]]
                following = following._replace(registers=_put(registers, line.register, loaded))
            case "store":
                following = following._replace(buffer=(*buffer, (name, value)))
            case "set":
                following = following._replace(registers=_put(registers, line.register, value))
            case "jump" if value:
                following = following._replace(at=line.target)
            case "sleep" if memory[self.places[name]] == value:
                following = following._replace(asleep_on=name)
            case "wake":
                others = {i: p._replace(asleep_on="") for i, p in enumerate(processes) if p.asleep_on == name}
            case "tell":
                after[self.places[name]] = value
            case "hear":
                if not memory[self.places[name]]:
                    return
                after[self.places[name]] = 0
            case "check" if not value:
                wrong = f"{program.name}: {line.text}"
        live = program.live[following.at]
        known = tuple(found if i in live else 0 for i, found in enumerate(following.registers))
        changed = _with(processes, number, following._replace(registers=known))
        for i, other in others.items():
            changed = _with(changed, i, other)
        yield f"{program.name}: {line.text}  (with {value})", (tuple(after), changed), wrong


def _put(registers: tuple[int, ...], place: int, value: Any) -> tuple[int, ...]:
    return (*registers[:place], int(value), *registers[place + 1 :])


def _with(processes: tuple[Process, ...], number: int, process: Process) -> tuple[Process, ...]:
    return (*processes[:number], process, *processes[number + 1 :])
