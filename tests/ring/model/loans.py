"""The protocol of loans as programs for ``machine``: who may look at a piece of the slab, and when it is used
again.

A slab here has PIECES of two words each (A and B: one that was used again while somebody looks has words
that are not its message's), for messages numbered from 1; a position is a number of messages. There are two
readers, X and Y, each of which holds every message while it looks at it. ``PLACE`` is what a record says.
Lines that are tagged are those that a seeded fault leaves out.

Where messages may be dropped, cursors are not waited for; who holds is spared all the same. A reader that
dies says so to the core (its socket does), which withdraws its page: the writer looks at it no more.
"""

from __future__ import annotations

from typing import Final

_PIECES_MAX: Final = 2
_MESSAGES_MAX: Final = 4
MEMORY: Final = {
    **{f"{word}{piece}": 0 for word in "AB" for piece in range(_PIECES_MAX)},
    **{f"PLACE{number}": 0 for number in range(1, _MESSAGES_MAX + 1)},
    **dict.fromkeys(("TAIL", "OLDEST", "WANTED", "RELEASED", "DEAD", "GONE_X"), 0),
    **{f"{word}_{reader}": 0 for word in ("CURSOR", "HELD") for reader in "XY"},
}

WRITER: Final = """
  next:
    n = n + 1
  pick:
    piece = 0
    old = first
  try:
    if old == 0 goto free
    gone <- GONE_X
    cursor <- CURSOR_X                  #CURSORS
    if gone == 0 and cursor < old goto other  #CURSORS
    cursor <- CURSOR_Y                  #CURSORS
    if cursor < old goto other          #CURSORS
    oldest = max(oldest, old)
    OLDEST release= oldest
    fence                               #REUSE
    held <- HELD_X                      #HOLDS
    if gone == 0 and held == old goto other  #HOLDS
    held <- HELD_Y                      #HOLDS
    if held == old goto other           #HOLDS
  free:
    wanted = 0
    WANTED := 0
    A[piece] := n
    B[piece] := n
    PLACE[n] := piece
    TAIL release= n
    wake TAIL
    if piece == 1 goto in_second
    first = n
    goto published
  in_second:
    second = n
  published:
    if n < MESSAGES goto next
    end
  other:
    piece = piece + 1
    old = second
    if piece < PIECES goto try
    if wanted == 1 goto wait
    wanted = 1
    WANTED := 1
    fence                               #LOANS
    goto pick
  wait:
    hear RELEASED
    wanted = 0
    goto pick
"""

READER_X: Final = """
  look:
    t <- TAIL
    if t > seen goto take
    sleep TAIL while seen
    goto look
  take:
    p <- PLACE[seen + 1]
    HELD_X release= seen + 1
    fence                               #HOLD
    o <- OLDEST
    if o > seen goto lapped
    seen = seen + 1
    CURSOR_X release= seen
    fence                               #COMMIT
    w <- WANTED
    if w == 0 goto hold
    tell RELEASED 1
  hold:
    a <- A[p]
    b <- B[p]
    check a == seen and b == seen
  let_go:
    HELD_X release= 0
    fence                               #RELEASE
    w <- WANTED
    if w == 0 goto released
    tell RELEASED 1
  released:
    if seen < MESSAGES goto look
    end
  lapped:
    check IS_DROP == 1
    seen = o
    CURSOR_X release= seen
    goto let_go
  dead:
    tell DEAD 1
    end
"""

READER_Y: Final = READER_X.replace("_X", "_Y")

CORE: Final = """
    hear DEAD
    tell GONE_X 1
    tell RELEASED 1
    end
"""


def dying(line: int, after_messages: int) -> str:
    """Reader X, which dies before the given line of what it does, once it has taken so many messages; or at
    its end, where it does not come by that line again.

    Raises:
        IndexError: it does not do so much.
    """
    lines = READER_X.splitlines()
    steps = [
        i for i, each in enumerate(lines[: lines.index("  lapped:")]) if each.strip() and each[-1] != ":"
    ]
    lines.insert(steps[line], f"    if seen >= {after_messages} goto dead")
    return "\n".join(lines).replace("goto look\n    end\n", "goto look\n    goto dead\n")


STEPS: Final = READER_X[: READER_X.index("  lapped:")].count("\n    ")
