"""handed_over.py serve ...: the daemon, started as systemd does: with the descriptors that it is handed.

They come, with their names, from whoever listens at $TOWPATH_TEST_MANAGER.
"""

from __future__ import annotations

import os
import socket
import sys

FIRST = 3
FAR = 1000

with socket.socket(socket.AF_UNIX) as manager:
    manager.connect(os.environ.pop("TOWPATH_TEST_MANAGER"))
    names, descriptors, _, _ = socket.recv_fds(manager, 100_000, 200)
for number, descriptor in enumerate(descriptors):
    os.dup2(descriptor, FAR + number)
    os.close(descriptor)
for number in range(len(descriptors)):
    os.dup2(FAR + number, FIRST + number)
    os.close(FAR + number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(descriptors))
os.environ["LISTEN_FDNAMES"] = names.decode()
os.execv(sys.executable, [sys.executable, "-m", "towpath", *sys.argv[1:]])
