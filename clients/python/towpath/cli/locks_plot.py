"""The picture of ``towpath locks --plot``: who waits for whom, and who has and wants which lock.

To the left the wait-for graph: owners on a circle, an arrow from who waits to whom it waits for, dashed where
that one is only before it in the queue. To the right the resource-allocation graph: owners in one column,
locks in the other, an arrow from a lock to who has it, and from who wants it to the lock. The rows are put in
an order in which few arrows cross (each to the mean of its neighbours, a few times).

Needs matplotlib (extra ``plot``), which is imported when there is something to draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from towpath.locks.model import Edge, Explanation, LockInfo, Mode, Owner
from towpath.wording import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NODES_MAX: Final = 40
"""Owners, and locks, that are drawn; more could not be read."""
_OWNER, _LOCK = "#4c78a8", "#0b6e4f"
_HARD, _SOFT, _HELD = "#e45756", "#9d9da1", "#0b6e4f"
_SWEEPS: Final = 4

Point = tuple[float, float]


def draw(found: Explanation, file: Path) -> None:
    """Draw and write the picture; what does not fit is said in it.

    Args:
        file: its name says the format: ``cli.advise_plot.check_file``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = _labels(found)
    rows = max(len(found.locks), len(labels), 4)
    figure, (waits, has) = pyplot.subplots(1, 2, figsize=(15, min(4 + 0.35 * rows, 16)), layout="constrained")
    _draw_waits(waits, found.edges, labels)
    _draw_allocation(has, found.locks, labels)
    left_out = max(0, len(labels) - NODES_MAX) + max(0, len(found.locks) - NODES_MAX)
    cut = f"   ({left_out} more owners and locks are not drawn)" if left_out else ""
    cut = cut or ("   (there is more)" if found.is_cut else "")
    waiting = plural(len(found.edges), "wait")
    figure.suptitle(f"Locks: {len(found.locks)} in use, {waiting}{cut}", x=0.01, ha="left")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _labels(found: Explanation) -> dict[Owner, str]:
    """All owners, those who wait or are waited for first, with what they are called."""
    sessions = {session.id: session for session in found.sessions}
    owners = dict.fromkeys(end for edge in found.edges for end in (edge.waiter, edge.blocker))
    for lock in found.locks:
        owners.update(dict.fromkeys(_ends(lock)))
    labels = {}
    for owner in owners:
        session = sessions.get(owner.session)
        thread = f"/{owner.number}" if owner.number > 1 else ""
        pid = f"\npid {session.pid}" if session is not None and session.pid else ""
        labels[owner] = f"session {owner.session}{thread}{pid}"
    return labels


def _draw_waits(axes: Axes, edges: Sequence[Edge], labels: Mapping[Owner, str]) -> None:
    _prepare(axes, "Who waits for whom (dashed: only before it in the queue)")
    owners = list(dict.fromkeys(end for edge in edges for end in (edge.waiter, edge.blocker)))[:NODES_MAX]
    if not owners:
        axes.text(0.5, 0.5, "nobody waits", ha="center", va="center", color=_SOFT)
        return
    places = {
        owner: (
            0.5 + 0.36 * math.sin(math.tau * number / len(owners)),
            0.5 + 0.36 * math.cos(math.tau * number / len(owners)),
        )
        for number, owner in enumerate(owners)
    }
    for edge in edges:
        if edge.waiter in places and edge.blocker in places:
            color, style = (_SOFT, "dashed") if edge.is_soft else (_HARD, "solid")
            _arrow(axes, places[edge.waiter], places[edge.blocker], color, style, bend=0.15)
            (x0, y0), (x1, y1) = places[edge.waiter], places[edge.blocker]
            # Nearer to who waits, so that the names of both arrows of a pair can be read.
            x, y = x0 + 0.4 * (x1 - x0) + 0.1 * (y1 - y0), y0 + 0.4 * (y1 - y0) - 0.1 * (x1 - x0)
            axes.text(
                x, y, edge.lock, ha="center", va="center", fontsize=7, color=color, backgroundcolor="white"
            )
    for owner, place in places.items():
        _node(axes, place, labels[owner], _OWNER)


def _draw_allocation(axes: Axes, locks: Sequence[LockInfo], labels: Mapping[Owner, str]) -> None:
    _prepare(axes, "Who has (green) and wants (red) which lock")
    drawn = sorted(locks, key=lambda lock: -len(lock.waiters))[:NODES_MAX]
    ends = {lock.name: _ends(lock) for lock in drawn}
    owners = list(dict.fromkeys(owner for each in ends.values() for owner in each))[:NODES_MAX]
    if not owners:
        axes.text(0.5, 0.5, "no locks are in use", ha="center", va="center", color=_SOFT)
        return
    names = [lock.name for lock in drawn]
    for _ in range(_SWEEPS):
        rows = {owner: row for row, owner in enumerate(owners)}
        names.sort(key=lambda name: _mean([rows[owner] for owner in ends[name] if owner in rows]))
        lines = {name: row for row, name in enumerate(names)}
        owners.sort(key=lambda owner: _mean([lines[name] for name in names if owner in ends[name]]))
    left = {owner: (0.2, 1 - (row + 0.5) / len(owners)) for row, owner in enumerate(owners)}
    right = {name: (0.8, 1 - (row + 0.5) / len(names)) for row, name in enumerate(names)}
    for lock in drawn:
        for grant in lock.holders:
            if grant.owner in left:
                how = _how(grant.mode, grant.weight)
                _arrow(axes, right[lock.name], left[grant.owner], _HELD, "solid", bend=0, text=how)
        for wait in lock.waiters:
            if wait.owner in left:
                how = _how(wait.mode, wait.weight)
                _arrow(axes, left[wait.owner], right[lock.name], _HARD, "solid", bend=0, text=how)
    for owner, place in left.items():
        _node(axes, place, labels[owner], _OWNER)
    for lock in drawn:
        units = f"\n{lock.held} of {lock.capacity}" if lock.capacity else ""
        _node(axes, right[lock.name], f"{lock.name}{units}", _LOCK, shape="square,pad=0.4")


def _ends(lock: LockInfo) -> list[Owner]:
    """Who has a lock, and who wants it."""
    return [grant.owner for grant in lock.holders] + [wait.owner for wait in lock.waiters]


def _how(mode: Mode, weight: int) -> str:
    return "shared" if mode is Mode.SHARED else str(weight) if mode is Mode.PERMITS else ""


def _mean(rows: Sequence[int]) -> float:
    return sum(rows) / len(rows) if rows else 0.0


def _prepare(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.axis("off")


def _node(axes: Axes, place: Point, text: str, color: str, shape: str = "round,pad=0.4") -> None:
    box = {"boxstyle": shape, "facecolor": "white", "edgecolor": color, "linewidth": 1.6}
    axes.text(*place, text, ha="center", va="center", fontsize=8, bbox=box, zorder=3)


def _arrow(
    axes: Axes, start: Point, end: Point, color: str, style: str, *, bend: float, text: str = ""
) -> None:
    looks = {
        "arrowstyle": "-|>",
        "color": color,
        "linestyle": style,
        "linewidth": 1.4,
        "shrinkA": 26,
        "shrinkB": 26,
        "connectionstyle": f"arc3,rad={bend}",
    }
    axes.annotate("", xy=end, xytext=start, arrowprops=looks, zorder=2)
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color, backgroundcolor="white")
