"""Is a history of transactions serializable? Adya's test, over what clients were told.

Theory of operation
    Every committed transaction says which version of each object it made, and which it saw. An object's
    versions have one order, so what depends on what is known for certain::

        ww  made version v  ->  made the next version
        wr  made version v  ->  saw version v
        rw  saw version v   ->  made the next version   (anti-dependency)
        rt  was answered    ->  was asked after that    (real time)

    No cycle: the history is serializable (no G0, G1c, G2); with the real-time edges, strictly so. A version
    that nobody made but somebody saw is a dirty or aborted read (G1a, G1b).

Source: A. Adya, "Weak Consistency", MIT 1999, chapter 3; K. Kingsbury and P. Alvaro, "Elle", VLDB 2020.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise


@dataclass(frozen=True)
class Transaction:
    """One that is known to be committed.

    Attributes:
        made: the version that it made, by object.
        saw: the version that it saw, by object; 0: the object as it was before all.
        asked, answered: when, by the clients' clock.
    """

    name: str
    made: Mapping[str, int] = field(default_factory=dict)
    saw: Mapping[str, int] = field(default_factory=dict)
    asked: float = 0.0
    answered: float = float("inf")


def anomalies(
    history: Iterable[Transaction], *, unknown: frozenset[tuple[str, int]] = frozenset()
) -> list[str]:
    """Return what is wrong with a history; nothing: it is strictly serializable.

    Args:
        unknown: versions that were made by transactions whose outcome nobody was told.
    """
    transactions = list(history)
    makers: dict[tuple[str, int], str] = {}
    found: list[str] = []
    for each in transactions:
        for thing, version in each.made.items():
            other = makers.setdefault((thing, version), each.name)
            if other != each.name:
                found.append(f"lost update: {other} and {each.name} both made version {version} of {thing}")
    edges: dict[str, dict[str, str]] = defaultdict(dict)  # from -> to -> why
    versions: dict[str, list[int]] = defaultdict(list)
    for thing, version in makers:
        versions[thing].append(version)
    for thing, made in versions.items():
        made.sort()
        for before, after in pairwise(made):
            edges[makers[thing, before]][makers[thing, after]] = f"ww {thing} {before}<{after}"
    for each in transactions:
        for thing, version in each.saw.items():
            maker = makers.get((thing, version))
            if maker is None and version and (thing, version) not in unknown:
                found.append(f"{each.name} saw version {version} of {thing}, which nobody has committed")
            if maker is not None and maker != each.name:
                edges[maker][each.name] = f"wr {thing} {version}"
            overwritten = next((later for later in versions[thing] if later > version), None)
            if overwritten is not None and makers[thing, overwritten] != each.name:
                edges[each.name][makers[thing, overwritten]] = f"rw {thing} {version}<{overwritten}"
    for first in transactions:
        for second in transactions:
            if first.answered < second.asked:
                edges[first.name].setdefault(second.name, "rt")
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for source, targets in edges.items():
        for target in targets:
            sorter.add(target, source)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1]
        steps = [
            f"{one} -[{edges[one].get(two) or edges[two].get(one)}]- {two}" for one, two in pairwise(cycle)
        ]
        found.append(f"cycle: {'; '.join(steps)}")
    return found
