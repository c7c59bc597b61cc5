"""From the configuration's channels and bindings to commands: what must change so that the registry is as
configured.

The configuration owns what it declares (owner ``config``): what it no longer names is removed, unless
somebody uses it. What clients declared is left alone; where both want the same name and differ, the
configuration does not win over what is in use, and an operator is warned. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import IntEnum
from typing import Any, Final

from .core import commands
from .core.codec import DurableState
from .core.commands import Caller, Command, Direction, Kind, Order, Overflow, StatedOptions
from .settings import ChannelSettings, Settings

CONFIG: Final = Caller("config", is_admin=True)


def commands_for(settings: Settings, state: DurableState) -> list[Command]:
    """Return the commands that bring the registry to what the settings say, in order."""
    wanted = {(item.channel, item.url): item for item in settings.bindings}
    result: list[Command] = []
    for binding in state.bindings:
        item = wanted.get((binding.channel, binding.url))
        is_alike = (
            item is not None
            and binding.direction == Direction[item.direction.upper()]
            and dict(binding.options) == dict(item.options)
        )
        if binding.owner == CONFIG.principal and not is_alike:
            result.append(commands.DeleteBinding(CONFIG, binding.id))
    result.extend(
        commands.UndeclareChannel(CONFIG, channel.name)
        for channel in state.channels
        if channel.owner == CONFIG.principal and channel.name not in settings.channels
    )
    result.extend(
        commands.DeclareChannel(CONFIG, name, _stated(channel), replace=True)
        for name, channel in settings.channels.items()
    )
    result.extend(
        commands.CreateBinding(
            CONFIG, item.channel, item.url, Direction[item.direction.upper()], item.options
        )
        for item in settings.bindings
    )
    return result


_ENUMS: Final[Mapping[str, type[IntEnum]]] = {"kind": Kind, "overflow": Overflow, "order": Order}


def _stated(channel: ChannelSettings) -> StatedOptions:
    stated: dict[str, Any] = {}
    for option in fields(ChannelSettings):
        value = getattr(channel, option.name)
        if value is not None:
            stated[option.name] = _ENUMS[option.name][value.upper()] if option.name in _ENUMS else value
    return StatedOptions(**stated)
