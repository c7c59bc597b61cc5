"""What one connection asks of a channel while it is still declaring it. Pure.

Theory of operation
    A client may send without waiting for answers, and expects what it sent to be done in that order. The
    registry has an engine of its own, and so has what is in queues, states and durable topics; so a publish
    behind the declare of its queue would come to an engine that has not heard of the queue yet, and be
    refused. Therefore what names a channel whose declaring (or undeclaring) is not answered yet waits here
    until it is, and behind it whatever else names that channel, the next undeclare too. What names other
    channels does not wait.

Invariants
    Of one channel everything goes on in the order in which it came. What waits has been counted as a call, so
    that the bound on these bounds it; of a call that waits at most one cancel waits beside it.

Not here: other connections. What they ask has no order with this one's before it is answered.
"""

from __future__ import annotations

from typing import Final

from towpath.v1.frame_pb2 import Frame

from . import translate_data

_DEFINE: Final = frozenset({"declare_channel_request", "undeclare_channel_request"})
CONCERNED: Final = _DEFINE | (translate_data.REQUESTS | {"publish_request"}) - {"settle_request"}
"""The requests that have an order: those that name channels, and do not go to the registry alone."""


def _named(frame: Frame) -> list[str]:
    """The channels that a request names."""
    request = frame.WhichOneof("body") or ""
    body = getattr(frame, request)
    if request in _DEFINE:
        return [body.name]
    if request != "commit_transaction_request":
        return [body.channel]
    columns = (body.publishes, body.values, body.deletions, body.places)
    return [each.channel for column in columns for each in column]


class Definitions:
    """One connection's calls that define channels, and what waits for their ends."""

    def __init__(self) -> None:
        self._defining: dict[int, str] = {}
        self._waiting: dict[int, Frame] = {}
        self._cancels: dict[int, Frame] = {}

    def hold(self, frame: Frame, request: str) -> bool:
        """Begin a call, or keep it for later; return whether it was kept.

        Args:
            request: what the frame is; one of ``CONCERNED``.
        """
        if not self._defining and not self._waiting and request not in _DEFINE:
            return False
        waited_for = {name for each in self._waiting.values() for name in _named(each)}
        if self._begin(frame, waited_for):
            return False
        self._waiting[frame.id] = frame
        return True

    def _begin(self, frame: Frame, waited_for: set[str]) -> bool:
        """Begin a call unless what it names is defined just now, or named by what waits before it."""
        names = _named(frame)
        if not waited_for.isdisjoint(names):
            return False
        if frame.WhichOneof("body") in _DEFINE:  # the registry does these in their order
            self._defining[frame.id] = names[0]
            return True
        return not self._defining or set(self._defining.values()).isdisjoint(names)

    def hold_cancel(self, frame: Frame) -> bool:
        """Keep a cancel of what waits; return whether it is one."""
        if frame.id not in self._waiting:
            return False
        self._cancels[frame.id] = frame
        return True

    def ended(self, call: int) -> bool:
        """Note the end of a call; return whether something that waits may go on."""
        return self._defining.pop(call, None) is not None and bool(self._waiting)

    def released(self) -> list[Frame]:
        """Begin what waits for nothing any more; return it in the order in which it came, a call's cancel
        behind it.
        """
        frames: list[Frame] = []
        waited_for: set[str] = set()
        for call, frame in list(self._waiting.items()):
            if not self._begin(frame, waited_for):
                waited_for.update(_named(frame))
                continue
            frames.append(self._waiting.pop(call))
            if (cancel := self._cancels.pop(call, None)) is not None:
                frames.append(cancel)
        return frames
