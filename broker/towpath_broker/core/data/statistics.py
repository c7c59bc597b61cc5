"""What a data machine tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What a channel holds.

    Attributes:
        publishers: publications that wait for room.
        consumers: or watchers.
        unsettled: messages that are out with consumers.
        oldest_seq: of a durable topic: what is stored has the numbers from this to below the next.
        next_seq: of a durable topic or a queue: what the next message will have.
    """

    messages: int = 0
    content_bytes: int = 0
    publishers: int = 0
    consumers: int = 0
    unsettled: int = 0
    oldest_seq: int = 0
    next_seq: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the machine holds and has done; counters start at zero with each run."""

    channels: int
    messages: int
    content_bytes: int
    value_bytes: int
    streams: int
    commands: int
    refused: int
    counters: Mapping[str, int]
