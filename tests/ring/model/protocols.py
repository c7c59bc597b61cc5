"""The ring's protocols as programs for ``machine``: the same stores, fences and looks, in the same order.

A ring here has room for CAPACITY messages of two words each (A and B: a torn one has two that differ),
numbered from 1; a position is a number of messages. ``CURSOR`` is a position, plus 1 where it may be unset.
Lines that are tagged are those that a seeded fault leaves out.
"""

from __future__ import annotations

from typing import Final

CAPACITY: Final = 2

MEMORY: Final = {f"{word}{slot}": 0 for word in "AB" for slot in range(CAPACITY)}

WAKE_READER: Final = """
    fence                               #PUBLISH
    s <- SLEEPING
    if s == 0 goto asleep_none
    if s == rung goto rung_before
    rung = s
    rings = 0
  rung_before:
    if rings >= 2 goto asleep_none
    rings = rings + 1
    wake TAIL
  asleep_none:
"""

SLEEP_READER: Final = """
  drowse:
    epoch = epoch + 1
    SLEEPING := epoch
    fence                               #SLEEP
    t <- TAIL
    if t > seen goto awake
    sleep TAIL while seen
    goto drowse
  awake:
    SLEEPING := 0
    goto look
"""

# ---- overflow = block: both sides sleep on each other ----

BLOCK_WRITER: Final = f"""
  next:
    n = n + 1
  room:
    c <- CURSOR
    if n - c <= {CAPACITY} goto write
    WAITS := n - {CAPACITY}
    fence                               #ROOM
    d <- CURSOR
    if d != c goto enough
    sleep CURSOR while c
  enough:
    WAITS := 0
    goto room
  write:
    A[(n - 1) % {CAPACITY}] := n
    B[(n - 1) % {CAPACITY}] := n
    TAIL release= n
    {WAKE_READER}
    if n < MESSAGES goto next
    end
"""

BLOCK_READER: Final = f"""
  look:
    t <- TAIL
    if t > seen goto take
    {SLEEP_READER}
  take:
    a <- A[seen % {CAPACITY}]
    b <- B[seen % {CAPACITY}]
    seen = seen + 1
    check a == seen and b == seen
    if seen < t goto take
    CURSOR release= seen
    fence                               #COMMIT
    w <- WAITS
    if w == 0 or before >= w or seen < w goto committed
    wake CURSOR
  committed:
    before = seen
    if seen < MESSAGES goto look
    end
"""

COMMIT_BEFORE_COPY: Final = BLOCK_READER.replace("  take:\n", "  take:\n    CURSOR release= t\n")
TAIL_BEFORE_RECORD: Final = BLOCK_WRITER.replace("  write:\n", "  write:\n    TAIL release= n\n")
RUNG_ONCE: Final = BLOCK_WRITER.replace("rings >= 2", "rings >= 1")

# ---- the same by doorbells, for event loops ----

BELL_WRITER: Final = (
    BLOCK_WRITER.replace("sleep CURSOR while c", "hear ROOMBELL")
    .replace("wake TAIL", "tell BELL 1")
    .replace("rings >= 2", "rings >= 1")
)

BELL_READER: Final = BLOCK_READER.replace("sleep TAIL while seen", "hear BELL").replace(
    "wake CURSOR", "tell ROOMBELL 1"
)

# ---- overflow = drop ----

DROP_WRITER: Final = f"""
  next:
    n = n + 1
    if n <= {CAPACITY} goto write
    OLDEST := n - {CAPACITY}            #OLDEST
    order stores                        #RELEASE
  write:
    A[(n - 1) % {CAPACITY}] := n
    B[(n - 1) % {CAPACITY}] := n
    TAIL release= n
    wake TAIL
    if n < MESSAGES goto next
    end
"""

OLDEST_AFTER_RECORD: Final = DROP_WRITER.replace(
    f"    OLDEST := n - {CAPACITY}            #OLDEST\n    order stores                        #RELEASE\n", ""
).replace("    TAIL release= n\n", f"    OLDEST := max(n - {CAPACITY}, 0)\n    TAIL release= n\n")

DROP_READER: Final = f"""
  look:
    t <- TAIL
    if t > seen goto take
    sleep TAIL while seen
    goto look
  take:
    a <- A[seen % {CAPACITY}]
    b <- B[seen % {CAPACITY}]
    o = 0
    o <- OLDEST                         #OVERRUN
    if o > seen goto lapped
    seen = seen + 1
    received = received + 1
    check a == seen and b == seen
    if seen < MESSAGES goto look
    end received missed
  lapped:
    missed = missed + o - seen
    seen = o
    goto look
"""

# ---- attaching: a reader comes while the writer, not knowing of it, goes on ----

ATTACH_CORE: Final = """
    GEN := 1
    fence                               #ANNOUNCE
    t <- TAIL
    ANNOUNCED := t
    order stores
    tell HEARD 1
    end
"""

LATE_CORE: Final = """
    GEN := 1
    fence
    tell HEARD 1
    end
"""

ATTACH_WRITER: Final = f"""
  next:
    n = n + 1
    g <- GEN
    if g == installed goto room
    attached = 1
    pin = previous
    installed = g
    fence
    s <- SLEEPING
    if s == 0 goto room
    rung = s
    rings = 1
    wake TAIL
  room:
    if attached == 0 goto write
    word <- CURSOR
    c = word - 1
    if word > 0 goto standing
    c = pin
  standing:
    if n - c <= {CAPACITY} goto write
    WAITS := n - {CAPACITY}
    fence                               #ROOM
    d <- CURSOR
    if d != word goto enough
    sleep CURSOR while word
  enough:
    WAITS := 0
    goto room
  write:
    A[(n - 1) % {CAPACITY}] := n
    B[(n - 1) % {CAPACITY}] := n
    previous = n - 1
    TAIL release= n
    fence                               #PUBLISH
    g <- GEN                            #NEWS
    if g == installed goto known
    wake TAIL
    goto told
  known:
    if attached == 0 goto told
    s <- SLEEPING
    if s == 0 goto told
    if s == rung goto rung_before
    rung = s
    rings = 0
  rung_before:
    if rings >= 2 goto told
    rings = rings + 1
    wake TAIL
  told:
    if n < MESSAGES goto next
    end
"""

NO_PIN: Final = ATTACH_WRITER.replace("    c = pin\n", "    goto write\n")

ATTACH_READER: Final = f"""
    hear HEARD
    fence
    seen <- ANNOUNCED
    CURSOR release= seen + 1
    fence
    w <- WAITS
    if w == 0 goto begun
    wake CURSOR
  begun:
    before = seen
    if seen == MESSAGES goto done
  look:
    t <- TAIL
    if t > seen goto take
    {SLEEP_READER}
  take:
    a <- A[seen % {CAPACITY}]
    b <- B[seen % {CAPACITY}]
    seen = seen + 1
    check a == seen and b == seen
    if seen < t goto take
    CURSOR release= seen + 1
    fence                               #COMMIT
    w <- WAITS
    if w == 0 or before >= w or seen < w goto committed
    wake CURSOR
  committed:
    before = seen
    if seen < MESSAGES goto look
  done:
    end
"""

LATE_READER: Final = ATTACH_READER.replace("    seen <- ANNOUNCED\n", "    seen <- TAIL\n")

# ---- attaching with history: the reader begins at what the writer may be about to overwrite ----

HISTORY_WRITER: Final = (
    ATTACH_WRITER.replace("    pin = previous\n", "    pin = max(earlier, oldest)\n")
    .replace("    c = word - 1\n", "    c = max(word - 1, oldest)\n")
    .replace(
        "  write:\n",
        f"""  write:
    if n <= {CAPACITY} goto in_place
    oldest = n - {CAPACITY}
    history = max(history, oldest)
    HISTORY release= history
    OLDEST release= oldest              #OLDEST
    order stores
  in_place:
""",
    )
    .replace(
        "    fence                               #PUBLISH\n",
        """    earlier = now
    history = max(n - REACH, oldest)
    now = history
    HISTORY release= history
    fence                               #PUBLISH
""",
    )
)

HISTORY_READER: Final = (
    ATTACH_READER.replace(
        "    seen <- ANNOUNCED\n", "    seen <- HISTORY\n    until <- TAIL\n    check seen <= until\n"
    )
    .replace(
        "    seen = seen + 1\n",
        "    o = 0\n    o <- OLDEST       #OVERRUN\n    if o > seen goto lapped\n    seen = seen + 1\n",
    )
    .replace(
        "  done:\n",
        """    goto done
  lapped:
    check seen < until
    h <- HISTORY
    check h >= o
    seen = h
    CURSOR release= seen + 1
    fence
    w <- WAITS
    if w == 0 or before >= w or seen < w goto resumed
    wake CURSOR
  resumed:
    before = seen
    if seen < MESSAGES goto look
  done:
""",
    )
)
