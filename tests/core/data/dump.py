"""All that can be observed of a data machine, in a form that can be compared."""

from __future__ import annotations

from typing import Any

from towpath_broker.core.data.logs import Log
from towpath_broker.core.data.machine import DataMachine
from towpath_broker.core.data.parcels import Segment
from towpath_broker.core.data.queues import Queue
from towpath_broker.core.data.values import State


def dump(machine: DataMachine) -> dict[str, Any]:
    """Return it. What is left over and says nothing (alarms, entries of heaps) is left out."""
    shared = machine._shared
    return {
        "channels": {name: _channel(channel) for name, channel in machine._channels.items()},
        "stored": sorted(machine._stored),
        "transactions": dict(machine._committing.known._known),
        "usage": (shared.usage.total, dict(shared.usage._by_owner)),
        "unsettled": (shared.unsettled.total, dict(shared.unsettled._by_owner)),
        "values": (shared.value_bytes.total, dict(shared.value_bytes._by_owner)),
        "tallies": (dict(shared.consumers._counts), dict(shared.watchers._counts)),
        "streams": {session: sorted(calls) for session, calls in shared._streams.items()},
        "consumers": dict(shared.consumer_queue),
        "counters": {name: count for name, count in shared.counters.items() if count},
    }


def _channel(channel: Queue | State | Log) -> object:
    match channel:
        case Queue():
            return _queue(channel)
        case State():
            return (
                channel.options,
                channel.value,
                channel.is_loaded,
                sorted((*key, watcher.told) for key, watcher in channel.watchers.items()),
            )
        case Log():
            return (
                channel.options,
                (channel.oldest_seq, channel.next_seq, channel.content_bytes, channel._told),
                list(channel.heads),
                (channel.has_more, channel._is_loading),
                dict(channel.taken),
                dict(channel.places),
                (channel.ids.is_loaded, dict(channel.ids._ids)),
            )


def _queue(queue: Queue) -> object:
    return {
        "options": queue.options,
        "totals": (queue.next_seq, queue.messages, queue.content_bytes, queue.resident_bytes, queue.ready),
        "told": queue._told,
        "parcels": {each.first_seq: (each.live, each.settled) for each in queue.parcels.values()},
        "lanes": {
            priority: (
                [_segment(segment) for segment in lane.fresh],
                sorted(_segment(segment) for _, _, segment in lane.back),
                (lane.spill_seq, lane.is_loading, lane.has_more),
            )
            for priority, lane in queue.lanes.items()
            if lane.is_ready or lane.spill_seq is not None
        },
        "delayed": sorted((due_ns, _segment(segment)) for due_ns, _, segment in queue.delayed),
        "consumers": {
            each.id: (
                (each.prefetch, each.unsettled, each.unsettled_bytes, each.next_delivery),
                (each.has_room, each.is_silent),
                [
                    (
                        lease.first_delivery,
                        lease.parcel.first_seq,
                        (lease.start, lease.end, lease.attempt, lease.deadline_ns, lease.is_live),
                    )
                    for lease in each.leases
                ],
            )
            for each in queue.consumers.values()
        },
        "rotation": [each.id for each in queue.dealer.rotation],
        "line": ([(each.session, each.call) for each in queue.line.waiting], queue.line.nbytes),
        "ids": (queue.ids.is_loaded, dict(queue.ids._ids)),
        "window": (queue.window._due_ns, queue.window._cursor, queue.window._is_loading_due),
    }


def _segment(segment: Segment) -> tuple[int, int, int, int]:
    return (segment.parcel.first_seq, segment.start, segment.end, segment.attempts)


def assert_consistent(machine: DataMachine) -> None:
    """Assert what holds of every queue, whatever happened to it."""
    usage: dict[str, int] = {}
    for channel in machine._channels.values():
        if isinstance(channel, Queue):
            _assert_queue(channel)
        if not isinstance(channel, State):
            usage[channel.owner] = usage.get(channel.owner, 0) + channel.content_bytes
    held = {owner: nbytes for owner, nbytes in usage.items() if nbytes}
    assert held == machine._shared.usage._by_owner
    assert sum(held.values()) == machine._shared.usage.total


def _assert_queue(queue: Queue) -> None:
    where: dict[tuple[int, int], str] = {}

    def put(first_seq: int, start: int, end: int, what: str) -> None:
        assert start < end
        for index in range(start, end):
            assert where.setdefault((first_seq, index), what) is what, (first_seq, index, where)

    ready = 0
    for lane in queue.lanes.values():
        segments = [*lane.fresh, *(segment for _, _, segment in lane.back)]
        for segment in segments:
            put(segment.parcel.first_seq, segment.start, segment.end, object().__repr__())
            ready += segment.end - segment.start
    assert ready == queue.ready
    for _, _, segment in queue.delayed:
        put(segment.parcel.first_seq, segment.start, segment.end, "delayed")
    watched = {(id(entry[2]), entry[0]) for entry in queue.deadlines}
    for consumer in queue.consumers.values():
        assert sum(lease.end - lease.start for lease in consumer.leases) == consumer.unsettled
        assert 0 <= consumer.unsettled <= consumer.prefetch
        assert consumer.has_room == (consumer in queue.dealer.rotation)
        assert not (consumer.has_room and consumer.is_silent)
        numbers = [lease.first_delivery for lease in consumer.leases]
        assert numbers == sorted(numbers)
        for lease in consumer.leases:
            assert lease.is_live and (id(lease), lease.deadline_ns) in watched
            put(lease.parcel.first_seq, lease.start, lease.end, f"leased {id(lease)}")
    for parcel in queue.parcels.values():
        mine = {index for first_seq, index in where if first_seq == parcel.first_seq}
        assert len(mine) == parcel.live > 0, (parcel.first_seq, mine, parcel.live)
        if queue.shared.is_durable:
            assert not any(parcel.settled >> index & 1 for index in mine)
    assert {first_seq for first_seq, _ in where} == set(queue.parcels)
    assert sum(parcel.content_bytes for parcel in queue.parcels.values()) == queue.resident_bytes
