"""Foreign senders and receivers of message queues, killed again and again: the same for every kind of queue.

The programs are those of ``foreign``: a sender sends ``NUMBER ...`` from 0 on, a receiver prints a line for
each message, whose third word is the number.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.bridge import foreign
from tests.bridge.rig import Rig, within

TIMES = 100


def assert_each_sender_in_order(published: Sequence[bytes], message_bytes: int) -> None:
    """What each sender had sent before it died came, whole and in order; each begins at 0."""
    expected = 0
    for payload in published:
        number = int(payload.split()[0])
        assert number in (expected, 0)
        assert len(payload) == message_bytes
        expected = number + 1


async def kill_receivers(rig: Rig, program: str, queue: str) -> None:
    """Let receivers take messages that the binding sends, and kill each.

    One that dies takes with it what it had just taken, at most one message each time.
    """
    sent, seen = 0, list[int]()
    for _ in range(TIMES):
        if len(rig.carrier.waiting) < 10_000:  # more than a receiver can take before it is killed
            rig.carrier.send([b"%d ." % number for number in range(sent, sent + 10_000)])
            sent += 10_000
        receiver = await foreign.start(program, queue, "1000000", reads=True)
        assert receiver.stdout is not None
        lines = [await within(receiver.stdout.readline()) for _ in range(20)]
        receiver.kill()
        lines += (await within(receiver.stdout.read())).splitlines()
        await receiver.wait()
        seen += [int(line.split()[2]) for line in lines]
    assert seen == sorted(set(seen))
    assert seen[-1] + 1 - len(seen) <= TIMES
    assert rig.tally.refused == 0
