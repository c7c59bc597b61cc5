"""A state's page on this host, and the connection that it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from towpath.v1 import frame_pb2

if TYPE_CHECKING:
    from towpath import _ring
    from towpath.protocol import ClientProtocol


class Page:
    """A mapped page.

    Attributes:
        get, look: as of :class:`towpath._ring.ValueReader`.
    """

    __slots__ = ("_protocol", "_reader", "_welcome", "get", "look")

    def __init__(self, protocol: ClientProtocol, reader: _ring.ValueReader) -> None:
        self._protocol = protocol
        self._welcome: frame_pb2.Welcome | None = protocol.welcome
        self._reader = reader
        self.get = reader.get
        self.look = reader.look

    @property
    def is_current(self) -> bool:
        """Whether the connection that it was attached on is still there."""
        return self._protocol.welcome is self._welcome

    @property
    def is_usable(self) -> bool:
        """Whether it shows what is there: it is current, or there is nobody who could change the value."""
        welcome = self._protocol.welcome
        return welcome is self._welcome or (welcome is None and not self._protocol.is_over)

    def close(self) -> None:
        """Let go of it; from then on it has nothing."""
        self._welcome = None
        self.get = self.look = _elsewhere
        self._reader.close()


def _elsewhere() -> Literal[False]:
    return False
