"""The registry's calls, waiting in the caller's thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar, Unpack

from towpath import calls, model
from towpath.result import attempt
from towpath.waiting import CALL_TIMEOUT_S, binding_failure, deadline_ns

T = TypeVar("T")


class Registry(ABC):
    """What can be asked of the registry; :class:`towpath.Client` is one."""

    @abstractmethod
    def _call(self, call: calls.Call[T], deadline: int | None = None) -> T:
        """Ask, and wait for the answer.

        Args:
            deadline: on the monotonic clock, in nanoseconds; None: the client's own.
        """

    def _all_pages(self, call: Callable[[str], calls.Call[tuple[list[T], str]]]) -> list[T]:
        listed, token = self._call(call(""))
        while token:
            page, token = self._call(call(token))
            listed += page
        return listed

    def declare(
        self,
        name: str,
        *,
        kind: model.Kind | None = None,
        durable: bool | None = None,
        overflow: model.Overflow | None = None,
        ring_bytes: int | None = None,
        order: model.Order | None = None,
        history: int | None = None,
        stall_ms_max: int | None = None,
        **keeping: Unpack[model.KeepingOptions],
    ) -> model.ChannelInfo:
        """Declare a channel, or see that it is declared alike.

        Args:
            name: levels of ``A-Z a-z 0-9 _ -`` joined by dots; 1 to 255 characters.
            kind: what the channel does; ``topic`` unless stated.
            durable: whether messages are kept on disk.
            overflow: what happens when a subscriber does not keep up: ``block`` (unless stated), the
                publisher waits; ``drop``, the subscriber loses the oldest and is told how many. When a queue
                is full: ``block``, or ``reject``, the publisher gets QueueFull.
            ring_bytes: bytes of each publisher's ring, a power of two from 4096 to 2**30; the largest
                message is a quarter.
            order: whose order subscribers see: ``source`` (unless stated), each publisher's own; ``total``,
                one for all.
            history: how many of each publisher's last messages a new subscriber gets first, as far as they
                are still in its ring; 0 (unless stated) to 65,536.
            stall_ms_max: how long a publisher waits for a subscriber that does not move before the two are
                parted; 0 for ever, at most 86,400,000; 30,000 unless stated.
            keeping: the options of queues and of what is kept: :class:`towpath.model.KeepingOptions`.

        Returns:
            The channel as it is now.

        Raises:
            InvalidName, InvalidArgument, NotSupported: see the message.
            ChannelConflict: it is declared with other options than those stated.
            QuotaExceeded, LimitExceeded: too many channels.
        """
        return self._call(
            calls.declare(
                name,
                kind=kind,
                durable=durable,
                overflow=overflow,
                ring_bytes=ring_bytes,
                order=order,
                history=history,
                stall_ms_max=stall_ms_max,
                **keeping,
            )
        )

    def undeclare(self, name: str, *, force: bool = False) -> None:
        """Remove a channel and its bindings.

        Args:
            name: the channel; no pattern.
            force: even while it is used, publishers and subscribers get ChannelUndeclared; and even while it
                holds messages, which are lost.

        Raises:
            ChannelNotFound, ChannelInUse, PermissionDenied (only its owner and admins may).
        """
        self._call(calls.undeclare(name, force=force))

    def channel_info(self, name: str) -> model.ChannelInfo:
        """Return a channel's entry in the registry. Raises ChannelNotFound."""
        return self._call(calls.channel_info(name))

    def channels(self, prefix: str = "") -> list[model.ChannelInfo]:
        """Return the channels whose names begin with ``prefix``, by name."""
        return self._all_pages(lambda token: calls.channels(prefix, token))

    def bind(
        self,
        channel: str,
        url: str,
        *,
        direction: model.Direction,
        options: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> model.BindingInfo:
        """Attach an adapter to a channel, and wait until the bridge has brought it up.

        Args:
            url: mechanism and place: ``fifo:/run/x``, ``pipe:vmstat 1``.
            direction: ``in`` to the channel, ``out`` of it, or ``both``.
            options: per mechanism; see the manual.
            keep: leave the binding defined even if it cannot be brought up now.
            timeout: seconds to wait for the bridge; None for ever. The binding stays when they are over.

        Returns:
            The binding, with what the bridge said of it.

        Raises:
            BindingFailed: the mechanism refused; without ``keep`` the binding is gone again.
            BindingConflict, ChannelNotFound, InvalidArgument, PermissionDenied, Timeout.
        """
        deadline = deadline_ns(timeout)
        binding, created = self._call(
            calls.create_binding(channel, url, direction=direction, options=options), deadline
        )
        settled = self._call(calls.get_binding(binding.id, wait_settled=True), deadline)
        if settled.report.state == "failed" and not keep:
            if created:
                self._call(calls.delete_binding(settled.id), deadline)
            raise binding_failure(settled)
        return settled

    def unbind(self, binding: int | None = None, *, channel: str = "", url: str = "") -> model.BindingInfo:
        """Remove a binding, named by its id or by channel and URL. Raises BindingNotFound,
        PermissionDenied.
        """
        return self._call(calls.delete_binding(binding, channel=channel, url=url))

    def bindings(self, channel: str = "") -> list[model.BindingInfo]:
        """Return all bindings, or those of one channel."""
        return self._all_pages(lambda token: calls.bindings(channel, token))

    def status(self) -> model.Status:
        """Return what the daemon says of itself."""
        status = self._call(calls.status())
        return replace(status, channels=tuple(self.channels()), bindings=tuple(self.bindings()))

    try_declare = attempt(declare)
    try_undeclare = attempt(undeclare)
    try_channel_info = attempt(channel_info)
    try_channels = attempt(channels)
    try_bind = attempt(bind)
    try_unbind = attempt(unbind)
    try_bindings = attempt(bindings)
    try_status = attempt(status)
