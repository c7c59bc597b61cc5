"""The lock page's model, explored by a C program that is made of the same programs, where there is too much.

Theory of operation
    Each instruction becomes a case of a function that changes a state in place. A state is an array of small
    numbers: the memory, then each process's place, what it sleeps on, and its registers. States are visited
    depth first, so what lies on the stack is the way to the one at hand, and is printed when that is wrong.
    Of those visited 64 bits of a hash are kept: of n states one is missed with a probability of about
    n^2 / 2^65, which for a hundred million is 1 in 4,000.

    What only its own process sees comes first, alone, as in ``tests.ring.model.machine``; and nobody is
    killed before that, since it would make no difference to anybody.

Invariants
    The same programs have as many states here as there: a test counts both.

Not here: store buffers, which sequentially consistent instructions do not have.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Final

from tests.lockpage.model import atomics
from tests.ring.model import machine
from tests.ring.model.machine import Program, Wrong

_LOCAL: Final = ("set", "jump", "check")
_BINARY: Final = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "/",
    ast.BitAnd: "&",
    ast.BitOr: "|",
}
_COMPARE: Final = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}

_SOURCE: Final = Template(r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE $size
#define PROCESSES $count
#define DEPTH 200000
#define BITS $bits
#define AT(p, at) ((p) * 1000 + (at))

typedef int16_t number;
static const number first[SIZE] = {$first};
static const int place[PROCESSES] = {$place}; /* where it is, what it sleeps on, registers */
static const char *const name[] = {$names};
static int was_stepped[DEPTH], resume[DEPTH];

static const char *text(int p, int at) {
    switch (AT(p, at)) {
$texts
    }
    return "";
}

static int is_local(int p, int at) {
    switch (AT(p, at)) {
    $local
        return 1;
    }
    return 0;
}

static int is_over(const number *s) {
    for (int p = 0; p < PROCESSES; p++) {
        if (s[place[p] + 1])
            return 0;
        switch (AT(p, s[place[p]])) {
        $ends
            continue;
        }
        return 0;
    }
    return 1;
}

__attribute__((unused)) static void wake(number *s, int on) {
    for (int p = 0; p < PROCESSES; p++)
        if (s[place[p] + 1] == on)
            s[place[p] + 1] = 0;
}

/* Who is in a place, with the lowest ticket. */
__attribute__((unused)) static number lowest(const number *s) {
    number found = 0;
    for (int i = $queue; i <= $queue_end; i++)
        if (s[i] && (!found || s[$ticket + s[i]] < s[$ticket + found]))
            found = s[i];
    return found;
}

/* 0: it cannot go on; 2: a check fails. */
static int step(int p, number *s) {
    switch (AT(p, s[place[p]])) {
$steps
    }
    return 0;
}

/* Registers that matter no more are 0, so that states which differ in nothing else are one. */
static void tidy(int p, number *s) {
    switch (AT(p, s[place[p]])) {
$tidy
    }
}

static int kill(int p, number *s) {
    switch (p) {
$kills
    }
    (void)s;
    return 0;
}

static uint64_t hash(const number *s) {
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < SIZE; i++) {
        h = (h ^ (uint16_t)s[i]) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return h ? h : 1;
}

static uint64_t *seen, mask, states;

static int is_new(const number *s) {
    uint64_t h = hash(s), at = (h * 0xc4ceb9fe1a85ec53u) & mask;
    while (seen[at]) {
        if (seen[at] == h)
            return 0;
        at = (at + 1) & mask;
    }
    seen[at] = h;
    return ++states;
}

static number stack[DEPTH][SIZE];
static int chosen[DEPTH];

static int end(int depth, const char *what) {
    printf("%s\n", what);
    for (int i = 0; i < depth; i++)
        if (chosen[i] < PROCESSES)
            printf("%s: %s\n", name[chosen[i]], text(chosen[i], stack[i][place[chosen[i]]]));
        else
            printf("%s is killed\n", name[chosen[i] - PROCESSES]);
    return 1;
}

int main(void) {
    mask = ((uint64_t)1 << BITS) - 1;
    seen = calloc(mask + 1, sizeof *seen);
    if (!seen)
        return 2;
    for (int i = 0; i < SIZE; i++)
        stack[0][i] = first[i];
    is_new(stack[0]);
    int depth = 0, next = 0, stepped = 0;
    for (;;) {
        number *s = stack[depth], *t = stack[depth + 1];
        int only = -1, choice = next;
        for (int p = 0; p < PROCESSES && only < 0; p++)
            if (!s[place[p] + 1] && is_local(p, s[place[p]]))
                only = p;
        if (only >= 0 && choice <= only)
            choice = only;
        int found = 0;
        for (; choice < (only >= 0 ? only + 1 : 2 * PROCESSES) && !found; choice++) {
            memcpy(t, s, sizeof stack[0]);
            if (choice < PROCESSES) {
                if (s[place[choice] + 1])
                    continue;
                int how = step(choice, t);
                if (!how)
                    continue;
                tidy(choice, t);
                stepped = 1;
                chosen[depth] = choice;
                if (how == 2)
                    return end(depth + 1, "a check fails");
            } else {
                if (!kill(choice - PROCESSES, t))
                    continue;
                chosen[depth] = choice;
            }
            found = is_new(t) != 0;
        }
        if (states * 10 > mask * 8)
            return printf("too many states\n"), 3;
        if (found) {
            was_stepped[depth] = stepped;
            resume[depth] = choice;
            if (++depth + 1 >= DEPTH)
                return printf("too deep\n"), 3;
            next = 0;
            stepped = 0;
            continue;
        }
        if (!stepped && !is_over(s))
            return end(depth, "somebody never goes on");
        if (!depth)
            break;
        depth--;
        next = resume[depth];
        stepped = was_stepped[depth];
    }
    printf("%llu\n", (unsigned long long)states);
    return 0;
}
""")


def _c(node: ast.expr, names: Mapping[str, str]) -> str:
    """An expression of Python's, of numbers that are not negative where they are divided, as one of C's."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.Name():
            return names[node.id]
        case ast.BinOp():
            return f"({_c(node.left, names)} {_BINARY[type(node.op)]} {_c(node.right, names)})"
        case ast.UnaryOp(op=ast.USub()):
            return f"(-{_c(node.operand, names)})"
        case ast.UnaryOp(op=ast.Not()):
            return f"(!{_c(node.operand, names)})"
        case ast.BoolOp():
            mark = " && " if isinstance(node.op, ast.And) else " || "
            return f"({mark.join(_c(each, names) for each in node.values)})"
        case ast.Compare(ops=[how], comparators=[other]):
            return f"({_c(node.left, names)} {_COMPARE[type(how)]} {_c(other, names)})"
        case ast.IfExp():
            return f"({_c(node.test, names)} ? {_c(node.body, names)} : {_c(node.orelse, names)})"
    raise ValueError(f"not an expression of the model's: {ast.unparse(node)}")


class _Translated:
    """A model as C."""

    def __init__(self, programs: list[Program], memory: machine.Memory, mortal: Mapping[int, int]) -> None:
        self.programs = programs
        self.places = {name: i for i, name in enumerate(memory)}
        self.mortal = mortal
        self.at: list[int] = []
        size = len(memory)
        for program in programs:
            self.at.append(size)
            size += 2 + len(program.registers)
        self.size = size
        self.first = [*memory.values(), *[0] * (size - len(memory))]

    def _variable(self, part: Mapping[str, str | None], names: Mapping[str, str]) -> str:
        """Where a variable is in the state."""
        name, index = part["variable"] or "", part.get("index")
        if index is None:
            return f"s[{self.places[name]}]"
        return f"s[{self.places[f'{name}0']} + {self._expression(index, names)}]"

    @staticmethod
    def _expression(text: str | None, names: Mapping[str, str]) -> str:
        return _c(ast.parse(text or "", mode="eval").body, names)

    def _instruction(self, number: int, at: int) -> str:
        program, here = self.programs[number], self.at[number]
        line = program.instructions[at]
        names = {name: f"s[{here + 2 + i}]" for i, name in enumerate(program.registers)}
        part: Mapping[str, str | None] = next(
            match.groupdict()
            for _, form in (*atomics._FORMS, *machine._FORMS)
            if (match := form.match(line.text))
        )
        register = names.get(part.get("register") or "", "")
        value = part.get("value")
        go_on = f"s[{here}] = {at + 1}; return 1;"
        if line.kind == "end":
            return "return 0;"
        if line.kind == "jump":
            test = "1" if value is None else self._expression(value, names)
            return f"s[{here}] = {test} ? {line.target} : {at + 1}; return 1;"
        if line.kind == "check":
            return f"if (!{self._expression(value, names)}) return 2; {go_on}"
        if line.kind == "set":
            return f"{register} = (number){self._expression(value, names)}; {go_on}"
        if line.kind == "first":
            return f"{register} = lowest(s); {go_on}"
        where = self._variable(part, names)
        match line.kind:
            case "load":
                return f"{register} = {where}; {go_on}"
            case "then":
                new = self._expression(value, names)
                return f"{{ number *v = &{where}; {register} = *v; *v = (number){new}; }} {go_on}"
            case "cas":
                old, new = self._expression(part["old"], names), self._expression(value, names)
                change = f"int is = *v == {old}; if (is) *v = (number){new}; {register} = (number)is;"
                return f"{{ number *v = &{where}; {change} }} {go_on}"
            case "tell":
                return f"{where} = (number){self._expression(value, names)}; {go_on}"
            case "hear":
                return f"if (!{where}) return 0; {where} = 0; {go_on}"
            case "sleep":
                asleep = f"s[{here + 1}] = (number)(&{where} - s + 1);"
                return f"if ({where} == {self._expression(value, names)}) {asleep} {go_on}"
            case "wake":
                return f"wake(s, (int)(&{where} - s) + 1); {go_on}"
        raise ValueError(f"not an instruction of the lock page's: {line.text}")

    def _kill(self, number: int, of: int) -> str:
        """A process that is not at its end is, from now on; and DEAD says so."""
        here, program = self.at[number], self.programs[number]
        end = next(at for at, line in enumerate(program.instructions) if line.kind == "end")
        places = self.places
        return (
            f"case {number}: if (!s[{places['KILLS']}] || s[{here}] == {end}) return 0;"
            f" memset(s + {here}, 0, {2 + len(program.registers)} * sizeof *s); s[{here}] = {end};"
            f" s[{places['KILLS']}]--; s[{places[f'DEAD{of}']}] = 1; s[{places['BELL']}] = 1; return 1;"
        )

    def source(self, bits: int) -> str:
        programs, places = self.programs, self.places
        count = len(programs)
        queue = sorted(places[name] for name in places if name.startswith("PLACE"))
        steps = [
            f"case AT({number}, {at}): {self._instruction(number, at)}"
            for number, program in enumerate(programs)
            for at in range(len(program.instructions))
        ]
        texts, local, live, ends = [], [], [], []
        for number, program in enumerate(programs):
            for at, line in enumerate(program.instructions):
                texts.append(f'case AT({number}, {at}): return "{line.text}";')
                if line.kind in _LOCAL:
                    local.append(f"case AT({number}, {at}):")
                dead = [i for i in range(len(program.registers)) if i not in program.live[at]]
                zeros = " ".join(f"s[{self.at[number] + 2 + i}] = 0;" for i in dead)
                live.append(f"case AT({number}, {at}): {zeros} break;")
                if line.kind == "end":
                    ends.append(f"case AT({number}, {at}):")
        return _SOURCE.substitute(
            size=self.size,
            count=count,
            bits=bits,
            first=", ".join(map(str, self.first)),
            place=", ".join(map(str, self.at)),
            names=", ".join(f'"{program.name}"' for program in programs),
            texts="\n".join(texts),
            local=" ".join(local),
            ends=" ".join(ends),
            steps="\n".join(steps),
            tidy="\n".join(live),
            kills="\n".join(self._kill(number, of) for number, of in self.mortal.items()),
            queue=queue[0],
            queue_end=queue[-1],
            ticket=places["TICKET0"],
        )


def explore(
    programs: list[Program],
    memory: machine.Memory,
    folder: Path,
    *,
    mortal: Mapping[int, int] | None = None,
    kills: int = 0,
    bits: int = 24,
    limit_s: float = 200,
) -> tuple[int, Wrong | None]:
    """Visit every state, as ``Model.explore`` does.

    Args:
        folder: for the program.
        bits: there is room for fewer states than two to the power of this; 8 bytes each.

    Raises:
        RuntimeError: there are more, or it is no model that can be explored.
    """
    translated = _Translated(programs, {**memory, "KILLS": kills}, mortal or {})
    source, program = folder / "explore.c", folder / "explore"
    source.write_text(translated.source(bits))
    command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    if made.returncode:
        raise RuntimeError(made.stderr)
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=limit_s)
    lines = ran.stdout.splitlines()
    if ran.returncode == 0:
        return int(lines[0]), None
    if ran.returncode == 1:
        return 0, Wrong(lines[0], lines[1:])
    raise RuntimeError(f"{ran.returncode}: {ran.stdout}{ran.stderr}")
