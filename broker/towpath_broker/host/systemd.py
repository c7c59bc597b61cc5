"""What systemd wants to hear and what it hands over: READY, STATUS, RELOADING, STOPPING, activated sockets.

Theory of operation
    Under ``Type=notify`` systemd sets NOTIFY_SOCKET and waits for READY=1; without it every call here does
    nothing, so that the daemon runs in the foreground like any program. The messages go through
    systemd-python, see sd_notify(3). An activated socket is the first descriptor after standard error,
    announced by LISTEN_PID and LISTEN_FDS, see sd_listen_fds(3).

Invariants
    Children are never taken for the daemon: :data:`ENVIRONMENT` names what they must not inherit.

Not here: the watchdog, and the store for descriptors (both come later).
"""

from __future__ import annotations

import importlib
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping
from typing import Final

from towpath.errors import InvalidConfiguration

ENVIRONMENT: Final = (
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "MAINPID",
)
"""Variables that are between systemd and this process only."""
_FIRST_DESCRIPTOR: Final = 3
_HINT: Final = "install it: pip install 'towpath[systemd]' (needs libsystemd-dev, pkg-config and gcc)"


class Notifier:
    """Tells systemd how the daemon fares; silent where systemd is not listening."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """
        Raises:
            InvalidConfiguration: systemd waits for us, and systemd-python is not installed.
        """
        self._notify: Callable[[str], object] | None = None
        if environment.get("NOTIFY_SOCKET"):
            try:
                # By name, because it has no types and may not be there.
                self._notify = importlib.import_module("systemd.daemon").notify
            except ImportError:
                raise InvalidConfiguration(
                    "NOTIFY_SOCKET is set, but the package systemd-python is not installed", hint=_HINT
                ) from None

    def _tell(self, *lines: str) -> None:
        if self._notify is not None:
            self._notify("\n".join(lines))

    def ready(self, status: str) -> None:
        """Starting, or reloading, is done."""
        self._tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._tell(f"STATUS={text}")

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._tell(
            "RELOADING=1",
            f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}",
            "STATUS=Reloading the configuration",
        )

    def stopping(self) -> None:
        """The daemon was told to end."""
        self._tell("STOPPING=1", "STATUS=Stopping")


def activated_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """Take the listening socket that systemd handed over.

    Returns:
        The socket, ours to close, or None when there is none.

    Raises:
        InvalidConfiguration: there are several, or it is not a listening UNIX stream socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or int(count) == 0:
        return None
    hint = "towpath.socket needs exactly one ListenStream= with a path"
    if int(count) != 1:
        raise InvalidConfiguration(f"systemd handed over {count} sockets; one is expected", hint=hint)
    if not stat.S_ISSOCK(os.fstat(_FIRST_DESCRIPTOR).st_mode):
        raise InvalidConfiguration("what systemd handed over is not a socket", hint=hint)
    os.set_inheritable(_FIRST_DESCRIPTOR, False)
    listener = socket.socket(fileno=_FIRST_DESCRIPTOR)
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not is_listening:
        raise InvalidConfiguration(
            "the socket that systemd handed over is not a listening UNIX stream socket", hint=hint
        )
    listener.setblocking(False)
    return listener
