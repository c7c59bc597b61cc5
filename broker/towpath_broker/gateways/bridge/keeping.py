"""What must outlive the bridge: descriptors that the supervisor keeps, for the bridge that comes next.

Theory of operation
    A pipe lives as long as somebody has it open. While a bridge is replaced nobody of ours would: who writes
    into a FIFO would get EPIPE, and what is in it would be gone. So the bridge has the supervisor keep what
    matters, by packets on the control socket that it was started with, as the core does (see the daemon's
    host/store.py): ``store`` with a descriptor and a name, ``unstore``. Before anything else the supervisor
    tells what it has, in ``stored`` packets, the last being ``stored_end``.

    Where the supervisor's own keeper is systemd, a stop may be a restart: then the bridge puts things down
    at its stop as its successor can take them up (``is_restart_possible``), instead of taking them apart.

    Names are ``BINDING WHAT``. Binding ids are never used twice, so what a binding that is gone has left is
    known by its id, and let go of when the registry is current.

Invariants
    Every descriptor that comes is taken by a binding or closed. Run by hand there is no supervisor, and
    nothing is kept.

Not here: what is worth keeping (``adapters/fifo.py``, ``subscribing``).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Collection
from typing import Final

from towpath_broker.log import log

KEEPS_ENVIRONMENT: Final = "TOWPATH_GATEWAY_KEEPS"
"""Set by the supervisor where it keeps descriptors; ``restart`` where they outlive it."""
_PACKET_BYTES_MAX: Final = 160_000
_DESCRIPTORS_MAX: Final = 64


class Keeping:
    """What is kept for all bindings.

    Args:
        control: the control socket's descriptor, which stays the caller's; -1 for none.
        is_restart_possible: see the module's docstring.

    Raises:
        OSError: the supervisor is gone.
    """

    def __init__(self, control: int = -1, *, is_restart_possible: bool = False) -> None:
        self.is_restart_possible = is_restart_possible
        self._control = socket.socket(fileno=os.dup(control)) if control >= 0 else None
        self._kept: dict[str, int] = {}
        self._names: set[str] = set()
        if self._control is not None:
            self._control.setblocking(True)
            while self._receive(self._control):
                pass

    def _receive(self, control: socket.socket) -> bool:
        """Take one packet of what is kept; return whether there are more."""
        data, descriptors, _, _ = socket.recv_fds(control, _PACKET_BYTES_MAX, _DESCRIPTORS_MAX)
        if not data:
            raise ConnectionResetError("the supervisor is gone")
        packet = json.loads(data)
        for name, descriptor in zip(packet.get("names", ()), descriptors, strict=True):
            self._kept[name] = descriptor
            self._names.add(name)
        return bool(packet["type"] != "stored_end")

    @property
    def keeps(self) -> bool:
        """Whether there is anybody who keeps anything."""
        return self._control is not None

    def of(self, binding: int) -> BindingKeeping:
        """Return what concerns one binding."""
        return BindingKeeping(self, binding)

    def forget_others(self, bindings: Collection[int]) -> None:
        """Let go of what bindings have left that are no more."""
        for name in list(self._names):
            if int(name.partition(" ")[0]) not in bindings:
                self.forget(name)

    def forget_of(self, binding: int) -> None:
        """Let go of what one binding has left."""
        for name in [name for name in self._names if int(name.partition(" ")[0]) == binding]:
            self.forget(name)

    def store(self, name: str, descriptor: int) -> None:
        """Have a descriptor kept, in place of an earlier one of that name; it stays the caller's."""
        if self._control is not None:
            self._names.add(name)
            self._tell({"type": "store", "name": name}, descriptor)

    def left(self, binding: int) -> list[str]:
        """What is kept for one binding, and nobody has taken."""
        prefix = f"{binding} "
        return [name.removeprefix(prefix) for name in self._kept if name.startswith(prefix)]

    def take(self, name: str) -> int:
        """Return a descriptor that was kept, the caller's to close; -1 for none. It is kept all the same."""
        return self._kept.pop(name, -1)

    def forget(self, name: str) -> None:
        """Have a descriptor kept no longer."""
        left = self._kept.pop(name, -1)
        if left >= 0:
            os.close(left)
        if name in self._names:
            self._names.remove(name)
            self._tell({"type": "unstore", "name": name})

    def _tell(self, packet: dict[str, str], *descriptors: int) -> None:
        # The supervisor reads always, so this does not wait for long; when it is gone, so are we.
        assert self._control is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [json.dumps(packet).encode()], descriptors)
            return
        log("bridge.not_kept", level="warning", what=packet["name"])

    def close(self) -> None:
        """Close what nobody took. What is kept stays kept."""
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()
        self._names.clear()
        if self._control is not None:
            self._control.close()
            self._control = None


class BindingKeeping:
    """What is kept for one binding.

    Attributes:
        is_over: the binding is no more: nothing of it is to be kept.
        is_used: it has had something kept that is all that a successor needs.
        is_new: it was made while this bridge ran.
        note: what an adapter leaves to the next attempt in this bridge.
    """

    def __init__(self, keeping: Keeping, binding: int) -> None:
        self._keeping = keeping
        self._binding = binding
        self.is_over = False
        self.is_used = False
        self.is_new = False
        self.note = ""

    @property
    def hands_over(self) -> bool:
        """Whether, at the stop, things are to be left as a successor can take them up."""
        return self._keeping.is_restart_possible and not self.is_over

    @property
    def keeps(self) -> bool:
        """As :attr:`Keeping.keeps`."""
        return self._keeping.keeps

    def store(self, what: str, descriptor: int, *, is_all: bool = True) -> None:
        """As :meth:`Keeping.store`.

        Args:
            is_all: with this a successor has all that it needs; False for a part that is of no use if what
                the bridge has in its hands is not handed on.
        """
        self.is_used |= is_all
        self._keeping.store(f"{self._binding} {what}", descriptor)

    def store_bytes(self, what: str, data: bytes, *, is_all: bool = True) -> None:
        """Have bytes kept, in place of earlier ones; ``is_all`` as of :meth:`store`."""
        descriptor = os.memfd_create("towpath-bridge", os.MFD_CLOEXEC)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            self.store(what, descriptor, is_all=is_all)

    def left(self) -> list[str]:
        """As :meth:`Keeping.left`."""
        return self._keeping.left(self._binding)

    def take(self, what: str) -> int:
        """As :meth:`Keeping.take`."""
        return self._keeping.take(f"{self._binding} {what}")

    def take_bytes(self, what: str) -> bytes:
        """Return bytes that were kept, and have them kept no longer; none where nothing was."""
        descriptor = self.take(what)
        if descriptor < 0:
            return b""
        with open(descriptor, "rb") as file:
            file.seek(0)
            data = file.read()
        self.forget(what)
        return data

    def forget(self, what: str) -> None:
        """As :meth:`Keeping.forget`."""
        self._keeping.forget(f"{self._binding} {what}")
