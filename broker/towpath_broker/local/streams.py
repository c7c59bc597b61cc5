"""What of the data plane's streams waits to be sent on one connection.

Theory of operation
    Deliveries and values are sent as the socket takes them: while over ``UNSENT_BYTES_MAX`` wait there,
    further ones wait here, as effects, which cost little: their payloads are the queue's own. What waits is
    bounded by what consumers may have unsettled, and of each watch only the newest value waits. So a client
    that reads slowly is served slowly, not cut off.

Invariants
    What belongs to one call is sent in order, and nothing after the call was cancelled.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from towpath_broker.core.data import effects as e

from . import translate, translate_data

if TYPE_CHECKING:
    from .connection import Connection

UNSENT_BYTES_MAX: Final = 1 << 20

StreamEffect = e.ConsumeStarted | e.Deliver | e.ValueItem | e.StreamEnded


class Streams:
    """Of one connection."""

    __slots__ = ("_connection", "_newest", "_waiting", "_will_be_told")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[StreamEffect] = deque()
        self._newest: dict[int, e.ValueItem] = {}  # of each watch, where one waits
        self._will_be_told = False

    def send(self, effect: StreamEffect) -> None:
        """Send an item, or have it wait."""
        if self._waiting or self._connection.unsent_bytes > UNSENT_BYTES_MAX:
            if isinstance(effect, e.ValueItem):
                is_waiting = effect.call in self._newest
                self._newest[effect.call] = effect
                if is_waiting:
                    return
            self._waiting.append(effect)
            self._ask()
        else:
            self._send_now(effect)

    def _ask(self) -> None:
        if not self._will_be_told:
            self._will_be_told = True
            self._connection.when_sent(self._sent)

    def _sent(self) -> None:
        self._will_be_told = False
        while self._waiting and self._connection.unsent_bytes <= UNSENT_BYTES_MAX:
            effect = self._waiting.popleft()
            if isinstance(effect, e.ValueItem):
                effect = self._newest.pop(effect.call)
            self._send_now(effect)
        if self._waiting:
            self._ask()

    def _send_now(self, effect: StreamEffect) -> None:
        connection = self._connection
        if connection.request_of(effect.call) is None:  # cancelled meanwhile
            return
        match effect:
            case e.ConsumeStarted():
                connection.send(translate_data.consuming_frame(effect))
            case e.Deliver():
                connection.send(translate_data.deliver_frame(effect))
            case e.ValueItem():
                connection.send(translate_data.value_frame(effect))
            case e.StreamEnded():
                connection.answer(translate.error_frame(effect.call, effect.error))
