"""A gateway process as the supervisor sees one; the table tells it what to do. Nothing of Towpath."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys

control = socket.socket(fileno=int(os.environ["TOWPATH_GATEWAY_FD"]))
table = json.loads(os.environ["TOWPATH_GATEWAY_SETTINGS"])

if table.get("ignore_sigterm"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "exit" in table:
    sys.exit(table["exit"])
if "garbage" in table:
    control.send(table["garbage"].encode())
if table.get("connect"):
    mine, theirs = socket.socketpair()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
    control.sendmsg([b'{"type":"connect"}'], rights)
    mine.sendall(b"hello")
control.send(
    json.dumps({"type": "listening", "endpoints": {"in": "here"}, "detail": table.get("detail", "")}).encode()
)
while True:
    signal.pause()
