"""The verbs on the registry: ``status``, ``channels``, ``declare``, ``undeclare``, ``bind``, ``unbind``."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Final, cast

from towpath.cli import report
from towpath.cli.connection import connect
from towpath.cli.grammar import UsageError, mapping
from towpath.cli.streams import STDOUT, emit, is_terminal
from towpath.cli.text import Style
from towpath.errors import InvalidArgument
from towpath.model import BindingInfo, KeepingOptions

NAMES_TIMEOUT_S: Final = 1.0
"""For ``channels --names``, which a shell runs while somebody waits for a completion."""

_ID: Final = re.compile(r"[0-9]{1,19}\Z")


def status(arguments: Namespace) -> int:
    """Show the daemon."""
    with connect(arguments) as client:
        answer = client.status()
    if arguments.json:
        emit(report.to_json(report.status_document(answer)))
    else:
        emit(report.status_page(answer, now_ns=time.time_ns(), style=_style()))
    return 0


def channels(arguments: Namespace) -> int:
    """List channels."""
    with connect(arguments, timeout=NAMES_TIMEOUT_S if arguments.names else 5.0) as client:
        found = client.channels(arguments.prefix)
    if arguments.json:
        emit(report.to_json([report.channel_document(channel) for channel in found]))
    elif arguments.names:
        emit("".join(f"{channel.name}\n" for channel in found))
    elif found:
        emit("\n".join(report.channels_lines(found, _style())) + "\n")
    else:
        which = f" that begin with {arguments.prefix}" if arguments.prefix else ""
        emit(f"no channels{which}\n")
    return 0


def declare(arguments: Namespace) -> int:
    """Declare a channel."""
    with connect(arguments) as client:
        channel = client.declare(
            arguments.channel,
            kind=arguments.kind,
            durable=arguments.durable,
            overflow=arguments.overflow,
            ring_bytes=arguments.ring_bytes,
            order=arguments.order,
            history=arguments.history,
            stall_ms_max=arguments.stall_ms_max,
            **_keeping(arguments),
        )
    emit(
        report.to_json(report.channel_document(channel))
        if arguments.json
        else f"{report.channel_line(channel)}\n"
    )
    return 0


def _keeping(arguments: Namespace) -> KeepingOptions:
    """The options of queues and of what is kept, as far as they were given."""
    given = {name: getattr(arguments, name) for name in KeepingOptions.__annotations__}
    return cast(KeepingOptions, {name: value for name, value in given.items() if value is not None})


def undeclare(arguments: Namespace) -> int:
    """Remove a channel."""
    with connect(arguments) as client:
        client.undeclare(arguments.channel, force=arguments.force)
    return 0


def bind(arguments: Namespace) -> int:
    """Attach a binding and wait until it is up."""
    options = mapping("--option", arguments.option)
    if arguments.frame is not None and options.setdefault("framing", arguments.frame) != arguments.frame:
        raise UsageError("--frame and --option framing differ", "give one of them")
    with connect(arguments) as client:
        binding = client.bind(
            arguments.channel,
            arguments.binding_url,
            direction=arguments.direction,
            options=options,
            keep=arguments.keep,
            timeout=arguments.timeout,
        )
    _print_binding(arguments, binding)
    return 0


def unbind(arguments: Namespace) -> int:
    """Detach a binding, named by its id or by channel and URL."""
    if not arguments.binding_url and not _ID.match(arguments.target):
        raise InvalidArgument(
            f"{arguments.target!r} is not a binding's id",
            hint="towpath unbind ID, or towpath unbind CHANNEL URL; towpath status lists them",
        )
    with connect(arguments) as client:
        if arguments.binding_url:
            binding = client.unbind(channel=arguments.target, url=arguments.binding_url)
        else:
            binding = client.unbind(int(arguments.target))
    _print_binding(arguments, binding)
    return 0


def _print_binding(arguments: Namespace, binding: BindingInfo) -> None:
    if arguments.json:
        emit(report.to_json(report.binding_document(binding)))
    else:
        emit(f"{report.binding_line(binding)}\n")


def _style() -> Style:
    """Colours where standard output is a terminal and NO_COLOR is unset or empty (https://no-color.org)."""
    return Style(is_terminal(STDOUT) and not os.environ.get("NO_COLOR"))


VERBS: Final[dict[str, Callable[[Namespace], int]]] = {
    "status": status,
    "channels": channels,
    "declare": declare,
    "undeclare": undeclare,
    "bind": bind,
    "unbind": unbind,
}
