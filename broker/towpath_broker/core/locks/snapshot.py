"""The lock machine's state as bytes, and back: what bounds a replay.

Theory of operation
    Everything that a later command can depend on is written, and every order that effects can show: of
    holders, queues, requests, conditions. Claims are numbered, since requests may share one. What can be
    counted or found again (used permits, deadlines, quotas) is not written.

Invariants
    ``encode(restore(encode(machine)))`` is the same bytes, and a restored machine answers every command as
    the one that was written would have.
    A later version reads the snapshots of earlier ones.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import asdict
from heapq import heapify
from typing import Any, Final

from towpath.errors import InvalidConfiguration, error_from_code

from .barriers import Barrier
from .commands import Policy, Victim
from .effects import BarrierOpened, Refused
from .grants import HELD, Claim, Delegation, End, Lock, Owner, Request, Session
from .limits import LockLimits
from .machine import LockMachine
from .modes import EXCLUSIVE
from .spaces import Space
from .table import Table, rearrange

SNAPSHOT_VERSION: Final = 1

_Json = dict[str, Any]
_SCALARS: Final = (
    "now_ns",
    "boot",
    "next_session",
    "next_seq",
    "next_token",
    "tokens_end",
    "lease_ms",
    "settled_at_ns",
)
_SESSION: Final = ("id", "principal", "opened_at_ns", "name", "pid", "place", "lease_ms", "priority")
_REQUEST: Final = (
    "number",
    "state",
    "seq",
    "since_ns",
    "deadline_ns",
    "note",
    "is_guarded",
    "is_timed_out",
    "place",
)


# ---- out ---------------------------------------------------------------------------------------------------


def encode(machine: LockMachine) -> bytes:
    """Return the machine's state. O(its size)."""
    table = machine.table
    claims: dict[Claim, int] = {}
    for request in _requests(table):
        for claim in request.claims:
            claims.setdefault(claim, len(claims))
    data = {
        "v": SNAPSHOT_VERSION,
        **{name: getattr(table, name) for name in _SCALARS},
        "limits": asdict(table.limits),
        "spaces": [_space_out(space) for space in table.spaces],
        "sessions": [_session_out(session, claims) for session in table.sessions.values()],
        "locks": [_lock_out(lock, claims) for lock in table.locks.values()],
        "claims": [_claim_out(claim, claims) for claim in claims],
        "requests": [_request_out(request, claims) for request in _requests(table)],
        "barriers": [_barrier_out(barrier) for barrier in machine.barriers.by_name.values()],
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _requests(table: Table) -> Iterator[Request]:
    """Yield all requests, and behind each its conversion."""
    for session in table.sessions.values():
        for request in session.requests.values():
            yield request
            if request.conversion is not None:
                yield request.conversion


def _space_out(space: Space) -> _Json:
    return {
        "prefix": space.prefix,
        "policy": int(space.policy),
        "victim": int(space.victim),
        "ranks": space.ranks,
        "resources": space.resources,
        "waiting": [[request.session.id, request.number] for request in space.waiting],
        "members": [[owner.session.id, owner.number] for owner in space.members],
    }


def _session_out(session: Session, claims: dict[Claim, int]) -> _Json:
    out: _Json = {
        **{name: getattr(session, name) for name in _SESSION},
        "owners": [
            [owner.number, owner.claims, list(owner.wounded), [claims[claim] for claim in owner.grants]]
            for owner in session.owners.values()
        ],
    }
    if session.ends:
        out["ends"] = [
            [owner, end.request, end.ask, *_told_out(end.told)] for owner, end in session.ends.items()
        ]
    return out


def _told_out(told: BarrierOpened | Refused) -> list[object]:
    if isinstance(told, BarrierOpened):
        return [told.index, told.is_open]
    error = told.error
    return [int(error.code), error.message, error.hint, error.retryable]


def _lock_out(lock: Lock, claims: dict[Claim, int]) -> _Json:
    out: _Json = {
        "name": lock.name,
        "capacity": lock.capacity,
        "token": lock.token,
        "back": lock.back,
        "holders": [claims[claim] for claim in lock.holders],
    }
    if lock.data is not None:
        payload = b64encode(lock.data.payload).decode()
        out["data"] = [payload, lock.data.principal, lock.data.written_by, lock.data.poisoned_by]
    if lock.page is not None:
        page = lock.page
        out["page"] = [page.principal, page.slot, page.base, page.next_token, page.is_drained]
    if lock.conditions:
        out["conditions"] = {
            name: [[request.session.id, request.number] for request in waiters]
            for name, waiters in lock.conditions.items()
        }
    return out


def _claim_out(claim: Claim, claims: dict[Claim, int]) -> list[object]:
    request = claim.request
    converts = -1 if claim.converts is None else claims[claim.converts]
    return [
        claim.lock.name,
        claim.owner.session.id,
        claim.owner.number,
        request.number,
        request.upgrades is not None,
        claim.mode,
        claim.weight,
        claim.place,
        claim.token,
        claim.since_ns,
        claim.count,
        converts,
    ]


def _request_out(request: Request, claims: dict[Claim, int]) -> _Json:
    out = {
        "session": request.session.id,
        "owner": request.owner.number,
        "is_upgrade": request.upgrades is not None,
        **{name: getattr(request, name) for name in _REQUEST},
        "claims": [claims[claim] for claim in request.claims],
    }
    if request.ask:
        out["ask"] = request.ask
    return out


def _barrier_out(barrier: Barrier) -> _Json:
    return {
        "name": barrier.name,
        "parties": barrier.parties,
        "is_latch": barrier.is_latch,
        "is_open": barrier.is_open,
        "arrived": barrier.arrived,
        "waiting": [
            [request.session.id, request.number, index] for request, index in barrier.waiting.items()
        ],
        "members": [session.id for session in barrier.members],
    }


# ---- in ----------------------------------------------------------------------------------------------------


def restore(machine: LockMachine, snapshot: bytes) -> None:
    """Put the state of a snapshot into a machine that was just made.

    Raises:
        InvalidConfiguration: the snapshot is of a later version of Towpath, or damaged.
    """
    assert not machine.table.revision
    try:
        data = json.loads(snapshot)
        version = data["v"]
        if version == SNAPSHOT_VERSION:
            _Restoring(machine, data).run()
            return
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidConfiguration(
            f"the snapshot of the lock journal is damaged ({type(error).__name__}: {error})",
            hint="restore the state directory from a backup, or move it away to begin without locks",
        ) from error
    raise InvalidConfiguration(
        f"the snapshot of the lock journal is of version {version!r}; this one reads {SNAPSHOT_VERSION}",
        hint="run the version of Towpath that wrote it, or a later one",
    )


def _told_in(session: int, number: int, told: list[Any]) -> BarrierOpened | Refused:
    if len(told) == 2:
        return BarrierOpened(session, number, *told)
    return Refused(session, number, error_from_code(*told))


class _Restoring:
    """One restoration; the parts come in the order in which they refer to each other."""

    def __init__(self, machine: LockMachine, data: _Json) -> None:
        self._machine = machine
        self._table = machine.table
        self._data = data
        self._claims: list[Claim] = []

    def run(self) -> None:
        table, data = self._table, self._data
        for name in _SCALARS:
            setattr(table, name, data[name])
        table.limits = LockLimits(**data["limits"])
        for each in data["spaces"]:
            space = Space(each["prefix"], Policy(each["policy"]), Victim(each["victim"]))
            space.ranks, space.resources = each["ranks"], each["resources"]
            table.spaces.put(space)
        for each in data["sessions"]:
            self._session(each)
        for each in data["locks"]:
            self._lock(each)
        for each in data["requests"]:
            self._request(each)
        self._make_claims(data["claims"])
        self._give_claims()
        for each in data["spaces"]:
            found = table.spaces.get(each["prefix"])
            assert found is not None
            found.waiting = {self._find(session, number): None for session, number in each["waiting"]}
            found.members = {
                table.sessions[session].owners[number]: None for session, number in each["members"]
            }
        for each in data["barriers"]:
            self._barrier(each)
        heapify(table.deadlines)

    def _find(self, session: int, number: int) -> Request:
        return self._table.sessions[session].requests[number]

    def _session(self, each: _Json) -> None:
        table = self._table
        session = Session(each["id"], each["principal"], each["opened_at_ns"])
        for name in _SESSION:
            setattr(session, name, each[name])
        for owner_number, number, ask, *told in each.get("ends", ()):
            session.remember(owner_number, End(number, ask, _told_in(session.id, number, told)))
        for number, claims, wounded, _ in each["owners"]:
            owner = session.owners[number] = Owner(session, number)
            owner.claims = claims
            owner.wounded = dict.fromkeys(wounded)
        table.sessions[session.id] = session
        count = table.sessions_by_principal.get(session.principal, 0)
        table.sessions_by_principal[session.principal] = count + 1

    def _lock(self, each: _Json) -> None:
        table = self._table
        lock = Lock(each["name"], table.spaces.of(each["name"]), each["capacity"])
        lock.token, lock.back = each["token"], each["back"]
        if "data" in each:
            payload, principal, written_by, poisoned_by = each["data"]
            data = table.give_value(lock, principal)
            data.payload = b64decode(payload, validate=True)
            data.written_by, data.poisoned_by = written_by, poisoned_by
            table.data_bytes += len(data.payload)
        if "page" in each:
            lock.page = Delegation(*each["page"])
        table.locks[lock.name] = lock

    def _request(self, each: _Json) -> None:
        session = self._table.sessions[each["session"]]
        request = Request(session, session.owners[each["owner"]], each["number"])
        for name in _REQUEST:
            setattr(request, name, each[name])
        request.ask = each.get("ask", 0)
        if each["is_upgrade"]:
            request.upgrades = session.requests[request.number]
            request.upgrades.conversion = request
        else:
            session.requests[request.number] = request
        if request.state != HELD:
            request.owner.busy = request

    def _make_claims(self, given: list[list[Any]]) -> None:
        table = self._table
        for name, session, owner, number, is_upgrade, mode, weight, place, token, since_ns, count, _ in given:
            request: Request | None = self._find(session, number)
            if is_upgrade:
                assert request is not None
                request = request.conversion
            assert request is not None
            claim = Claim(table.locks[name], table.sessions[session].owners[owner], request, mode, weight)
            claim.place, claim.token, claim.since_ns, claim.count = place, token, since_ns, count
            self._claims.append(claim)
        for claim, each in zip(self._claims, given, strict=True):
            claim.converts = None if each[-1] < 0 else self._claims[each[-1]]

    def _give_claims(self) -> None:
        """Put claims where they belong: requests, holders, owners, queues."""
        table, data = self._table, self._data
        for each in data["requests"]:
            request = self._find(each["session"], each["number"])
            if each["is_upgrade"]:
                assert request.conversion is not None
                request = request.conversion
            request.claims = [self._claims[at] for at in each["claims"]]
            if request.upgrades is None:
                table.charge(request.session.principal, len(request.claims))
            if request.state != HELD:
                table.restore_wait(request)
        for each in data["locks"]:
            lock = table.locks[each["name"]]
            for at in each["holders"]:
                claim = self._claims[at]
                lock.holders[claim] = None
                lock.used += claim.weight
                if claim.mode == EXCLUSIVE:
                    lock.exclusive = claim
            if lock.queue:
                rearrange(lock, sorted(lock.queue, key=lambda claim: claim.place))
            if "conditions" in each:
                lock.conditions = {
                    name: {self._find(session, number): None for session, number in waiters}
                    for name, waiters in each["conditions"].items()
                }
        for each in data["sessions"]:
            owners = table.sessions[each["id"]].owners
            for number, _, _, grants in each["owners"]:
                owners[number].grants = {self._claims[at]: None for at in grants}

    def _barrier(self, each: _Json) -> None:
        barrier = Barrier(each["name"], each["parties"], each["is_latch"])
        barrier.is_open, barrier.arrived = each["is_open"], each["arrived"]
        barrier.waiting = {self._find(session, number): index for session, number, index in each["waiting"]}
        barrier.members = {self._table.sessions[session]: None for session in each["members"]}
        self._machine.barriers.by_name[barrier.name] = barrier
