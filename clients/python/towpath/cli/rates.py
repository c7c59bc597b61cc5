"""Rates, from two looks at the daemon's status. Pure functions.

A figure that is smaller than before has begun anew (its gateway or the daemon was restarted), and counts from
nothing. What came since the first look began at nothing, too; what went is not told of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from towpath.model import BindingInfo, ChannelContents, ChannelInfo, GatewayInfo, SessionInfo, Status, Traffic

_NOTHING: Final = Traffic()
_EMPTY: Final = ChannelContents()


@dataclass(frozen=True, slots=True)
class ChannelRate:
    """What went through a channel per second.

    Attributes:
        messages_per_s: published; of a queue, those that it took in.
        done_per_s: of a queue: settled for good, or given up.
        ring_bytes_per_s: in rings; a queue has none.
        messages: since the core started; of a durable queue, ever.
        contents: what it holds now, where it keeps anything.
    """

    name: str
    messages_per_s: float
    done_per_s: float
    ring_bytes_per_s: float
    messages: int
    publishers: int
    subscribers: int
    contents: ChannelContents | None


@dataclass(frozen=True, slots=True)
class BindingRate:
    """What a binding carried per second."""

    id: int
    channel: str
    url: str
    state: str
    messages_in_per_s: float
    messages_out_per_s: float
    bytes_in_per_s: float
    bytes_out_per_s: float
    refused_per_s: float


@dataclass(frozen=True, slots=True)
class GatewayRate:
    """How fast each of a gateway's counters grew; those that stood still are left out."""

    name: str
    state: str
    counters_per_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SessionRate:
    """What a session published per second, and what its subscriptions have not taken yet."""

    id: int
    name: str
    principal: str
    pid: int
    publishers: int
    subscribers: int
    messages_per_s: float
    ring_bytes_per_s: float
    pending_bytes: int


@dataclass(frozen=True, slots=True)
class Rates:
    """All of them, each list with the busiest first.

    Attributes:
        span_s: time between the two looks.
    """

    span_s: float
    channels: tuple[ChannelRate, ...]
    bindings: tuple[BindingRate, ...]
    gateways: tuple[GatewayRate, ...]
    sessions: tuple[SessionRate, ...]


def rates(before: Status, after: Status, span_s: float) -> Rates:
    """Compare two looks.

    Args:
        span_s: seconds between them, above 0.
    """
    if before.incarnation != after.incarnation or before.started_at_ns != after.started_at_ns:
        before = after  # all that is counted now is of a time that was not looked at
    bindings = {binding.id: binding for binding in before.bindings}
    gateways = {gateway.name: gateway for gateway in before.gateways}
    sessions = {session.id: session for session in before.session_list}
    held = {channel.name: channel.contents for channel in before.channels}
    channel_rates = [
        _queue(channel, held.get(channel.name) or _EMPTY, span_s)
        if channel.kind == "queue"
        else _channel(channel, before.traffic.get(channel.name, _NOTHING), after.traffic, span_s)
        for channel in after.channels
    ]
    return Rates(
        span_s=span_s,
        channels=tuple(sorted(channel_rates, key=lambda rate: (-rate.messages_per_s, rate.name))),
        bindings=tuple(
            sorted(
                (_binding(binding, bindings.get(binding.id), span_s) for binding in after.bindings),
                key=lambda rate: (-rate.messages_in_per_s - rate.messages_out_per_s, rate.id),
            )
        ),
        gateways=tuple(_gateway(gateway, gateways.get(gateway.name), span_s) for gateway in after.gateways),
        sessions=tuple(
            sorted(
                (_session(session, sessions.get(session.id), span_s) for session in after.session_list),
                key=lambda rate: (-rate.messages_per_s, -rate.pending_bytes, rate.id),
            )
        ),
    )


def _per_s(before: int, after: int, span_s: float) -> float:
    return (after - before if after >= before else after) / span_s


def _channel(
    channel: ChannelInfo, before: Traffic, traffic: Mapping[str, Traffic], span_s: float
) -> ChannelRate:
    now = traffic.get(channel.name, _NOTHING)
    return ChannelRate(
        channel.name,
        _per_s(before.messages, now.messages, span_s),
        0.0,
        _per_s(before.ring_bytes, now.ring_bytes, span_s),
        now.messages,
        channel.publishers,
        channel.subscribers,
        channel.contents,
    )


def _queue(channel: ChannelInfo, before: ChannelContents, span_s: float) -> ChannelRate:
    """What was published in a queue has a seq; what of that is not there any more is done."""
    now = channel.contents or _EMPTY
    return ChannelRate(
        channel.name,
        _per_s(_published(before), _published(now), span_s),
        _per_s(_published(before) - before.messages, _published(now) - now.messages, span_s),
        0.0,
        _published(now),
        channel.publishers,
        channel.subscribers,
        channel.contents,
    )


def _published(contents: ChannelContents) -> int:
    return max(contents.next_seq - 1, 0)


def _binding(binding: BindingInfo, before: BindingInfo | None, span_s: float) -> BindingRate:
    now = binding.report
    old = before.report if before is not None else None
    return BindingRate(
        binding.id,
        binding.channel,
        binding.url,
        now.state,
        _per_s(old.messages_in if old else 0, now.messages_in, span_s),
        _per_s(old.messages_out if old else 0, now.messages_out, span_s),
        _per_s(old.bytes_in if old else 0, now.bytes_in, span_s),
        _per_s(old.bytes_out if old else 0, now.bytes_out, span_s),
        _per_s(old.refused if old else 0, now.refused, span_s),
    )


def _gateway(gateway: GatewayInfo, before: GatewayInfo | None, span_s: float) -> GatewayRate:
    old = before.counters if before is not None and before.pid == gateway.pid else {}
    grown = {name: _per_s(old.get(name, 0), number, span_s) for name, number in gateway.counters.items()}
    return GatewayRate(gateway.name, gateway.state, {name: rate for name, rate in grown.items() if rate})


def _session(session: SessionInfo, before: SessionInfo | None, span_s: float) -> SessionRate:
    old = before.published if before is not None else _NOTHING
    return SessionRate(
        session.id,
        session.name,
        session.principal,
        session.pid,
        session.publishers,
        session.subscribers,
        # Less than before: a publisher of it has left, and took its figures along.
        max(session.published.messages - old.messages, 0) / span_s,
        max(session.published.ring_bytes - old.ring_bytes, 0) / span_s,
        session.pending_bytes,
    )
