"""Who may do what with locks of which names. Pure.

Theory of operation
    Names are grouped as lock spaces are: ``plant`` has ``plant`` and all below it, ``plant.line1``, and not
    ``plants``; the longest that fits counts, alone; the empty prefix has all that no other has. Whoever is
    not named for something is refused. Where no table fits, everybody may take and see, and nobody but
    administrators take away: as it is with channels.

    Administrators (the daemon's own uid, root, the admin group) may do everything; nobody from afar is one.

Invariants
    What somebody has been given is judged no more: it may be given back, written, downgraded, upgraded and
    waited on, also when the tables have changed since.
    Who may not see a lock is told nothing of it but in refusals of what it asked itself.

Not here: who a principal is (the door), and that of fences: a token is proof enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from towpath.errors import PermissionDenied

PRINCIPALS_MAX: Final = 256
"""In one list."""
EVERYBODY: Final = ("*",)


def _principals(default: tuple[str, ...], doc: str) -> Any:
    return field(default=default, metadata={"doc": doc, "maximum": PRINCIPALS_MAX})


@dataclass(frozen=True, slots=True)
class LockPermissions:
    """A table ``[lock_permissions."PREFIX"]``. A principal stands as itself, ``uid:1000`` or
    ``grpc:anonymous``, or as what it begins with, ``grpc:*``."""

    take: tuple[str, ...] = _principals(
        EVERYBODY,
        "Who may take these locks, wait for them, and arrive at barriers of these names: principals, as in "
        "uid:1000 or grpc:*.",
    )
    see: tuple[str, ...] = _principals(
        EVERYBODY, "Who may list and watch these locks, and ask why somebody waits for one: principals."
    )
    force_release: tuple[str, ...] = _principals(
        (), "Who may take these locks away from whoever has them, beside administrators: principals."
    )


_OPEN: Final = LockPermissions()


class Permissions:
    """All tables.

    Args:
        tables: by prefix.
    """

    def __init__(self, tables: Mapping[str, LockPermissions]) -> None:
        self._tables = dict(tables)

    def check_take(self, principal: str, names: Iterable[str]) -> None:
        """Refuse who may not take one of these.

        Raises:
            PermissionDenied: and which one that is.
        """
        if self._tables:
            for name in names:
                self._check(principal, name, "take", self._of(name).take)

    def check_see(self, principal: str, name: str) -> None:
        """The same for who wants to know of it."""
        self._check(principal, name, "see", self._of(name).see)

    def check_force_release(self, principal: str, name: str) -> None:
        """The same for who wants to take it away."""
        self._check(principal, name, "force_release", self._of(name).force_release)

    def may_see(self, principal: str, name: str) -> bool:
        """Whether somebody may know of a lock."""
        return not self._tables or _is_among(principal, self._of(name).see)

    def _check(self, principal: str, name: str, what: str, allowed: tuple[str, ...]) -> None:
        if not _is_among(principal, allowed):
            raise PermissionDenied(
                f"{principal} may not {what.replace('_', '-')} the lock {name!r}",
                hint=f"ask as an administrator; or see {what} of [lock_permissions] in the configuration",
            )

    def _of(self, name: str) -> LockPermissions:
        tables = self._tables
        if not tables:
            return _OPEN
        prefix = name
        while prefix:
            if (found := tables.get(prefix)) is not None:
                return found
            prefix = prefix.rpartition(".")[0]
        return tables.get("", _OPEN)


def _is_among(principal: str, allowed: tuple[str, ...]) -> bool:
    return any(
        principal.startswith(each[:-1]) if each.endswith("*") else principal == each for each in allowed
    )
