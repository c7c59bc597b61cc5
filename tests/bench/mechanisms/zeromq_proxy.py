"""A broker of two sockets and ``zmq.proxy``, which forwards in C: ``python -m ... FRONT_PORT BACK_PORT``.

With ``XPUB_NODROP`` nothing is dropped: a full subscriber holds up the proxy, and the proxy its publishers.
"""

from __future__ import annotations

import sys

import zmq


def main() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    back.setsockopt(zmq.XPUB_NODROP, 1)
    front.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
    back.bind(f"tcp://127.0.0.1:{sys.argv[2]}")
    zmq.proxy(front, back)


if __name__ == "__main__":
    main()
