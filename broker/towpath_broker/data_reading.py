"""What the data plane's machines ask of the store by ``Load*``, ``ReadParcels`` and ``FindByTime``: read, and
made into what is to be submitted or answered. Runs in the thread that reads the store.
"""

from __future__ import annotations

from .core.data import commands as c
from .core.data import effects as e
from .ports import Store

Asked = e.LoadParcels | e.LoadHeads | e.ReadParcels | e.FindByTime


def read(store: Store, effect: Asked) -> c.DataCommand | e.Reply:
    """Read what an effect asks for; in the reader's thread."""
    match effect:
        case e.LoadParcels():
            return _read_queue(store, effect)
        case e.LoadHeads():
            heads = store.read_heads(effect.channel, effect.first_seq, effect.count_max)
            is_end = len(heads) < effect.count_max
            return c.HeadsLoaded(effect.channel, effect.declared_at_ns, heads, is_end)
        case e.ReadParcels():
            return _read_log(store, effect)
        case e.FindByTime():
            seq = store.find_time(effect.channel, effect.time_ns)
            found = e.Found(
                effect.next_seq if seq is None else max(seq, effect.oldest_seq),
                effect.oldest_seq,
                effect.next_seq,
            )
            return e.Reply(effect.session, effect.call, found)


def _read_queue(store: Store, effect: e.LoadParcels) -> c.ParcelsLoaded:
    channel, declared_at_ns, count_max = effect.channel, effect.declared_at_ns, effect.count_max
    if effect.priority is None:
        after = (effect.after_ns, effect.first_seq - 1)
        parcels, next_due_ns = store.read_due(channel, after, effect.until_ns, count_max, effect.bytes_max)
        return c.ParcelsLoaded(channel, declared_at_ns, None, parcels, not next_due_ns, next_due_ns)
    parcels = store.read_queue(channel, effect.priority, effect.first_seq, count_max, effect.bytes_max)
    # Fewer than asked for may be the end, or the bound in bytes: only nothing at all is the end for certain.
    return c.ParcelsLoaded(channel, declared_at_ns, effect.priority, parcels, not parcels)


def _read_log(store: Store, effect: e.ReadParcels) -> e.Reply:
    parcels = (
        store.read_parcels(effect.channel, effect.first_seq, effect.bytes_max)
        if effect.first_seq < effect.end_seq
        else ()
    )
    first_seq, next_seq = effect.first_seq, effect.first_seq
    if parcels:
        first_seq = parcels[0].first_seq  # before what was asked for, where that is in the middle of one
        next_seq = parcels[-1].first_seq + parcels[-1].count
    end_seq = max(effect.end_seq, next_seq)
    body = e.ParcelsRead(effect.channel, first_seq, next_seq, end_seq, parcels)
    return e.Reply(effect.session, effect.call, body)
