"""Shared locks in the lock page as programs: clients/c/towpath_lock_readers.h, beside who has it exclusively.

One lock, and the word of ``protocol``. Members are 1 to 3; a ``CELL`` is packed as ``member + 4 * tokens``,
and there are two for three members. ``CELL0`` is the core's own, in which it holds the lock shared still when
it gives it out. ``IN`` says who is inside, and by what: ``2 * token``, and 1 more where that is exclusive; 1
and 2 are the core's own grants. What is to be shown is that nobody is ever inside with one who has it
exclusively, that no two have one token, that who has it exclusively has a newer one than all before, and that
everybody comes to the end.

The core is told to look by ``BELL`` (a death, a request, or that it shall take the lock back: ``RECALL``). It
takes the lock back, grants by itself to who asks, and gives it out again, ``reopens`` times, when nobody
waits and nobody has it who took it in the page. Lines that are tagged are those that a seeded fault leaves
out.
"""

from __future__ import annotations

from typing import Final

from . import protocol

MEMBERS: Final = protocol.MEMBERS
CELLS: Final = 2

MEMORY: Final = {
    "WORD": 4,
    "BASE": 1,
    "NEXT": 0,
    "TOP": 0,
    "LAST": 0,
    "RECALL": 0,
    "BELL": 0,
    **{
        f"{name}{member}": 0
        for name in ("PLACE", "TICKET", "PHASE", "WAKE", "CELL", "GONE", "DEAD", "ASK", "REL", "DONE")
        for member in range(MEMBERS + 1)
    },
    **{f"{name}{member}": 0 for name in ("GRANT", "IN") for member in range(MEMBERS + 1)},
}

_TAKE: Final = """
    w <- WORD
    if w & 4 == 0 goto ask
    if w & 3 goto held
    if w & 16 == 0 goto unread
    x <- CELL[0]
    if x goto ask
    x <- CELL[1]
    if x goto ask
    x <- CELL[2]
    if x goto ask
  unread:
    d <- cas WORD from w to (w & -17) + 128 + I
    if d == 0 goto take
    token = w // 128 + 1
"""

_READ: Final = """
    w <- WORD
    if w & 4 == 0 or w & 3 or w & 8 goto ask
    e = 0
    r = 0
    p = 1
    d <- cas CELL[1] from 0 to I                #CLAIM
    if d goto claimed                           #CLAIM
    p = 2
    d <- cas CELL[2] from 0 to I                #CLAIM
    if d == 0 goto ask                          #CLAIM
  claimed:
    e = I                                       #CLAIM
    r = 16                                      #READERS
    w <- WORD
    if w & 4 == 0 or w & 3 or w & 8 goto give_up
    b <- BASE
    d <- cas WORD from w to (w | r) + 128
    if d == 0 goto claimed
    token = w // 128 + 1
    d <- cas CELL[p] from e to I + 4 * token
    if d == 0 goto ask
    w <- WORD                                   #VERIFY
    if w & 4 == 0 goto deny                     #VERIFY
    x <- CELL[p]                                #AGAIN
    if x != I + 4 * token goto ask              #AGAIN
"""

_READ_END: Final = """
    d <- cas CELL[p] from I + 4 * token to 0
    check d
    w <- WORD                                   #TELL
    if w & 4 goto over                          #TELL
    x <- REL[I] then 2 * (16 * b + token)       #TELL
    tell BELL 1                                 #TELL
    goto over
  deny:
    d <- cas CELL[p] from I + 4 * token to 0
    x <- REL[I] then 2 * (16 * b + token)       #DENY
    tell BELL 1                                 #DENY
    goto ask
  give_up:
    d <- cas CELL[p] from e to 0
    goto ask
"""

_RELEASE: Final = protocol.RELEASE.replace("x <- REL[I] then 1", "x <- REL[I] then 2 * (16 * b + token) + 1")


def _inside(member: int, what: str, others: str) -> str:
    """Be inside, by ``what``; of each other ``y`` that is alive, ``others`` holds."""
    lines = [f"x <- IN[{member}] then {what}"]
    for other in range(1, MEMBERS + 1):
        if other != member:
            lines += [f"y <- IN[{other}]", f"g <- DEAD[{other}]", f"check g or {others}"]
    return "\n".join([*lines, f"x <- IN[{member}] then 0"])


def _ask(member: int, mode: int) -> str:
    """Have the core grant it: 1 exclusively, 2 shared."""
    return f"""
  ask:
    x <- ASK[I] then {mode}
    tell BELL 1
    hear GRANT[I]
    {_inside(member, str(mode), "y == 0" if mode == 1 else "y & 1 == 0")}
    x <- REL[I] then {mode}
    tell BELL 1
    goto over
"""


_END: Final = """
  over:
    round = round + 1
    if round < ROUNDS goto take
    x <- DONE[I] then 1
    tell BELL 1
    end
"""


def writer(member: int, *, count: int, rounds: int = 1, is_waiting: bool = False) -> str:
    """The program of a member that takes the lock exclusively.

    Args:
        is_waiting: in the page, where somebody else has it so; else at the core.
    """
    text = f"""
  take:
    {_TAKE}
    goto inside
    {protocol.WAIT if is_waiting else "held:" + chr(10) + "goto ask"}
  inside:
    b <- BASE
    o <- TOP
    check 16 * b + token > o
    {_inside(member, "2 * (16 * b + token) + 1", "y == 0")}
    x <- TOP then 16 * b + token
    x <- LAST then 16 * b + token
    {_RELEASE}
    {_END}
    {_ask(member, 1)}
"""
    # Who waits and finds the lock free takes it as ever.
    again = "d <- cas WORD from w | 8 to (w | 8) + 128 + I\n    if d goto leave\n    goto wait"
    found = "if w & 16 == 0 goto unread_here\n" + "".join(
        f"x <- CELL[{cell}]\nif x goto ask_soon\n" for cell in range(CELLS + 1)
    )
    take_here = f"""
    {found}
  unread_here:
    d <- cas WORD from w | 8 to (w & -17 | 8) + 128 + I
    if d goto leave
    goto wait
  ask_soon:
    s = 1
    goto leave
"""
    if is_waiting:
        assert text.count(again) == 1
        text = text.replace(again, take_here)
        # It leaves the queue; if it was not handed the lock meanwhile it asks.
        text = text.replace("\n  over:\n", "\n  over:\n    if s goto ask_now\n", 1)
        for label in ("mine", "ask_or_end"):
            text = text.replace(f"  {label}:\n", f"  {label}:\n    s = 0\n", 1)
        text += "\n  ask_now:\n    s = 0\n    goto ask\n"
    return protocol.filled(text, member, count=count, rounds=rounds, is_at_once=True)


def reader(member: int, *, count: int, rounds: int = 1) -> str:
    """The program of a member that takes the lock shared."""
    by = "2 * (16 * b + token)"
    text = f"""
  take:
    {_READ}
    o <- LAST
    check 16 * b + token > o
    {_inside(member, by, f"(y & 1 == 0 and y != {by})")}
    o <- TOP then (16 * b + token if 16 * b + token > o else o)
    {_READ_END}
    {_END}
    {_ask(member, 2)}
"""
    return protocol.filled(text, member, count=count, rounds=rounds)


def core(*, count: int, reopens: int = 0) -> str:
    """The core's program. ``has_a`` and so on is what it knows a member to have, as in ``IN``."""
    names = [f"has_{'abc'[member - 1]}" for member in range(1, count + 1)]
    return f"""
  idle:
    hear BELL
    i = 1
  all_done:
    x <- DONE[i]
    y <- DEAD[i]
    if x or y goto is_done
    goto look
  is_done:
    i = i + 1
    if i <= {count} goto all_done
    end
  look:
    {"".join(_heard(member, name, "first") for member, name in enumerate(names, 1))}
    if is_shut goto serve
    if is_busy == 0 or {" or ".join(names)} goto not_drained
    is_busy = 0
    x <- CELL[0] then 0
  not_drained:
    must <- RECALL then 0
    {"".join(_death(member) for member in range(1, count + 1))}
    if must goto shut
    if was_death == 0 goto idle
    was_death = 0
    goto wake_all
  shut:
    w <- WORD then w & -5
    is_shut = 1
    is_busy = 0
    was_death = 0
    b <- BASE
    {"".join(_found(member, name) for member, name in enumerate(names, 1))}
    {"".join(f"x <- PLACE[{member}] then 0{chr(10)}" for member in range(1, count + 1))}
  wake_all:
    {"".join(_wake(member) for member in range(1, count + 1))}
    if is_shut == 0 goto idle
    {"".join(_heard(member, name, "then") for member, name in enumerate(names, 1))}
  serve:
    wanted = 0
    {"".join(_serve(member, name, names) for member, name in enumerate(names, 1))}
    if wanted or opened >= {reopens} goto idle
    if {" or ".join(f"{name} & 1 or {name} > 2" for name in names)} goto idle
    opened = opened + 1
    l <- WORD
    g = 32                                      #GENERATION
    l = (l + g) & 96
    x <- WORD then l
    x <- CELL[0] then 0
    x <- CELL[1] then 0                         #CLEAR
    x <- CELL[2] then 0                         #CLEAR
    b <- BASE
    x <- BASE then b + 1
    is_shut = 0
    if {" or ".join(names)} goto busy
    x <- WORD then l | 4
    goto idle
  busy:
    is_busy = 1
    x <- CELL[0] then 7                         #BUSY
    x <- WORD then (l | 20) + 128
    goto idle
"""


def _heard(member: int, name: str, label: str) -> str:
    """Of the dead, and of who has given back."""
    return f"""
    y <- DEAD[{member}]
    if y goto over_{member}_{label}
    x <- REL[{member}]
    if x == 0 or x != {name} goto kept_{member}_{label}
    x <- REL[{member}] then 0
  over_{member}_{label}:
    {name} = 0
  kept_{member}_{label}:
"""


def _death(member: int) -> str:
    """Whether the lock must be taken back because a member asks, or has died in it."""
    return f"""
    y <- ASK[{member}]
    must = must | y
    y <- DEAD[{member}]
    g <- GONE[{member}]
    if y == 0 or g goto alive_{member}
    x <- GONE[{member}] then 1
    was_death = 1
    w <- WORD
    x <- PLACE[{member}]
    y <- CELL[1]
    z <- CELL[2]
    if w & 3 == {member} or x or w & 16 and (y & 3 == {member} or z & 3 == {member}) goto named_{member}
    goto alive_{member}
  named_{member}:
    must = 1
  alive_{member}:
"""


def _found(member: int, name: str) -> str:
    """What a member has in the page that was shut."""
    cells = "".join(
        f"""
    x <- CELL[{cell}]
    if w & 16 == 0 or x & 3 != {member} or x // 4 == 0 goto not_{member}_{cell}
    if x // 4 > w // 128 goto not_{member}_{cell}
    {name} = 2 * (16 * b + x // 4)
  not_{member}_{cell}:
"""
        for cell in range(1, CELLS + 1)
    )
    return f"""
    if w & 3 != {member} goto not_{member}
    {name} = 2 * (16 * b + w // 128) + 1
  not_{member}:
    {cells}
"""


def _wake(member: int) -> str:
    return f"    x <- WAKE[{member}] then x + 1\n    wake WAKE[{member}]\n"


def _serve(member: int, name: str, names: list[str]) -> str:
    """Grant it to a member that asks, or note that it has to wait."""
    return f"""
    y <- ASK[{member}]
    g <- DEAD[{member}]
    if y == 0 or g goto not_served_{member}
    wanted = 1
    if {name} goto not_served_{member}
    if y == 1 and ({" or ".join(names)}) goto not_served_{member}
    if {" or ".join(f"{each} & 1" for each in names)} goto not_served_{member}
    x <- ASK[{member}] then 0
    {name} = y
    x <- GRANT[{member}] then 1
    y <- DEAD[{member}]
    if y == 0 goto serve
    {name} = 0
    goto serve
  not_served_{member}:
"""


RECALLER: Final = protocol.RECALLER
