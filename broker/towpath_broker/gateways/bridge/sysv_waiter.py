"""A helper process that waits in msgrcv(2) or msgsnd(2) for the bridge. Not for people.

Theory of operation
    A System V message queue has no descriptor that an event loop could wait for. Looking again and again
    costs an idle machine its rest, and a thread that waits cannot be ended without losing what it has just
    taken. So the waiting is a process's: it is asked for one thing at a time, by its standard input, and
    sleeps in the kernel until that is done. It is asked only when the bridge itself found the queue empty
    (or full), so it is not on the way of a busy queue.

    To end it: SIGTERM. It interrupts the wait, and if a message came just before, the message is answered
    first; a signal that came just before the wait began is followed by another one. Should the bridge die,
    the kernel kills this process with it, so that it takes nothing for nobody.

Invariants
    At most one message is in its hands.

Protocol, little-endian: ``r`` i64 type, answered ``m`` i64 type u32 bytes payload; ``s`` i64 type u32 bytes
payload, answered ``o``; either may be answered ``x`` (the queue is gone) or ``e`` u32 bytes text.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
from typing import Final

TYPE: Final = struct.Struct("<q")
SIZE: Final = struct.Struct("<I")
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> int:
    """Serve one queue.

    Args:
        arguments: the queue's key, its id, the largest message in bytes, and the bridge's process id.
    """
    import sysv_ipc

    key, identifier, bytes_max, parent = map(int, arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 0  # it died before it could matter
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked, answers = open(0, "rb"), open(1, "wb")  # noqa: SIM115 (the process's own)
    queue = None
    while not stopping and (what := asked.read(1)):
        (kind,) = TYPE.unpack(asked.read(TYPE.size))
        payload = asked.read(*SIZE.unpack(asked.read(SIZE.size))) if what == b"s" else b""
        try:
            if queue is None:
                queue = sysv_ipc.MessageQueue(key, 0, max_message_size=bytes_max)
            if queue.id != identifier:
                answers.write(b"x")
            elif what == b"s":
                queue.send(payload, True, type=kind)
                answers.write(b"o")
            else:
                data, came = queue.receive(True, type=kind)
                answers.write(b"m" + TYPE.pack(came) + SIZE.pack(len(data)) + data)
        except sysv_ipc.ExistentialError:
            answers.write(b"x")
        except (sysv_ipc.Error, OSError, ValueError) as error:
            if stopping:
                return 0
            if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EIDRM):
                answers.write(b"x")
                answers.flush()
                continue
            text = str(error).encode()
            answers.write(b"e" + SIZE.pack(len(text)) + text)
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
