"""The ring's model checker with what a lock page needs: instructions that read and change at once; deaths.

Forms are added to those of ``tests.ring.model.machine``:

====================================  ====================================================================
``x <- VAR then expression``          load into ``x``, and store the expression (of ``x`` and others), at once
``x <- cas VAR from old to new``      if VAR is ``old`` store ``new``; ``x`` is whether it was
``x <- first``                        whoever is in a PLACE with the lowest TICKET, at once; 0: nobody
``sleep``, ``wake``, ``hear``         of one of several: ``VAR[expression]``
====================================  ====================================================================

All are sequentially consistent, as all of the page's are. A process with a number in ``mortal`` may be killed
before any of its instructions, ``kills`` times in all: ``DEAD`` of its number becomes 1, and ``BELL``, as
the core hears of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, cast

from tests.ring.model import machine
from tests.ring.model.machine import Instruction, Process, Program, State, _expression, _put, _with

_FORMS: Final = (
    (
        "then",
        re.compile(
            r"(?P<register>[a-z_]+) <- (?P<variable>[A-Z_]+)(\[(?P<index>.+?)\])? then (?P<value>.+)$"
        ),
    ),
    (
        "cas",
        re.compile(
            r"(?P<register>[a-z_]+) <- cas (?P<variable>[A-Z_]+)(\[(?P<index>.+?)\])?"
            r" from (?P<old>.+) to (?P<value>.+)$"
        ),
    ),
    ("first", re.compile(r"(?P<register>[a-z_]+) <- first$")),
    ("sleep", re.compile(r"sleep (?P<variable>[A-Z_]+)\[(?P<index>.+?)\] while (?P<value>.+)$")),
    ("wake", re.compile(r"wake (?P<variable>[A-Z_]+)\[(?P<index>.+?)\]$")),
    ("hear", re.compile(r"hear (?P<variable>[A-Z_]+)\[(?P<index>.+?)\]$")),
)


def compile_program(name: str, text: str, *, without: str = "") -> Program:
    """As the ring's; the added forms are put in place of lines that it knows."""
    plain: list[str] = []
    for line in text.splitlines():
        code, mark, tag = line.partition("#")
        plain.append(_stand_in(code.strip()) + mark + tag)
    program = machine.compile_program(name, "\n".join(plain), without=without)
    kept = [line for line in text.splitlines() if not without or line.partition("#")[2].strip() != without]
    codes = [code for line in kept if (code := line.partition("#")[0].strip()) and not code.endswith(":")]
    instructions = tuple(
        _parse(code, given, program.registers)
        for code, given in zip(codes, program.instructions, strict=True)
    )
    return Program(program.name, instructions, program.registers, machine._live(instructions))


def _stand_in(code: str) -> str:
    """A line that the ring's compiler takes, with the same registers."""
    for _, form in _FORMS:
        if match := form.match(code):
            return f"{match['register']} = 0" if "register" in match.groupdict() else "fence"
    return code


def _parse(code: str, given: Instruction, names: tuple[str, ...]) -> Instruction:
    for kind, form in _FORMS:
        match = form.match(code)
        if match is None:
            continue
        part = match.groupdict()
        old, value = part.get("old"), part.get("value")
        read = " ".join(part.get(each) or "" for each in ("old", "value", "index"))
        used = {names.index(name) for name in re.findall(r"[a-z_]+", read) if name in names}
        register = names.index(part["register"]) if "register" in part else -1
        if kind == "then":
            used.discard(register)
        return Instruction(
            kind,
            code,
            variable=part.get("variable") or "",
            which=_expression(part.get("index"), names),
            value=_expression(value if old is None else f"({old}, {value})", names),
            register=register,
            used=frozenset(used),
        )
    return given


class Model(machine.Model):
    """A model with deaths.

    Args:
        mortal: the place in ``programs`` of each process that may be killed, with its number in ``DEAD``.
        kills: how many.
    """

    def __init__(
        self,
        programs: list[Program],
        memory: machine.Memory,
        *,
        mortal: Mapping[int, int] | None = None,
        kills: int = 0,
    ) -> None:
        super().__init__(programs, {**memory, "KILLS": kills})
        self._mortal = mortal or {}

    def _steps(self, state: State) -> Iterator[tuple[str, State, str]]:
        yield from super()._steps(state)
        memory, processes = state
        left = memory[self.places["KILLS"]]
        for place, number in self._mortal.items():
            program = self.programs[place]
            if not left or program.instructions[processes[place].at].kind == "end":
                continue
            after = list(memory)
            after[self.places["KILLS"]] = left - 1
            after[self.places[f"DEAD{number}"]] = 1
            after[self.places["BELL"]] = 1
            end = next(at for at, line in enumerate(program.instructions) if line.kind == "end")
            dead = Process(end, (0,) * len(program.registers))
            yield f"{program.name} is killed", (tuple(after), _with(processes, place, dead)), ""

    def _execute(
        self, memory: tuple[int, ...], processes: tuple[Process, ...], number: int
    ) -> Iterator[tuple[str, State, str]]:
        process, program = processes[number], self.programs[number]
        line = program.instructions[process.at]
        if line.kind == "first" and not process.buffer:
            yield self._first(memory, processes, number)
            return
        if line.kind not in ("then", "cas"):
            yield from super()._execute(memory, processes, number)
            return
        if process.buffer:
            return
        registers = process.registers
        name = f"{line.variable}{line.which(registers)}" if line.which is not None else line.variable
        place = self.places[name]
        was = memory[place]
        assert line.value is not None
        after = list(memory)
        if line.kind == "then":
            registers = _put(registers, line.register, was)
            after[place] = int(line.value(registers))
        else:
            old, new = cast(tuple[int, int], line.value(registers))
            if was == old:
                after[place] = new
            registers = _put(registers, line.register, int(was == old))
        following = process._replace(at=process.at + 1, registers=registers)
        live = program.live[following.at]
        known = tuple(found if i in live else 0 for i, found in enumerate(registers))
        changed = _with(processes, number, following._replace(registers=known))
        yield f"{program.name}: {line.text}  ({name} was {was})", (tuple(after), changed), ""

    def _first(
        self, memory: tuple[int, ...], processes: tuple[Process, ...], number: int
    ) -> tuple[str, State, str]:
        process, program = processes[number], self.programs[number]
        line = program.instructions[process.at]
        places = [name for name in self.names if name.startswith("PLACE")]
        there = [memory[self.places[name]] for name in places if memory[self.places[name]]]
        found = min(there, key=lambda member: memory[self.places[f"TICKET{member}"]], default=0)
        registers = _put(process.registers, line.register, found)
        following = process._replace(at=process.at + 1, registers=registers)
        text = f"{program.name}: {line.text}  ({found})"
        return text, (memory, _with(processes, number, following)), ""
