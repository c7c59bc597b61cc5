"""Descriptors that must outlive the core: the supervisor keeps them, and gives them to the next one.

Theory of operation
    Most of what the core knows comes back from the living, who hold it (DESIGN.md, decision 5). What has no
    living holder is the core's own memory: the rings that it writes and the control pages with how far it
    has read. So the core stores their descriptors here as it makes them, and those of whoever is at the
    other end of them, so that its successor can go on before anyone has come back.

    Packets, all with names (host/packets.py). From the core: ``store`` with one descriptor, which takes the
    place of an earlier one of that name; ``unstore``. To a core that starts, before anything else:
    ``stored`` with up to ``STORED_PER_PACKET`` names and their descriptors, as often as needed, then
    ``stored_end``. What the core sent before it was killed counts: it is read to the end.

Invariants
    At most ``STORE_MAX`` descriptors, of names up to ``STORE_NAME_CHARS_MAX`` characters. What is refused is
    closed, and told in the log.

Not here: what names mean (rings/mediator.py). Under systemd the store ends with the supervisor:
``systemctl restart`` begins with an empty one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from .packets import DESCRIPTORS_MAX, Outbox, Packet, close_all

STORE_MAX: Final = 8192
"""Descriptors kept; what comes beyond it is not kept, and is lost when the core is killed."""
STORE_NAME_CHARS_MAX: Final = 400
STORED_PER_PACKET: Final = DESCRIPTORS_MAX


class Store:
    """Names and descriptors."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._descriptors)

    def put(self, packet: Packet, descriptors: Sequence[int]) -> str:
        """Take a ``store`` packet; its descriptors are the store's from here on, kept or closed.

        Returns:
            Why it is not kept; empty when it is.
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
        return ""

    def remove(self, name: object) -> None:
        """Close what has a name; nothing to do where nothing has it."""
        descriptor = self._descriptors.pop(name, None) if isinstance(name, str) else None
        if descriptor is not None:
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
        """Close all."""
        close_all(list(self._descriptors.values()))
        self._descriptors.clear()
