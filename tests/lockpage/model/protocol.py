"""The lock page's protocol as programs: the loads and changes of clients/c/towpath_lock.h, in the same order.

One lock. A word is packed as ``owner + 4 * open + 8 * waiters + 16 * readers + 32 * leaves + 128 * tokens``
(leaves modulo 4). ``I`` is the member's number, 1 to 3; each has a place of its own. ``HAS`` counts who is
inside, ``TOP`` is the newest token that was used inside: what is to be shown is that nobody is ever inside
with another, that tokens grow, and that everybody comes to the end. The spin of the header, which looks for a
time, looks once. Who reads is in ``readers``.

The core: ``BELL`` tells it to look (a death, a request, or that it shall take the lock back: ``RECALL``).
After it has taken the lock back it grants by itself, to who asks. Lines that are tagged are those that a
seeded fault leaves out.
"""

from __future__ import annotations

import re
from typing import Final

MEMBERS: Final = 3

MEMORY: Final = {
    "WORD": 4,
    "BASE": 0,
    "NEXT": 0,
    "HAS": 0,
    "TOP": 0,
    "RECALL": 0,
    "BELL": 0,
    **{
        f"{name}{member}": 0
        for name in ("PLACE", "TICKET", "PHASE", "WAKE", "GONE", "DEAD", "ASK", "REL", "DONE", "GRANT")
        for member in range(MEMBERS + 1)
    },
}

_FIRST: Final = """
    first = 0
    lowest = 99
    i = 1
  scan_LABEL:
    q <- PLACE[i]
    if q == 0 goto next_LABEL
    t <- TICKET[q]
    if t >= lowest goto next_LABEL
    lowest = t
    first = q
  next_LABEL:
    i = i + 1
    if i <= COUNT goto scan_LABEL
"""


def _first(label: str) -> str:
    """``first``: who has the lowest ticket. Place by place; with AT_ONCE, in one step."""
    return f"\n    FIRST_{label}\n"


def _rouse(label: str) -> str:
    """The lock is free: have the first who sleeps come."""
    return (
        _first(label)
        + f"""
    if first == 0 goto roused_{label}
    p <- PHASE[first]
    d <- cas PHASE[first] from 1 to 2
    if d == 0 and p != 4 goto roused_{label}
    k <- WAKE[first] then k + 1         #ROUSE
    wake WAKE[first]                    #ROUSE
  roused_{label}:
"""
    )


_WAKE_FIRST: Final = """
    k <- WAKE[first] then k + 1         #WAKE
    wake WAKE[first]                    #WAKE
"""


TAKE: Final = """
    w <- WORD
    if w & 4 == 0 goto ask
    if w & 3 goto held
    d <- cas WORD from w to w + 128 + I
    if d == 0 goto take
    token = w // 128 + 1
"""

WAIT: Final = f"""
  held:
    {_first("before")}
    ticket <- NEXT then ticket + 1
    x <- TICKET[I] then ticket
    x <- PHASE[I] then 1 + 2 * (first == 0)
    x <- PLACE[I] then I
  wait:
    seen <- WAKE[I]
    p <- PHASE[I]
    if p == 1 or p == 4 goto look
    x <- PHASE[I] then 3
    w <- WORD
    if w & 4 == 0 or w & 3 == 0 or w & 3 == I goto look
    x <- PHASE[I] then 4
  look:
    w <- WORD then w | 8                #WAITERS
    if w & 3 == I or w & 4 == 0 goto leave
    if w & 3 goto sleep
    d <- cas WORD from w | 8 to (w | 8) + 128 + I
    if d goto leave
    goto wait
  sleep:
    p <- PHASE[I]
    if p == 3 goto wait
    if I == GIVES_UP goto leave
    sleep WAKE[I] while seen
    goto wait
  leave:
    x <- PLACE[I] then 0                #DEQUEUE
  leave_look:
    w <- WORD
    if w & 3 == I goto mine
    if w & 4 == 0 goto ask_or_end
    d <- cas WORD from w to w & 31 | (w + 32) & 96 | w // 128 * 128       #LEFT
    if d == 0 goto leave_look           #LEFT
    if w & 3 goto over
    {_rouse("leaving")}
    goto over
  ask_or_end:
    if I == GIVES_UP goto over
    goto ask
  mine:
    token = w // 128
"""

INSIDE: Final = """
    h <- HAS then h + 1
    check h == 0
    o <- TOP then token
    check o < token
    h <- HAS then h - 1
"""

RELEASE: Final = f"""
  release:
    w <- WORD
    check w & 3 == I and w // 128 == token
    if w & 4 goto is_open
    d <- cas WORD from w to w - I
    if d == 0 goto release
    x <- REL[I] then 1
    tell BELL 1
    goto over
  is_open:
    if w & 8 goto is_waited_for
    d <- cas WORD from w to w - I
    if d == 0 goto release
    goto over
  is_waited_for:
    {_first("next")}
    p <- PHASE[first]
    if first and (p == 3 or p == 4) goto hand_over
    d <- cas WORD from w to (w - I) & (-1 if first else -9)
    if d == 0 goto release
    if p == 2 and first goto over
    {_rouse("after")}
    goto over
  hand_over:
    d <- cas WORD from w to w - I + 128 + first
    if d == 0 goto release
    p <- PHASE[first]
    if p == 3 goto over
    {_WAKE_FIRST}
"""

ASK: Final = """
  ask:
    x <- ASK[I] then 1
    tell BELL 1
    hear GRANT[I]
    token <- TOP
    token = token + 1
    h <- HAS then h + 1
    check h == 0
    o <- TOP then token
    h <- HAS then h - 1
    x <- REL[I] then 1
    tell BELL 1
    goto over
"""

CLIENT: Final = f"""
  take:
    {TAKE}
    goto inside
    {WAIT}
  inside:
    {INSIDE}
    {RELEASE}
  over:
    round = round + 1
    if round < ROUNDS goto take
    x <- DONE[I] then 1
    tell BELL 1
    end
    {ASK}
"""

CORE: Final = """
  idle:
    hear BELL
    i = 1
  all_done:
    x <- DONE[i]
    y <- DEAD[i]
    if x or y goto is_done
    goto not_done
  is_done:
    i = i + 1
    if i <= COUNT goto all_done
    end
  not_done:
    if is_shut goto serve
    r <- RECALL
    must = r
    i = 1
  dead:
    y <- DEAD[i]
    if y == 0 goto dead_next
    g <- GONE[i]
    if g goto dead_next
    x <- GONE[i] then 1
    was_death = 1
    w <- WORD
    x <- PLACE[i]
    if w & 3 == i or x == i goto named
    goto dead_next
  named:
    must = 1
  dead_next:
    i = i + 1
    if i <= COUNT goto dead
    if must goto shut
    y <- ASK[1]
    must = must | y
    y <- ASK[2]
    must = must | y
    y <- ASK[3]
    must = must | y
    if must goto shut
    if was_death == 0 goto idle
    was_death = 0
    goto wake_all
  shut:
    w <- WORD then w & -5               #SHUT
    is_shut = 1
    holder = w & 3
    x <- PLACE[1] then 0
    x <- PLACE[2] then 0
    x <- PLACE[3] then 0
  wake_all:
    x <- WAKE[1] then x + 1               #WAKEALL
    wake WAKE[1]                          #WAKEALL
    x <- WAKE[2] then x + 1               #WAKEALL
    wake WAKE[2]                          #WAKEALL
    x <- WAKE[3] then x + 1               #WAKEALL
    wake WAKE[3]                          #WAKEALL
    if is_shut == 0 goto idle
  serve:
    if holder == 0 goto grant
    y <- DEAD[holder]
    if y goto buried
    y <- REL[holder]
    if y == 0 goto idle
    x <- REL[holder] then 0
    holder = 0
    goto grant
  buried:
    x <- HAS then 0
    holder = 0
  grant:
    i = 1
  grant_next:
    y <- ASK[i]
    d <- DEAD[i]
    if y and d == 0 goto granted
    i = i + 1
    if i <= COUNT goto grant_next
    goto idle
  granted:
    x <- ASK[i] then 0
    holder = i
    x <- GRANT[i] then 1
    y <- DEAD[i]
    if y goto serve
    goto idle
"""

RECALLER: Final = """
    x <- RECALL then 1
    tell BELL 1
    end
"""


def client(member: int, *, count: int, rounds: int = 1, gives_up: int = 0, is_at_once: bool = False) -> str:
    """The program of a member; as :func:`filled`."""
    return filled(CLIENT, member, count=count, rounds=rounds, gives_up=gives_up, is_at_once=is_at_once)


def filled(
    text: str, member: int, *, count: int, rounds: int = 1, gives_up: int = 0, is_at_once: bool = False
) -> str:
    """A program's text for one of so many members.

    Args:
        gives_up: which of them does not wait.
        is_at_once: the queue is looked through in one step.
    """
    for label in re.findall(r"FIRST_(\w+)", text):
        scan = "    first <- first\n" if is_at_once else _FIRST.replace("LABEL", label)
        text = text.replace(f"FIRST_{label}\n", scan)
    text = text.replace("GIVES_UP", str(gives_up)).replace("COUNT", str(count)).replace("ROUNDS", str(rounds))
    lines = []
    for line in text.splitlines():
        words = [str(member) if word == "I" else word for word in _split(line)]
        lines.append("".join(words))
    return "\n".join(lines)


def _split(line: str) -> list[str]:
    """A line's words, and what is between them."""
    out, word = [], ""
    for char in line:
        if char.isalnum() or char in "_#":
            word += char
            continue
        out += [word, char]
        word = ""
    return [*out, word]


def core(*, count: int) -> str:
    return CORE.replace("COUNT", str(count))
