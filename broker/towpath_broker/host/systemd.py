"""What systemd is told (READY, STATUS, WATCHDOG), keeps for us, and hands over: sockets and descriptors.

Theory of operation
    Under ``Type=notify`` systemd sets NOTIFY_SOCKET and waits for READY=1; without it every call here does
    nothing, so that the daemon runs in the foreground like any program. The messages go through
    systemd-python, see sd_notify(3).

    Descriptors that systemd hands over come after standard error, announced by LISTEN_PID, LISTEN_FDS and
    LISTEN_FDNAMES, see sd_listen_fds(3): the activated socket, and those that an earlier run of the daemon
    had it keep (FDSTORE=1). The latter are told by their names, which begin with ``kept/``. All their names
    come in one environment variable, which the kernel bounds (MAX_ARG_STRLEN, 131,072 bytes: beyond it the
    service could not be started at all), so there is a bound here too.

    systemd lets go of a descriptor whose other end is gone (EPOLLHUP) unless told otherwise: a FIFO that
    nobody has open just now is to be kept, so it is told (FDPOLL=0).

Invariants
    Children are never taken for the daemon: :data:`ENVIRONMENT` names what they must not inherit.
    Every descriptor that was handed over is returned or closed.

Not here: who is alive enough to say so (core_keeper.py), and what is worth keeping (store.py).
"""

from __future__ import annotations

import importlib
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

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
KEPT_PREFIX: Final = "kept/"
NAME_BYTES_MAX: Final = 255
"""Of one descriptor with systemd; its own bound."""
NAMES_BYTES_MAX: Final = 100_000
"""Of all descriptors with systemd together; see Theory of operation."""
_FIRST_DESCRIPTOR: Final = 3
_HINT: Final = "install it: pip install 'towpath[systemd]' (needs libsystemd-dev, pkg-config and gcc)"


class Notifier:
    """Tells systemd how the daemon fares; silent where systemd is not listening."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """
        Raises:
            InvalidConfiguration: systemd waits for us, and systemd-python is not installed.
        """
        self._notify: Callable[..., object] | None = None
        self._kept: set[str] = set()
        self._names_bytes = 0
        if environment.get("NOTIFY_SOCKET"):
            try:
                # By name, because it has no types and may not be there.
                self._notify = importlib.import_module("systemd.daemon").notify
            except ImportError:
                raise InvalidConfiguration(
                    "NOTIFY_SOCKET is set, but the package systemd-python is not installed", hint=_HINT
                ) from None

        self.watchdog_s = _watchdog_s(environment) if self._notify is not None else 0.0
        """How long systemd waits for :meth:`alive` before it ends the service; 0 when it does not."""

    @property
    def keeps(self) -> bool:
        """Whether there is a systemd that can keep descriptors."""
        return self._notify is not None

    def _tell(self, *lines: str) -> None:
        if self._notify is not None:
            self._notify("\n".join(lines))

    def alive(self) -> None:
        """The watchdog's question is answered for once more."""
        self._tell("WATCHDOG=1")

    def keep(self, name: str, descriptor: int) -> bool:
        """Have systemd keep a descriptor over a restart, in place of an earlier one of that name.

        Args:
            name: printable ASCII without a colon.
            descriptor: stays the caller's.

        Returns:
            False when it is not kept: the name cannot be one of systemd's, or there are too many.
        """
        if self._notify is None:
            return True
        self.let_go(name)
        is_possible = name.isascii() and name.isprintable() and ":" not in name
        size = _size(name)
        if not is_possible or size > NAME_BYTES_MAX or self._names_bytes + size > NAMES_BYTES_MAX:
            return False
        self.was_kept(name)
        self._notify(f"FDSTORE=1\nFDNAME={KEPT_PREFIX}{name}\nFDPOLL=0", fds=[descriptor])
        return True

    def let_go(self, name: str) -> None:
        """Have systemd forget what :meth:`keep` had it keep."""
        if name in self._kept:
            self._kept.remove(name)
            self._names_bytes -= _size(name)
            self._tell("FDSTOREREMOVE=1", f"FDNAME={KEPT_PREFIX}{name}")

    def was_kept(self, name: str) -> None:
        """systemd has this one, since an earlier run perhaps."""
        self._kept.add(name)
        self._names_bytes += _size(name)

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


def _size(name: str) -> int:
    """What a name takes in LISTEN_FDNAMES, with the colon."""
    return len(KEPT_PREFIX) + len(name) + 1


class HandedOver(NamedTuple):
    """What systemd handed over; the descriptors are the caller's to close.

    Attributes:
        listener: the activated socket; None when there is none.
        kept: what an earlier run had it keep, by name.
    """

    listener: socket.socket | None
    kept: dict[str, int]


def handed_over(environment: Mapping[str, str]) -> HandedOver:
    """Take what systemd handed over.

    Raises:
        InvalidConfiguration: there are several sockets, or it is not a listening UNIX stream socket. What was
            kept is closed.
    """
    kept: dict[str, int] = {}
    sockets: list[int] = []
    for descriptor, name in _named_descriptors(environment):
        if not name.startswith(KEPT_PREFIX):
            sockets.append(descriptor)
        elif name.removeprefix(KEPT_PREFIX) in kept:
            os.close(descriptor)
        else:
            os.set_inheritable(descriptor, False)
            kept[name.removeprefix(KEPT_PREFIX)] = descriptor
    try:
        return HandedOver(_activated_socket(sockets), kept)
    except InvalidConfiguration:
        for descriptor in kept.values():
            os.close(descriptor)
        raise


def _named_descriptors(environment: Mapping[str, str]) -> list[tuple[int, str]]:
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * (int(count) - len(names))
    return list(zip(range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)), names, strict=False))


def _activated_socket(descriptors: list[int]) -> socket.socket | None:
    if not descriptors:
        return None
    hint = "towpath.socket needs exactly one ListenStream= with a path"
    if len(descriptors) != 1:
        raise InvalidConfiguration(
            f"systemd handed over {len(descriptors)} sockets; one is expected", hint=hint
        )
    if not stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode):
        raise InvalidConfiguration("what systemd handed over is not a socket", hint=hint)
    os.set_inheritable(descriptors[0], False)
    listener = socket.socket(fileno=descriptors[0])
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not is_listening:
        raise InvalidConfiguration(
            "the socket that systemd handed over is not a listening UNIX stream socket", hint=hint
        )
    listener.setblocking(False)
    return listener


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """How long the watchdog waits for this process; 0 when there is none. See sd_watchdog_enabled(3)."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if is_ours and microseconds.isdecimal() else 0.0
