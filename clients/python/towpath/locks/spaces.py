"""Lock spaces: how the locks below a name are kept from deadlocks, as values and as calls. Sans-I/O.

A space is the lock of its name and all below it: ``plant`` has ``plant`` and ``plant.line1``. The longest
that fits counts; the empty name has all that no other has. What the policies mean is decided in the daemon
(``towpath_broker.core.locks.avoidance``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from towpath.calls import Call
from towpath.errors import InvalidArgument
from towpath.locks.requests import Standing, make
from towpath.names import check_name
from towpath.v1 import locks_pb2

Policy = Literal["detect", "ordered", "banker", "wait-die", "wound-wait", "no-wait", "timeout-only"]
"""In the order of the wire's numbers, from 1."""
Victim = Literal["requester", "youngest", "fewest-locks", "lowest-priority"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
VICTIMS: tuple[Victim, ...] = get_args(Victim)

L = TypeVar("L", bound=str)


@dataclass(frozen=True, slots=True)
class LockSpace:
    """How the locks below a name are judged.

    Attributes:
        name: empty: all that no other space has.
        policy: how deadlocks are kept away.
        victim: who of a deadlock is refused, where they are detected.
        ranks: of ``ordered``, by lock; empty: the order of names.
        units: of ``banker``, how much there is of each resource.
    """

    name: str
    policy: Policy = "detect"
    victim: Victim = "requester"
    ranks: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)


def _number(what: str, word: str, words: tuple[str, ...]) -> int:
    if word not in words:
        raise InvalidArgument(f"{word!r} is no {what}", hint=f"one of: {', '.join(words)}")
    return words.index(word) + 1


def _word(number: int, words: tuple[L, ...]) -> L:
    """A word of the wire's number; one that a later daemon has is taken for the first."""
    return words[number - 1] if 1 <= number <= len(words) else words[0]


def define(space: LockSpace, *, is_removed: bool = False) -> Call[None]:
    """Lay down a space, or take it away.

    Raises:
        InvalidName, InvalidArgument: it cannot be.
    """
    if space.name:
        check_name(space.name, "a lock space's name")
    body = make(
        locks_pb2.LockSpace,
        prefix=space.name,
        policy=_number("policy", space.policy, POLICIES),
        victim=_number("victim", space.victim, VICTIMS),
        ranks=dict(space.ranks),
        resources=dict(space.units),
    )
    request = locks_pb2.DefineLockSpaceRequest(space=body, is_removed=is_removed)
    return Call("define_lock_space_request", request, "define_lock_space_response", lambda _: None)


def _space_from_proto(space: locks_pb2.LockSpace) -> LockSpace:
    return LockSpace(
        space.prefix,
        _word(space.policy, POLICIES),
        _word(space.victim, VICTIMS),
        dict(space.ranks),
        dict(space.resources),
    )


def list_spaces() -> Call[list[LockSpace]]:
    """Ask which spaces there are, by name."""
    return Call(
        "list_lock_spaces_request",
        locks_pb2.ListLockSpacesRequest(),
        "list_lock_spaces_response",
        lambda response: [_space_from_proto(each) for each in response.spaces],
    )


def declare_claims(session: int, owner: int, claims: Mapping[str, int]) -> Call[Standing]:
    """Say the most that an owner will ever have of each resource; over when it is answered. Saying it again
    changes nothing."""
    for name in claims:
        check_name(name, "a lock's name")
    request = make(
        locks_pb2.DeclareClaimsRequest,
        owner=locks_pb2.LockOwner(session=session, owner=owner),
        claims=dict(claims),
    )
    return Call(
        "declare_claims_request",
        request,
        "declare_claims_response",
        lambda _: Standing(True),
        is_last=lambda standing: standing.is_over,
    )
