"""The options of a channel: which values each can have, which go together, and how they are told to people.

Theory of operation
    Whoever declares a channel states some options; the others are the channel's, or the defaults'. So
    options are judged three times: each as it is stated (:func:`check_stated`), against the kind that the
    channel has or gets (:func:`check_of_kind`), and, once nothing is left open, together (:func:`settled`).
    An option that is stated and would say nothing is refused, so that nobody believes in what is not kept;
    one at its default is let be, since it may come with a whole set of options, as from a listing.

Invariants
    Nothing here knows which channels there are: same options and limits, same answer.

Not here: what an option means to whoever carries it out; what depends on other channels (``registry``).
"""

from __future__ import annotations

from dataclasses import fields, replace
from enum import IntEnum
from typing import Final

from towpath.errors import InvalidArgument, LimitExceeded
from towpath.names import check_name

from .commands import ChannelOptions, Kind, Order, Overflow, StatedOptions
from .limits import OPTION_RANGES, RING_BYTES_LIMIT, RING_BYTES_MIN, Limits

QUEUE_OPTIONS: Final = ("capacity", "capacity_bytes", "ack_ms", "max_deliveries", "dead_letter")
LOG_OPTIONS: Final = ("retain_bytes", "retain_ms", "retain_messages")
"""Of durable topics."""


def check_ring_bytes(ring_bytes: int) -> None:
    """Refuse what cannot be the size of a ring.

    Raises:
        InvalidArgument: it is not a power of two from 4096 to 2**30.
    """
    if not RING_BYTES_MIN <= ring_bytes <= RING_BYTES_LIMIT or ring_bytes & (ring_bytes - 1):
        raise InvalidArgument(
            f"ring_bytes cannot be {ring_bytes}",
            hint=f"ring_bytes is a power of two from {RING_BYTES_MIN} to {RING_BYTES_LIMIT}",
        )


def check_defaults(defaults: ChannelOptions, limits: Limits) -> None:
    """Refuse defaults with which no channel could be declared.

    Raises:
        InvalidArgument, LimitExceeded: as when they were stated.
    """
    stated = {option.name: getattr(defaults, option.name) for option in fields(ChannelOptions)}
    check_stated(StatedOptions(**stated), limits)


def check_stated(options: StatedOptions, limits: Limits) -> None:
    """Refuse options that could be of no channel.

    Raises:
        InvalidName, InvalidArgument, LimitExceeded: says which.
    """
    if options.ring_bytes is not None:
        check_ring_bytes(options.ring_bytes)
        if options.ring_bytes > limits.ring_bytes_max:
            raise LimitExceeded(
                f"ring_bytes cannot be {options.ring_bytes}: ring_bytes_max is {limits.ring_bytes_max}"
            )
    for name, (minimum, maximum) in OPTION_RANGES.items():
        _check_range(name, getattr(options, name), minimum, maximum)
    if options.dead_letter:
        check_name(options.dead_letter)
    if options.kind is not None:
        check_of_kind(options, options.kind)


def check_of_kind(options: StatedOptions, kind: Kind) -> None:
    """Refuse options that say nothing of channels of a kind.

    Raises:
        InvalidArgument: says which, and of what they say something.
    """
    kinds: dict[str, tuple[Kind, ...]] = {
        **dict.fromkeys(QUEUE_OPTIONS, (Kind.QUEUE,)),
        **dict.fromkeys((*LOG_OPTIONS, "history", "order"), (Kind.TOPIC,)),
    }
    kinds["dedupe_ms"] = (Kind.QUEUE, Kind.TOPIC)
    for name, meant in kinds.items():
        value = getattr(options, name)
        if value is not None and kind not in meant and value != getattr(ChannelOptions(), name):
            rightful = " or ".join(told(each) for each in meant)
            raise InvalidArgument(f"{name} says nothing of a {told(kind)}", hint=f"it is for a {rightful}")
    if options.overflow is Overflow.REJECT and kind is not Kind.QUEUE:
        raise InvalidArgument(
            f"overflow=reject is not for a {told(kind)}", hint="a topic blocks, or drops the oldest"
        )
    if options.overflow is Overflow.DROP and kind is not Kind.TOPIC:
        raise InvalidArgument(f"overflow=drop is not for a {told(kind)}", hint="a queue blocks, or rejects")
    if options.durable and kind is Kind.SERVICE:
        raise InvalidArgument("a service is not durable", hint="declare it without durable=true")


def _check_range(name: str, value: int | None, minimum: int, maximum: int) -> None:
    if value is not None and not minimum <= value <= maximum:
        raise InvalidArgument(f"{name} cannot be {value}", hint=f"{name} is {minimum} to {maximum}")


def settled(stated: StatedOptions, otherwise: ChannelOptions) -> ChannelOptions:
    """Return all options of a channel: those stated, and for the rest those given.

    Raises:
        InvalidArgument: they contradict each other.
    """
    chosen = {option.name: getattr(stated, option.name) for option in fields(ChannelOptions)}
    options = replace(otherwise, **{name: value for name, value in chosen.items() if value is not None})
    if options.kind is Kind.TOPIC and options.durable and options.order is not Order.TOTAL:
        if stated.order is not None:
            raise InvalidArgument("a durable topic has one order for all", hint="order may be total")
        options = replace(options, order=Order.TOTAL)
    if options.kind is Kind.TOPIC and not options.durable:
        for name in LOG_OPTIONS:
            if chosen[name] is not None and chosen[name] != getattr(ChannelOptions(), name):
                raise InvalidArgument(
                    f"{name} says nothing of a topic that is not durable: nothing of it is kept",
                    hint="declare it with durable=true (towpath declare --durable)",
                )
    return options


def differences(has: ChannelOptions, asked: ChannelOptions) -> str:
    """Say in words where options differ."""
    pairs = (
        (option.name, getattr(has, option.name), getattr(asked, option.name))
        for option in fields(ChannelOptions)
    )
    return "; ".join(
        f"{name} is {told(one)}, asked for {told(other)}" for name, one, other in pairs if one != other
    )


def told(value: object) -> str:
    """Say an option's value in words."""
    return value.name.lower() if isinstance(value, IntEnum) else str(value).lower()
