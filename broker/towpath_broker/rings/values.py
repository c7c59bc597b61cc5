"""The core's value pages: what local readers of state channels look at.

Theory of operation
    A page is made when somebody local first attaches to a state's value, and written whenever the data plane
    says that the value has changed (``ShowValue``), which it does only after the change is on disk, where it
    is to be. Whoever attached has the page mapped read-only and reads it without asking
    (``clients/c/towpath_value.h``).

    Pages die with the core. Their readers go on with what they see, until they have attached to the next
    core's.

Invariants
    A page shows what the data plane said last. There are at most ``PAGES_MAX``; who would need one more is
    refused, and asks for the value instead.
"""

from __future__ import annotations

from typing import Final

from towpath import _ring, wire
from towpath.errors import LimitExceeded, host_limits
from towpath_broker.core.data.rows import StoredValue

PAGES_MAX: Final = 4096
PAGE_VALUE_BYTES: Final = 1 << 18
"""The largest value that a page takes, headers included; larger ones are asked for. Only what is touched is
paid for.
"""


class ValuePages:
    """The pages of all state channels that somebody reads."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[_ring.ValueWriter, wire.Descriptor]] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def show(self, channel: str, value: StoredValue | None) -> None:
        """Write a value to its page, where there is one. None: the channel is gone."""
        page = self._pages.get(channel)
        if page is None:
            return
        if value is None:
            del self._pages[channel]
            page[0].withdraw()
            page[0].close()
            return
        _write(page[0], value)

    def close(self) -> None:
        """Have every reader ask from now on: the core ends."""
        for page, _ in self._pages.values():
            page.withdraw()
            page.close()
        self._pages.clear()

    def share(self, channel: str, value: StoredValue) -> wire.Descriptor:
        """Return what a reader maps: the page, made now if there is none.

        Raises:
            LimitExceeded: there are as many as there may be, or the host has no descriptor left.
        """
        page = self._pages.get(channel)
        if page is None:
            if len(self._pages) >= PAGES_MAX:
                raise LimitExceeded(
                    f"{PAGES_MAX} states are read in shared memory already", hint="ask for the value instead"
                )
            with host_limits(f"the value page of {channel!r}"):
                writer = _ring.ValueWriter(PAGE_VALUE_BYTES)
                page = self._pages[channel] = writer, wire.Descriptor(writer.share())
            _write(writer, value)
        return page[1]


def _write(page: _ring.ValueWriter, value: StoredValue) -> None:
    payload = bytes(value.payload) if value.is_set else None
    page.write(value.version, value.changed_at_ns, bytes(value.headers), payload)
