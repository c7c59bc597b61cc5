"""Commands as bytes: what the journal keeps of the lock service.

Theory of operation
    A record is one JSON array: the version, the time at which the command was judged, its name, and its
    fields in the order of ``commands``, without ``reference`` and without what stands at its default at the
    end. So a record is short and is read quickly, and a person can still read a journal.

Invariants
    Decoding what was encoded gives an equal command (but for ``reference``) and time.
    Fields are only added at the end, with a default, and never change their meaning. Records of earlier
    versions can be read.

Not here: snapshots (``snapshot``), which have their own form.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from json.encoder import encode_basestring
from typing import Any, Final

from towpath.errors import InvalidConfiguration

from . import commands as c
from .commands import LockCommand, Wanted
from .limits import LockLimits

RECORD_VERSION: Final = 1
_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_from_json: Final = json.JSONDecoder().decode  # unlike json.loads it does not look for the encoding

NAMES: Final[dict[type[LockCommand], str]] = {
    c.Begin: "begin",
    c.Reserve: "reserve",
    c.Tick: "tick",
    c.OpenSession: "open_session",
    c.EndSession: "end_session",
    c.Acquire: "acquire",
    c.Upgrade: "upgrade",
    c.Downgrade: "downgrade",
    c.Release: "release",
    c.Cancel: "cancel",
    c.WriteGuarded: "write_guarded",
    c.WaitCondition: "wait_condition",
    c.NotifyCondition: "notify_condition",
    c.ArriveBarrier: "arrive_barrier",
    c.Delegate: "delegate",
    c.Recall: "recall",
    c.ForceRelease: "force_release",
    c.DeclareClaims: "declare_claims",
    c.DefineSpace: "define_space",
}
_FIELDS: Final = {
    type_: tuple(
        (field.name, field.default_factory() if field.default_factory is not MISSING else field.default)
        for field in fields(type_)
        if field.name != "reference"
    )
    for type_ in NAMES
}


def encode_command(command: LockCommand, now_ns: int) -> bytes:
    """Return the record of a command.

    Args:
        now_ns: when it is judged; nanoseconds since the epoch.
    """
    type_ = type(command)
    quick = _QUICK.get(type_)
    if quick is not None and (text := quick(command, now_ns)) is not None:
        return text.encode()
    values = [getattr(command, name) for name, _ in _FIELDS[type_]]
    defaults = [default for _, default in _FIELDS[type_]]
    while values and values[-1] == defaults[len(values) - 1]:
        values.pop()
    record = [RECORD_VERSION, now_ns, NAMES[type_], *map(_out, values)]
    return _to_json(record).encode()


def _plain_release(command: c.Release, now_ns: int) -> str | None:
    """The record of a release that does nothing else; None: it does."""
    if command.value is not None or command.is_durable or command.is_recovered:
        return None
    return f'[{RECORD_VERSION},{now_ns},"release",{command.session},{command.request}]'


def _plain_acquire(command: c.Acquire, now_ns: int) -> str | None:
    """The record of a request for one lock, of which nothing else is said; None: it is another."""
    if len(command.locks) != 1 or command.is_reentrant or command.is_guarded or command.note:
        return None
    ((name, mode, weight, capacity),) = command.locks
    timeout = "" if command.timeout_ms == c.NO_TIMEOUT else f",{command.timeout_ms}"
    return (
        f'[{RECORD_VERSION},{now_ns},"acquire",{command.session},{command.owner},{command.request},'
        f"[[{encode_basestring(name)},{mode},{weight},{capacity}]]{timeout}]"
    )


_QUICK: Final[dict[type[LockCommand], Callable[[Any, int], str | None]]] = {
    c.Acquire: _plain_acquire,
    c.Release: _plain_release,
}
"""What nearly all records are, in a fifth of the time."""


def _out(value: object) -> object:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, LockLimits):
        return asdict(value)
    return value


def decode_command(record: bytes) -> tuple[LockCommand, int]:
    """Return the command of a record, and when it was judged.

    Raises:
        InvalidConfiguration: the record is of a later version of Towpath, or damaged.
    """
    try:
        version, now_ns, name, *values = _from_json(record.decode())
        if version == RECORD_VERSION:
            return _DECODERS[name](values), now_ns
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidConfiguration(
            f"a record of the lock journal is damaged ({type(error).__name__}: {error})",
            hint="restore the state directory from a backup, or move it away to begin without locks",
        ) from error
    raise InvalidConfiguration(
        f"a record of the lock journal is of version {version!r}; this one reads {RECORD_VERSION}",
        hint="run the version of Towpath that wrote the journal, or a later one",
    )


def _plain(type_: type[LockCommand]) -> Callable[[list[Any]], LockCommand]:
    return lambda values: type_(*values)


def _acquire(values: list[Any]) -> LockCommand:
    values[3] = tuple([Wanted(*each) for each in values[3]])
    return c.Acquire(*values)


def _begin(values: list[Any]) -> LockCommand:
    if len(values) > 1:
        values[1] = LockLimits(**values[1])
    return c.Begin(*values)


def _end_session(values: list[Any]) -> LockCommand:
    return c.EndSession(values[0], c.EndReason(values[1]))


def _with_value(type_: type[LockCommand]) -> Callable[[list[Any]], LockCommand]:
    def decode(values: list[Any]) -> LockCommand:
        if len(values) > 2 and values[2] is not None:
            values[2] = b64decode(values[2], validate=True)
        return type_(*values)

    return decode


def _recall(values: list[Any]) -> LockCommand:
    if len(values) > 2 and values[2] is not None:
        values[2] = c.PageHolder(*values[2])
    if len(values) > 3:
        values[3] = tuple([c.PageWaiter(*each) for each in values[3]])
    if len(values) > 4:
        values[4] = tuple([c.PageReader(*each) for each in values[4]])
    return c.Recall(*values)


def _define_space(values: list[Any]) -> LockCommand:
    if len(values) > 1:
        values[1] = c.Policy(values[1])
    if len(values) > 2:
        values[2] = c.Victim(values[2])
    return c.DefineSpace(*values)


_DECODERS: Final[dict[str, Callable[[list[Any]], LockCommand]]] = {
    **{name: _plain(type_) for type_, name in NAMES.items()},
    "begin": _begin,
    "acquire": _acquire,
    "end_session": _end_session,
    "recall": _recall,
    "release": _with_value(c.Release),
    "write_guarded": _with_value(c.WriteGuarded),
    "define_space": _define_space,
}
