"""A request to a service, as its server sees it: what both clients have in common.

Theory of operation
    A server reads requests, and answers them, in the caller's thread or on a loop; only the answering
    differs. What a request says, and whether anybody still waits for its answer, is the same for both, and
    for a request that came by rings of this host (:class:`TicketRequest`).

Not here: answering (``api``, ``aio_api``), the line in which requests wait (``answering``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from towpath import model

from .answering import Ticket

if TYPE_CHECKING:
    from towpath._message import Message


class RequestBase(ABC):
    """What a request to a service says; how it is answered, the two clients differ in.

    Attributes:
        payload: what is asked.
    """

    payload: bytes

    @property
    @abstractmethod
    def message(self) -> Message:
        """Payload and headers, with the caller's seq."""

    @property
    @abstractmethod
    def channel(self) -> str:
        """The service's name."""

    @property
    @abstractmethod
    def principal(self) -> str:
        """For whom is asked: ``uid:1000``."""

    @property
    @abstractmethod
    def is_stream(self) -> bool:
        """Whether the caller takes any number of replies."""

    @property
    @abstractmethod
    def is_idempotent(self) -> bool:
        """Whether the caller says that carrying it out twice does no harm."""

    @property
    def headers(self) -> model.Headers:
        """What travels beside it."""
        return self.message.headers

    @property
    @abstractmethod
    def is_answered(self) -> bool:
        """Whether it was answered, or nobody waits for an answer any more."""

    @property
    @abstractmethod
    def is_cancelled(self) -> bool:
        """Whether the caller has withdrawn it, is gone, or waits no more. Looks, and does not wait."""

    @property
    @abstractmethod
    def time_left(self) -> float | None:
        """How long the caller still waits, in seconds; None: for ever."""


class TicketRequest(RequestBase):
    """A request that a server on this host has taken out of its line.

    Args:
        channel: the service's name.
        ticket: its place in the line.
    """

    def __init__(self, channel: str, ticket: Ticket) -> None:
        self._channel = channel
        self._ticket = ticket
        self.payload = ticket.payload

    @property
    def channel(self) -> str:
        return self._channel

    @property
    def principal(self) -> str:
        return self._ticket.principal

    @property
    def is_stream(self) -> bool:
        return self._ticket.is_stream

    @property
    def is_idempotent(self) -> bool:
        return self._ticket.is_idempotent

    @property
    def message(self) -> Message:
        return self._ticket.message

    @property
    def is_answered(self) -> bool:
        return self._ticket.is_over
