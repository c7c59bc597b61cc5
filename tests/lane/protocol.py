"""The lock lane's two handshakes as programs of the ring's model checker (``tests.ring.model.machine``).

Theory of operation
    The client says ROUNDS things, one after the other, and waits for each answer. What it says while the core
    sleeps, or may, it says by the socket too (``tell SOCKET``), which is all that wakes a core. A line with a
    tag is one without which something goes wrong.

Not here: who is killed (``lane_test.c``), what is asked.
"""

from __future__ import annotations

from typing import Final

MEMORY: Final = {
    "CELL": 0,
    "TAIL": 0,
    "AWAKE": 1,
    "SOCKET": 0,
    "TOKEN": 0,
    "ANSWER": 0,
    "SLEEPS": 0,
}

CLIENT: Final = """
    round = 0
next:
    round = round + 1
    CELL := round
    TAIL release= round             #RELEASE
    fence                           #SAID
    awake <- AWAKE
    if awake == 1 goto said
    tell SOCKET 1                   #RING
said:
    answer <- ANSWER
    if answer == round goto got
    SLEEPS := 1                     #SLEEPS
    fence
again:
    answer <- ANSWER
    if answer == round goto got
    sleep ANSWER while round - 1
    goto again
got:
    token <- TOKEN
    check token == round
    SLEEPS := 0
    if round < ROUNDS goto next
    end
"""

CORE: Final = """
    seen = 0
look:
    tail <- TAIL
    if tail != seen goto take
    AWAKE := 0                      #REST
    fence                           #RESTING
    tail <- TAIL                    #LOOK AGAIN
    if tail != seen goto attend
    hear SOCKET
attend:
    AWAKE := 1
    goto look
take:
    cell <- CELL
    check cell == tail
    seen = tail
    TOKEN := cell
    ANSWER release= cell            #ANSWERED
    fence                           #ANSWERING
    sleeps <- SLEEPS
    if sleeps == 0 goto done
    wake ANSWER                     #WAKE
done:
    if seen < ROUNDS goto look
    end
"""
