"""Durable commands and the durable state as bytes: what the journal keeps.

Theory of operation
    A record is one line of JSON: the machine's version, the time at which it was judged, the command's name
    and its fields under stable names. A person can read a journal with the sqlite3 shell. Of a caller only
    what decides is kept: the principal and whether it is an administrator. A snapshot is JSON too.

Invariants
    Decoding what was encoded gives an equal command and time, and an equal state.
    Names and meanings never change within a machine version. A later version reads the records of earlier
    ones; what a record does not say takes the value that it had when that record was written.

Not here: what a record does (``machine``), and where it is kept (``towpath_broker.journal``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final

from towpath.errors import InvalidConfiguration

from .commands import (
    Caller,
    ChannelOptions,
    Command,
    CreateBinding,
    DeclareChannel,
    DeleteBinding,
    Direction,
    Start,
    StatedOptions,
    UndeclareChannel,
)
from .ids import BindingId
from .limits import Limits
from .registry import BindingDefinition, ChannelDefinition

MACHINE_VERSION: Final = 3
"""What is written. 2 added to a channel's options ``order``, ``history`` and ``stall_ms_max``, and to a
snapshot the registry's ``revision``. 3 added the options of queues, of durable topics, and ``dedupe_ms``.
"""
MACHINE_VERSIONS: Final = (1, 2, 3)
"""What can be read."""

_V1_OPTIONS: Final = {"order": "source", "history": 0, "stall_ms_max": 0}
"""How channels behaved that version 1 declared: a publisher waited for ever."""
_V2_OPTIONS: Final = {
    "capacity": 100_000,
    "capacity_bytes": 64 << 20,
    "ack_ms": 30_000,
    "max_deliveries": 0,
    "dead_letter": "",
    "retain_bytes": 1 << 30,
    "retain_ms": 0,
    "retain_messages": 0,
    "dedupe_ms": 120_000,
}
"""Versions up to 2 had only topics that are not durable, to which none of these applies."""
_OPTION_TYPES: Final[dict[str, Any]] = {
    option.name: type(getattr(ChannelOptions(), option.name)) for option in fields(ChannelOptions)
}

_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DurableState:
    """All of the machine that survives a restart.

    Attributes:
        now_ns: the latest time that the machine has seen.
        incarnation: how often the core has started.
        next_binding: the id that the next binding gets.
        revision: how often the registry has changed.
    """

    now_ns: int
    incarnation: int
    next_binding: int
    revision: int
    limits: Limits
    defaults: ChannelOptions
    channels: tuple[ChannelDefinition, ...]
    bindings: tuple[BindingDefinition, ...]


def encode_command(command: Command, now_ns: int) -> bytes:
    """Return the record of a durable command.

    Args:
        now_ns: when it is judged; nanoseconds since the epoch.
    """
    name = _NAMES[type(command)]
    head: _Json = {"v": MACHINE_VERSION, "now_ns": now_ns, "command": name}
    return _dumped({**head, **_ENCODERS[name](command)})


def decode_command(record: bytes) -> tuple[Command, int]:
    """Return the command of a record, and when it was judged.

    Raises:
        InvalidConfiguration: the record is of a later version of Towpath, or damaged.
    """
    data = _loaded(record, "record")
    try:
        return _DECODERS[data["command"]](data), int(data["now_ns"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged("record", error) from error


def encode_state(state: DurableState) -> bytes:
    """Return a snapshot. O(channels + bindings)."""
    return _dumped(
        {
            "v": MACHINE_VERSION,
            "now_ns": state.now_ns,
            "incarnation": state.incarnation,
            "next_binding": state.next_binding,
            "revision": state.revision,
            "limits": _limits_out(state.limits),
            "defaults": _options_out(state.defaults),
            "channels": [
                {
                    "name": channel.name,
                    "options": _options_out(channel.options),
                    "owner": channel.owner,
                    "declared_at_ns": channel.declared_at_ns,
                }
                for channel in state.channels
            ],
            "bindings": [
                {
                    "id": binding.id,
                    "channel": binding.channel,
                    "url": binding.url,
                    "direction": binding.direction.name.lower(),
                    "options": dict(binding.options),
                    "owner": binding.owner,
                }
                for binding in state.bindings
            ],
        }
    )


def decode_state(snapshot: bytes) -> DurableState:
    """Return the state of a snapshot.

    Raises:
        InvalidConfiguration: the snapshot is of a later version of Towpath, or damaged.
    """
    data = _loaded(snapshot, "snapshot")
    try:
        return DurableState(
            now_ns=int(data["now_ns"]),
            incarnation=int(data["incarnation"]),
            next_binding=int(data["next_binding"]),
            revision=0 if data["v"] == 1 else int(data["revision"]),
            limits=_limits_in(data["limits"]),
            defaults=_options_in(data["defaults"], data["v"]),
            channels=tuple(
                ChannelDefinition(
                    channel["name"],
                    _options_in(channel["options"], data["v"]),
                    channel["owner"],
                    int(channel["declared_at_ns"]),
                )
                for channel in data["channels"]
            ),
            bindings=tuple(
                BindingDefinition(
                    BindingId(binding["id"]),
                    binding["channel"],
                    binding["url"],
                    Direction[binding["direction"].upper()],
                    dict(binding["options"]),
                    binding["owner"],
                )
                for binding in data["bindings"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged("snapshot", error) from error


# ---- parts -------------------------------------------------------------------------------------------------


def _limits_out(limits: Limits) -> _Json:
    return {bound.name: value for bound, value in limits.items()}


def _limits_in(data: _Json) -> Limits:
    return Limits(**data)


def _options_out(options: ChannelOptions) -> _Json:
    return {name: _option_out(getattr(options, name)) for name in _OPTION_TYPES}


def _options_in(data: _Json, version: int) -> ChannelOptions:
    if version == 1:
        data = {**_V1_OPTIONS, **data}
    if version <= 2:
        data = {**_V2_OPTIONS, **data}
    return ChannelOptions(**{name: _option_in(name, data[name]) for name in _OPTION_TYPES})


def _stated_out(options: StatedOptions) -> _Json:
    stated = ((name, getattr(options, name)) for name in _OPTION_TYPES)
    return {name: _option_out(value) for name, value in stated if value is not None}


def _stated_in(data: _Json) -> StatedOptions:
    return StatedOptions(**{name: _option_in(name, data[name]) for name in _OPTION_TYPES if name in data})


def _option_out(value: object) -> object:
    return value.name.lower() if isinstance(value, IntEnum) else value


def _option_in(name: str, value: Any) -> Any:
    type_ = _OPTION_TYPES[name]
    return type_[value.upper()] if issubclass(type_, IntEnum) else type_(value)


def _caller_out(caller: Caller) -> _Json:
    return {"principal": caller.principal, "is_admin": caller.is_admin}


def _caller_in(data: _Json) -> Caller:
    return Caller(principal=data["principal"], is_admin=bool(data["is_admin"]))


# ---- commands ----------------------------------------------------------------------------------------------


def _start_out(command: Start) -> _Json:
    return {"limits": _limits_out(command.limits), "defaults": _options_out(command.defaults)}


def _start_in(data: _Json) -> Start:
    return Start(limits=_limits_in(data["limits"]), defaults=_options_in(data["defaults"], data["v"]))


def _declare_out(command: DeclareChannel) -> _Json:
    return {
        **_caller_out(command.caller),
        "name": command.name,
        "options": _stated_out(command.options),
        "replace": command.replace,
    }


def _declare_in(data: _Json) -> DeclareChannel:
    return DeclareChannel(_caller_in(data), data["name"], _stated_in(data["options"]), bool(data["replace"]))


def _undeclare_out(command: UndeclareChannel) -> _Json:
    return {**_caller_out(command.caller), "name": command.name, "force": command.force}


def _undeclare_in(data: _Json) -> UndeclareChannel:
    return UndeclareChannel(_caller_in(data), data["name"], bool(data["force"]))


def _create_binding_out(command: CreateBinding) -> _Json:
    return {
        **_caller_out(command.caller),
        "channel": command.channel,
        "url": command.url,
        "direction": command.direction.name.lower(),
        "options": dict(command.options),
    }


def _create_binding_in(data: _Json) -> CreateBinding:
    direction = Direction[data["direction"].upper()]
    return CreateBinding(_caller_in(data), data["channel"], data["url"], direction, dict(data["options"]))


def _delete_binding_out(command: DeleteBinding) -> _Json:
    return {
        **_caller_out(command.caller),
        "binding": command.binding,
        "channel": command.channel,
        "url": command.url,
    }


def _delete_binding_in(data: _Json) -> DeleteBinding:
    return DeleteBinding(_caller_in(data), BindingId(data["binding"]), data["channel"], data["url"])


_NAMES: Final[dict[type[Command], str]] = {
    Start: "start",
    DeclareChannel: "declare_channel",
    UndeclareChannel: "undeclare_channel",
    CreateBinding: "create_binding",
    DeleteBinding: "delete_binding",
}
_ENCODERS: Final[dict[str, Callable[[Any], _Json]]] = {
    "start": _start_out,
    "declare_channel": _declare_out,
    "undeclare_channel": _undeclare_out,
    "create_binding": _create_binding_out,
    "delete_binding": _delete_binding_out,
}
_DECODERS: Final[dict[str, Callable[[_Json], Command]]] = {
    "start": _start_in,
    "declare_channel": _declare_in,
    "undeclare_channel": _undeclare_in,
    "create_binding": _create_binding_in,
    "delete_binding": _delete_binding_in,
}


# ---- bytes -------------------------------------------------------------------------------------------------


def _dumped(data: _Json) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _loaded(data: bytes, what: str) -> _Json:
    try:
        loaded = json.loads(data)
        version = loaded["v"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(what, error) from error
    if version not in MACHINE_VERSIONS:
        known = f"{MACHINE_VERSIONS[0]} to {MACHINE_VERSIONS[-1]}"
        raise InvalidConfiguration(
            f"a {what} of the journal is of machine version {version}; this one reads {known}",
            hint="run the version of Towpath that wrote the journal, or a later one",
        )
    assert isinstance(loaded, dict)
    return loaded


def _damaged(what: str, error: Exception) -> InvalidConfiguration:
    return InvalidConfiguration(
        f"a {what} of the journal is damaged ({type(error).__name__}: {error})",
        hint="restore the state directory from a backup, or move it away to begin without definitions",
    )
