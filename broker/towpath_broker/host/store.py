"""Descriptors that must outlive a child: the supervisor keeps them, and gives them to the next one.

Theory of operation
    Most of what the core knows comes back from the living, who hold it (DESIGN.md, decision 5). What has no
    living holder is the core's own memory: the rings that it writes and the control pages with how far it
    has read. So the core stores their descriptors here as it makes them, and those of whoever is at the
    other end of them, so that its successor can go on before anyone has come back. The bridge does the same
    with what its FIFOs have in them (gateways/bridge/keeping.py). Under systemd the supervisor in turn has
    systemd keep them all, so that they outlive the supervisor too: a restart of the service finds what a core
    that is killed would.

    Packets, all with names (host/packets.py). From the child: ``store`` with one descriptor, which takes the
    place of an earlier one of that name; ``unstore``. To a child that starts, before anything else:
    ``stored`` with up to ``STORED_PER_PACKET`` names and their descriptors, as often as needed, then
    ``stored_end``. What it sent before it was killed counts: it is read to the end.

Invariants
    At most ``STORE_MAX`` descriptors, of names up to ``STORE_NAME_CHARS_MAX`` characters. What is refused is
    closed, and told in the log. systemd has what is here, as far as it can (host/systemd.py).

Not here: what names mean (rings/kept.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from .packets import DESCRIPTORS_MAX, Outbox, Packet, close_all
from .systemd import Notifier

STORE_MAX: Final = 8192
"""Descriptors kept; what comes beyond it is not kept, and is lost when the core is killed."""
STORE_NAME_CHARS_MAX: Final = 400
STORED_PER_PACKET: Final = DESCRIPTORS_MAX


class Store:
    """Names and descriptors of one child.

    Args:
        owner: the child, by which systemd tells its descriptors from others'; no slash.
        notifier: systemd, or that there is none.
        kept: what systemd handed over, of every owner; of it, this one's.
    """

    def __init__(self, owner: str, notifier: Notifier, kept: Mapping[str, int] | None = None) -> None:
        self._prefix = f"{owner}/"
        self._notifier = notifier
        self._descriptors: dict[str, int] = {}
        for name, descriptor in (kept or {}).items():
            if name.startswith(self._prefix):
                self._descriptors[name.removeprefix(self._prefix)] = descriptor
                notifier.was_kept(name)

    def __len__(self) -> int:
        return len(self._descriptors)

    def put(self, packet: Packet, descriptors: Sequence[int]) -> str:
        """Take a ``store`` packet; its descriptors are the store's from here on, kept or closed.

        Returns:
            Why it is not kept, or not by systemd; empty when all is well.
        """
        name = packet.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= STORE_NAME_CHARS_MAX or len(descriptors) != 1:
            close_all(descriptors)
            return "a store packet without a usable name, or without its one descriptor"
        if name not in self._descriptors and len(self._descriptors) >= STORE_MAX:
            close_all(descriptors)
            return f"the store has {STORE_MAX} descriptors: {name} is not kept"
        self.remove(name)
        self._descriptors[name] = descriptors[0]
        if not self._notifier.keep(self._prefix + name, descriptors[0]):
            return f"systemd cannot keep {name}: a restart of the service loses it"
        return ""

    def remove(self, name: object) -> None:
        """Close what has a name; nothing to do where nothing has it."""
        descriptor = self._descriptors.pop(name, None) if isinstance(name, str) else None
        if descriptor is not None:
            self._notifier.let_go(f"{self._prefix}{name}")
            os.close(descriptor)

    def hand_out(self, outbox: Outbox) -> bool:
        """Tell a new core all that is kept, and that this is all. Returns False when it could not be sent."""
        was_sent = all(outbox.send(packet, descriptors) for packet, descriptors in self._packets())
        return outbox.send({"type": "stored_end"}) and was_sent

    def _packets(self) -> Iterator[tuple[Packet, list[int]]]:
        names = list(self._descriptors)
        for start in range(0, len(names), STORED_PER_PACKET):
            some = names[start : start + STORED_PER_PACKET]
            # The outbox closes what it has sent; the next core wants them too.
            yield {"type": "stored", "names": some}, [os.dup(self._descriptors[name]) for name in some]

    def close(self) -> None:
        """Close all here. What systemd has it keeps."""
        close_all(list(self._descriptors.values()))
        self._descriptors.clear()
