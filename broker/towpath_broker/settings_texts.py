"""What is written of the settings, all of it from their classes: the shipped example, the manual's table, and
the TOML that gives settings again.

Not here: reading (``settings``).
"""

from __future__ import annotations

import textwrap
from typing import Final

from .core.commands import ChannelOptions
from .core.locks.permissions import LockPermissions
from .settings import GATEWAY_TABLES, ChannelSettings, Settings, table_classes
from .tables import Setting, environment_name, format_toml, settings_of, to_table

EXAMPLE_CHARS: Final = 108

_EXAMPLE_HEAD: Final = """\
# Towpath's configuration. Every key is here, as a comment, with its default; an empty file is valid.
# Check yours with:  towpath serve --config FILE --check-config
#
# Keys of [daemon], [limits], [lock_limits], [zeromq] and [grpc] may also be set by environment,
# TOWPATH_TABLE_KEY, and by flag, --set TABLE.KEY=VALUE. Default < this file < environment < flag. SIGHUP
# (systemctl reload towpath) reads everything again.
#
# A gateway is started when its table stands here, or when none does. Never to start one, say so before the
# first table:
#
# zeromq = false
# grpc = false
"""

_EXAMPLE_CHANNELS: Final = """\
# Channels that the daemon declares when it starts. Quote names that have dots. What is left out takes its
# default when the channel is new, and matches anything when it exists.
#[channels."plant.line1.temp"]"""

_EXAMPLE_LOCK_PERMISSIONS: Final = """
# Who may do what with locks. "plant" is for the lock plant and all below it, plant.line1; the longest that
# fits counts, "" is for all others. Administrators may do everything. Peers from afar are zeromq:anonymous
# and grpc:anonymous.
#[lock_permissions."plant"]"""

_EXAMPLE_BINDINGS: Final = """
# Adapters attached to channels of this file; options beside channel, url and direction as in `towpath bind
# --help`.
#[[bindings]]
#channel = "plant.line1.temp"
#url = "fifo:/run/plant/temp"
#direction = "in"
#framing = "line"
"""


def example_toml() -> str:
    """Return the shipped example: every key, commented, with its default."""
    lines = [_EXAMPLE_HEAD]
    for table, cls in table_classes().items():
        lines.append(f"#[{table}]")
        for item in settings_of(cls):
            lines += [*_as_comment(item), f"#{item.name} = {format_toml(item.default)}"]
        lines.append("")
    lines.append(_EXAMPLE_CHANNELS)
    values = {
        **to_table(ChannelOptions()),
        "kind": "topic",
        "overflow": "block",
        "order": "source",
    }
    for item in settings_of(ChannelSettings):
        lines += [*_as_comment(item), f"#{item.name} = {format_toml(values[item.name])}"]
    lines.append(_EXAMPLE_LOCK_PERMISSIONS)
    for item in settings_of(LockPermissions):
        lines += [*_as_comment(item), f"#{item.name} = {format_toml(item.default)}"]
    return "\n".join(lines) + "\n" + _EXAMPLE_BINDINGS


def _as_comment(item: Setting) -> list[str]:
    text = f"{item.help.rstrip('.')} ({item.allowed})." if item.help else f"{item.allowed}."
    return textwrap.wrap(
        text[0].upper() + text[1:],
        EXAMPLE_CHARS,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
    )


def manual_table() -> str:
    """Return the manual's table of keys, in Markdown."""
    lines = [
        "| table | key | default | allowed | environment | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for table, cls in table_classes().items():
        for item in settings_of(cls):
            cells = (
                f"`[{table}]`",
                f"`{item.name}`",
                f"`{format_toml(item.default)}`",
                item.allowed,
                f"`{environment_name(table, item.name)}`",
                item.help,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def config_toml(settings: Settings) -> str:
    """Return settings as the TOML that gives them again."""
    lines = [f"{name} = false" for name in GATEWAY_TABLES if name not in settings.gateways]
    tables = {name: to_table(getattr(settings, name)) for name in ("daemon", "limits", "lock_limits")}
    tables |= {name: dict(settings.gateways[name]) for name in GATEWAY_TABLES if name in settings.gateways}
    named = {"lock_permissions": settings.lock_permissions, "channels": settings.channels}
    for of, each in named.items():
        tables |= {f'{of}."{name}"': to_table(table) for name, table in each.items()}
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {format_toml(value)}" for key, value in table.items())]
    for binding in settings.bindings:
        table = {
            "channel": binding.channel,
            "url": binding.url,
            "direction": binding.direction,
            **binding.options,
        }
        lines += ["", "[[bindings]]", *(f"{key} = {format_toml(value)}" for key, value in table.items())]
    return "\n".join(lines).lstrip() + "\n"
