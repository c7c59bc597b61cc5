"""Every mechanism there is, and which loads it is measured with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.bench.load import Load, Pattern
from tests.bench.mechanisms import (
    floors,
    grpc_streams,
    local,
    servers,
    shared_memory_peers,
    towpath_ring,
    zeromq,
)
from tests.bench.mechanisms.link import Link
from tests.bench.site import Placement, Site

MECHANISMS: Final[tuple[type[Link], ...]] = tuple(
    sorted(
        (
            *towpath_ring.MECHANISMS,
            *local.MECHANISMS,
            *floors.MECHANISMS,
            *zeromq.MECHANISMS,
            *grpc_streams.MECHANISMS,
            *servers.MECHANISMS,
            *shared_memory_peers.MECHANISMS,
        ),
        key=lambda mechanism: ("towpath", "local", "peers").index(mechanism.family),
    )
)
SIZES: Final = (64, 1 << 10, 1 << 16, 1 << 20)
FAN_OUT: Final = 4
PAUSE_NS: Final = 300_000
"""Six times the longest spin, so that both sides sleep; much longer pauses measure cold caches instead."""
IMPORTS: Final = (
    "towpath",
    "towpath.aio",
    "zmq",
    "grpc",
    "grpc.aio",
    "nats",
    "redis",
    "iceoryx2",
    "zenoh",
    "posix_ipc",
)
"""Imported before the first fork, so that no measurement waits for it."""


@dataclass(frozen=True)
class Case:
    """A mechanism, a placement, and all of a load but how long it runs."""

    mechanism: str
    placement: Placement
    pattern: Pattern
    size_bytes: int
    is_checked: bool
    pause_ns: int = 0


def is_there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return not module or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def mechanism_named(name: str) -> type[Link]:
    """The mechanism of a case."""
    (found,) = [mechanism for mechanism in MECHANISMS if mechanism.name == name]
    return found


def load_of(case: Case, run_ns: int) -> Load:
    """What a case carries."""
    readers = FAN_OUT if case.pattern == "fan-out" else 1
    return Load(case.pattern, case.size_bytes, run_ns, readers, case.is_checked, case.pause_ns)


def cases(
    placement: Placement, families: frozenset[str], patterns: frozenset[str], sizes: tuple[int, ...]
) -> Iterator[Case]:
    """The cases of a placement, in the order in which a round measures them: like beside like."""
    for size in sizes:
        for pattern, is_checked, pause_ns in (
            ("one-way", True, 0),
            ("one-way", False, 0),
            ("fan-out", True, 0),
            ("fan-out", False, 0),
            ("round trip", True, 0),
            ("round trip", True, PAUSE_NS),
        ):
            is_extra = bool(pause_ns) or (pattern == "fan-out" and not is_checked) or placement == "two cores"
            if pattern not in patterns or (is_extra and size != SIZES[0]):
                continue
            if placement == "two cores" and pattern != "round trip":
                continue
            for mechanism in MECHANISMS:
                if mechanism.family in families and pattern in mechanism.patterns:
                    yield Case(mechanism.name, placement, pattern, size, is_checked, pause_ns)


def obstacle(case: Case, site: Site) -> str:
    """Why a case cannot be measured here; empty when it can."""
    mechanism = mechanism_named(case.mechanism)
    if not is_there(mechanism.module):
        return f"no module {mechanism.module}"
    return mechanism.obstacle(site, load_of(case, 1))
