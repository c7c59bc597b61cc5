"""The daemon's settings: one tree of frozen dataclasses, filled from defaults, a TOML file, the environment
and flags.

Theory of operation
    Each table is a class of :func:`towpath_broker.tables.setting` fields, and everything else derives from
    it: keys and ranges, the variables ``TOWPATH_TABLE_KEY``, the flags, and what is written of them
    (``settings_texts``). Precedence: default < TOML < environment < flag. ``[limits]``, ``[lock_limits]`` and
    ``[lock_permissions]`` are the core's own classes. The tables of gateways belong to the gateways: their
    classes are looked up by name, in modules that import no network library, so that one check covers all.

    A gateway is started when its table stands in the file, or when no gateway's does; naming one in the
    environment or by flag starts it too, and ``grpc = false`` at the top of the file never starts it. The
    bridge always runs.

    The tree travels to the core as JSON (:meth:`Settings.to_json`), complete: the core reads no file and no
    environment.

Invariants
    A :class:`Settings` is complete and checked: whoever has one need not ask again.
    ``Settings.from_json(x.to_json()) == x``. Whatever is wrong is one :class:`InvalidConfiguration` that
    names file, table, key and what is allowed.

Not here: directories and sockets (host/), what the settings mean (whoever reads them).
"""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from towpath.bindings import OPTION_TYPES, check_options, parse_url
from towpath.errors import InvalidConfiguration, TowpathError
from towpath.model import Kind, Order, Overflow
from towpath.names import check_name

from .core.limits import HISTORY_MAX, OPTION_RANGES, RING_BYTES_MIN, STALL_MS_LIMIT, Limits
from .core.limits import RING_BYTES_LIMIT as RING_BYTES_MAX
from .core.locks.limits import LockLimits
from .core.locks.permissions import LockPermissions
from .log import Level
from .tables import (
    environment_table,
    parse_table,
    setting,
    to_table,
    unknown_key,
)

T = TypeVar("T")
CONFIG_BYTES_MAX: Final = 1 << 20

GATEWAY_TABLES: Final[dict[str, str]] = {
    "zeromq": "towpath_broker.gateways.zeromq.settings:ZeroMQSettings",
    "grpc": "towpath_broker.gateways.grpc.settings:GrpcSettings",
}
"""Gateways that have a table, and the class it is parsed by."""
GATEWAYS: Final = ("bridge", *GATEWAY_TABLES)
_BY_NAME: Final = {
    "channels": "a channel's name",
    "lock_permissions": "what locks' names begin with",
    "bindings": "",
}
"""What is not one table with a key per field, and what the names there are."""
_BINDING_KEYS: Final = ("channel", "url", "direction")


def _check_ring_bytes(ring_bytes: int) -> None:
    if ring_bytes & (ring_bytes - 1):
        raise InvalidConfiguration(
            f"ring_bytes: {ring_bytes} is not allowed; "
            f"allowed: a power of two, {RING_BYTES_MIN} to {RING_BYTES_MAX}"
        )


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """Table ``[daemon]``."""

    runtime_dir: str = setting(
        "",
        "Directory of the socket. Empty: $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/towpath, else "
        "/run/towpath for root and /tmp/towpath-UID for others.",
        maximum=4_095,
    )
    state_dir: str = setting(
        "",
        "Directory of the journal. Empty: $STATE_DIRECTORY, else /var/lib/towpath for root and "
        "$XDG_STATE_HOME/towpath (~/.local/state/towpath) for others.",
        maximum=4_095,
    )
    socket_mode: str = setting(
        "0600", "Permissions of the socket, in octal. 0660 with a socket_group lets that group in."
    )
    socket_group: str = setting("", "Group of the socket. Empty: the daemon's own.", maximum=64)
    admin_group: str = setting(
        "towpath-admin",
        "Members may make bindings, beside root and the daemon's own uid. Empty: nobody else may.",
        maximum=64,
    )
    ring_bytes: int = setting(
        1 << 20,
        "Bytes of each publisher's ring on channels that state none; a power of two. The largest message is "
        "a quarter of it.",
        minimum=RING_BYTES_MIN,
        maximum=RING_BYTES_MAX,
    )
    log_level: Level = setting("info", "Events below this level are not logged.")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"0?[0-7]{3}", self.socket_mode):
            raise InvalidConfiguration(
                f"socket_mode: {self.socket_mode!r} is not allowed; "
                "allowed: an octal number, 000 to 0777, as a string"
            )
        _check_ring_bytes(self.ring_bytes)
        for name in ("runtime_dir", "state_dir"):
            path = getattr(self, name)
            if path and not path.startswith("/"):
                raise InvalidConfiguration(f"{name}: {path!r} is not allowed; allowed: an absolute path")


def _option(name: str, doc: str) -> Any:
    """A channel's option that is a number, in the range that the registry takes."""
    minimum, maximum = OPTION_RANGES[name]
    return setting(None, doc, minimum=minimum, maximum=maximum)


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """A table ``[channels."NAME"]``; None was not stated, and matches whatever the channel has."""

    kind: Kind | None = setting(None, "What the channel does.")
    durable: bool | None = setting(None, "Whether messages are on disk before anybody sees them.")
    overflow: Overflow | None = setting(
        None, "When a subscriber's ring is full: the publisher waits, or the subscriber loses the oldest."
    )
    ring_bytes: int | None = setting(
        None,
        "Bytes of each publisher's ring; a power of two.",
        minimum=RING_BYTES_MIN,
        maximum=RING_BYTES_MAX,
    )
    order: Order | None = setting(
        None, "Whose order subscribers see: each publisher's own, or one for all of them."
    )
    history: int | None = setting(
        None,
        "Messages of each publisher that a new subscriber gets first, as far as they are still in its ring.",
        minimum=0,
        maximum=HISTORY_MAX,
    )
    stall_ms_max: int | None = setting(
        None,
        "Milliseconds that a publisher waits for a subscriber that does not move, before the two are parted; "
        "0 is for ever.",
        minimum=0,
        maximum=STALL_MS_LIMIT,
    )
    capacity: int | None = _option("capacity", "Queues: messages that are in it at most.")
    capacity_bytes: int | None = _option("capacity_bytes", "Queues: bytes that are in it at most.")
    ack_ms: int | None = _option("ack_ms", "Queues: milliseconds that a delivery may stay unsettled.")
    max_deliveries: int | None = _option(
        "max_deliveries", "Queues: how often a message is delivered before it is a dead letter; 0: no bound."
    )
    dead_letter: str | None = setting(
        None,
        "Queues: the queue or topic to which dead letters go. Empty: they are dropped, and counted.",
        maximum=255,
    )
    retain_bytes: int | None = _option("retain_bytes", "Durable topics: bytes that are kept; 0: no bound.")
    retain_ms: int | None = _option("retain_ms", "Durable topics: how old what is kept may be; 0: no bound.")
    retain_messages: int | None = _option(
        "retain_messages", "Durable topics: messages that are kept; 0: no bound."
    )
    dedupe_ms: int | None = _option(
        "dedupe_ms", "Queues and durable topics: how long message ids are remembered; 0: not at all."
    )

    def __post_init__(self) -> None:
        if self.ring_bytes is not None:
            _check_ring_bytes(self.ring_bytes)


@dataclass(frozen=True, slots=True)
class BindingSettings:
    """One of ``[[bindings]]``.

    Attributes:
        channel: a channel of the same file.
        options: in canonical spelling, as :func:`towpath.bindings.check_options` gives them.
    """

    channel: str
    url: str
    direction: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it.

    Attributes:
        channels: by name. lock_permissions: by prefix.
        gateways: the gateways to run, each with its complete table.
        stated_gateways: those that were asked for by name; the others run because nothing was said.
        config_file: the file that was read; empty for none.
    """

    daemon: DaemonSettings = DaemonSettings()
    limits: Limits = Limits()
    channels: Mapping[str, ChannelSettings] = field(default_factory=dict)
    bindings: tuple[BindingSettings, ...] = ()
    gateways: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stated_gateways: tuple[str, ...] = ()
    config_file: str = ""
    lock_limits: LockLimits = LockLimits()
    lock_permissions: Mapping[str, LockPermissions] = field(default_factory=dict)

    def to_table(self) -> dict[str, Any]:
        """Return the tree as plain values, fit for JSON."""
        return {
            "daemon": to_table(self.daemon),
            "limits": to_table(self.limits),
            "lock_limits": to_table(self.lock_limits),
            "lock_permissions": {prefix: to_table(table) for prefix, table in self.lock_permissions.items()},
            "channels": {name: to_table(channel) for name, channel in self.channels.items()},
            "bindings": [to_table(binding) for binding in self.bindings],
            "gateways": {name: dict(table) for name, table in self.gateways.items()},
            "stated_gateways": list(self.stated_gateways),
            "config_file": self.config_file,
        }

    def to_json(self) -> str:
        """Return the tree as JSON, for another process."""
        return json.dumps(self.to_table(), separators=(",", ":"))

    @classmethod
    def from_table(cls, tree: Any) -> Settings:
        """Return the tree that :meth:`to_table` gave.

        Raises:
            InvalidConfiguration: it did not give this.
        """
        try:
            return cls(
                daemon=parse_table(DaemonSettings, tree["daemon"], where="[daemon]"),
                limits=parse_table(Limits, tree["limits"], where="[limits]"),
                lock_limits=parse_table(LockLimits, tree["lock_limits"], where="[lock_limits]"),
                lock_permissions={
                    prefix: parse_table(LockPermissions, table, where=f"[lock_permissions.{prefix}]")
                    for prefix, table in tree["lock_permissions"].items()
                },
                channels={
                    name: parse_table(ChannelSettings, table, where=f"[channels.{name}]")
                    for name, table in tree["channels"].items()
                },
                bindings=tuple(BindingSettings(**item) for item in tree["bindings"]),
                gateways=tree["gateways"],
                stated_gateways=tuple(tree["stated_gateways"]),
                config_file=tree["config_file"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidConfiguration(f"the settings handed over cannot be read: {error!r}") from None

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return the tree that :meth:`to_json` wrote.

        Raises:
            InvalidConfiguration: it did not write this.
        """
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise InvalidConfiguration(f"the settings handed over are not JSON: {error}") from None
        return cls.from_table(tree)


# ---- reading -----------------------------------------------------------------------------------------------


def table_classes() -> dict[str, type]:
    """Return the classes of the tables that have one key per field: [daemon], [limits], [lock_limits] and the
    gateways'."""
    classes: dict[str, type] = {"daemon": DaemonSettings, "limits": Limits, "lock_limits": LockLimits}
    for name, place in GATEWAY_TABLES.items():
        module, _, attribute = place.partition(":")
        classes[name] = getattr(importlib.import_module(module), attribute)
    return classes


def load_settings(
    config: Path | None = None,
    *,
    environment: Mapping[str, str],
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Read, merge and check all settings.

    Args:
        config: the TOML file; None for none.
        environment: where to look for ``TOWPATH_TABLE_KEY``.
        flags: what the command line set, by table and key, already of the right type.

    Raises:
        InvalidConfiguration: the file cannot be read, or something in it, the environment or the flags is
        wrong.
    """
    file = str(config) if config is not None else ""
    document = _read_toml(config) if config is not None else {}
    classes = table_classes()
    for key in document:
        if key not in (*classes, *_BY_NAME):
            raise unknown_key(f"{file}:", key, (*classes, *_BY_NAME))
    parsed: dict[str, Any] = {}
    named: set[str] = set()
    for name, cls in classes.items():
        in_file = {} if name in GATEWAY_TABLES and document.get(name) is False else document.get(name, {})
        # The file by itself first, so that what is wrong in it is said of it and not of the mixture.
        parse_table(cls, in_file, where=f"{file}: [{name}]")
        above = {**environment_table(cls, name, environment), **(flags or {}).get(name, {})}
        parsed[name] = parse_table(
            cls,
            {**in_file, **above},
            where=f"environment and flags: [{name}]" if above else f"{file}: [{name}]",
        )
        if above:
            named.add(name)
    channels = dict(_read_named("channels", ChannelSettings, document, file))
    started, stated = _choose_gateways(document, named)
    settings = Settings(
        daemon=parsed["daemon"],
        limits=parsed["limits"],
        lock_limits=parsed["lock_limits"],
        lock_permissions=dict(_read_named("lock_permissions", LockPermissions, document, file)),
        channels=channels,
        bindings=tuple(_read_bindings(document.get("bindings", []), channels, file)),
        gateways={name: to_table(parsed[name]) if name in parsed else {} for name in started},
        stated_gateways=stated,
        config_file=file,
    )
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            data = stream.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise InvalidConfiguration(f"{path}: longer than {CONFIG_BYTES_MAX} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise InvalidConfiguration(f"{path}: cannot be read: {error.strerror}", hint="") from None
    except UnicodeDecodeError as error:
        raise InvalidConfiguration(f"{path}: byte {error.start} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfiguration(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise InvalidConfiguration(f"{path}: nested too deeply") from None


def _read_named(
    tables_name: str, cls: type[T], document: Mapping[str, object], file: str
) -> Iterator[tuple[str, T]]:
    """Yield tables that are of something with a name: [channels."NAME"]."""
    tables = document.get(tables_name, {})
    if not isinstance(tables, Mapping):
        raise InvalidConfiguration(f'{file}: {tables_name}: allowed: tables [{tables_name}."NAME"]')
    for name, table in tables.items():
        where = f'{file}: [{tables_name}."{name}"]'
        if (
            isinstance(table, Mapping)
            and table
            and all(isinstance(value, Mapping) for value in table.values())
        ):
            raise InvalidConfiguration(
                f"{where}: has only tables in it",
                hint=f'quote names that have dots: [{tables_name}."plant.line1"]',
            )
        try:
            if name or tables_name == "channels":  # the empty prefix is that of all locks
                check_name(name, _BY_NAME[tables_name])
        except TowpathError as error:
            raise InvalidConfiguration(f"{where}: {error.message}", hint=error.hint) from None
        yield name, parse_table(cls, table, where=where)


def _read_bindings(
    tables: object, channels: Mapping[str, ChannelSettings], file: str
) -> Iterator[BindingSettings]:
    if (
        not isinstance(tables, Sequence)
        or isinstance(tables, str)
        or not all(isinstance(t, Mapping) for t in tables)
    ):
        raise InvalidConfiguration(f"{file}: bindings: allowed: tables [[bindings]]")
    for number, table in enumerate(tables, 1):
        where = f"{file}: [[bindings]] number {number}:"
        for key in _BINDING_KEYS:
            if not isinstance(table.get(key), str):
                raise InvalidConfiguration(f"{where} {key}: missing, or not a string")
        if table["channel"] not in channels:
            raise InvalidConfiguration(
                f"{where} channel: {table['channel']!r} is not declared in this file",
                hint=f'add a table: [channels."{table["channel"]}"]',
            )
        stated = {
            key: _option_text(key, value, where) for key, value in table.items() if key not in _BINDING_KEYS
        }
        try:
            scheme, _ = parse_url(table["url"])
            options = check_options(scheme, table["direction"], stated)
        except TowpathError as error:
            raise InvalidConfiguration(f"{where} {error.message}", hint=error.hint) from None
        yield BindingSettings(table["channel"], table["url"], table["direction"], options)


def _option_text(key: str, value: object, where: str) -> str:
    """Return a binding's option as the text that the wire carries."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        if OPTION_TYPES.get(key) == "octal":
            raise InvalidConfiguration(
                f'{where} {key}: {value} is ambiguous; allowed: a string, as in "0660"'
            )
        return str(value)
    raise InvalidConfiguration(
        f"{where} {key}: {value!r} is not allowed; allowed: a string, a whole number, true or false"
    )


def _choose_gateways(document: Mapping[str, Any], named: set[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return which gateways run, and which of these were asked for; see the module's docstring."""
    refused = {name for name in GATEWAY_TABLES if document.get(name) is False}
    stated = tuple(
        name for name in GATEWAY_TABLES if name not in refused and (name in document or name in named)
    )
    in_file = any(name in document and name not in refused for name in GATEWAY_TABLES)
    started = stated if in_file else tuple(name for name in GATEWAY_TABLES if name not in refused)
    return ["bridge", *started], stated


def with_directories(settings: Settings, *, runtime_dir: str, state_dir: str) -> Settings:
    """Return the settings with the directories that are really used."""
    return replace(settings, daemon=replace(settings.daemon, runtime_dir=runtime_dir, state_dir=state_dir))
