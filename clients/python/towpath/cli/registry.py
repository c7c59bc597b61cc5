"""The verbs on the registry: ``status``, ``channels``, ``declare``, ``undeclare``, ``bind``, ``unbind``."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Final

from towpath.cli import report
from towpath.cli.connection import connect, output_style
from towpath.cli.grammar import UsageError, mapping
from towpath.cli.streams import emit
from towpath.errors import InvalidArgument
from towpath.model import BindingInfo

NAMES_TIMEOUT_S: Final = 1.0
"""For ``channels --names``, which a shell runs while somebody waits for a completion."""


def status(arguments: Namespace) -> int:
    """Show the daemon."""
    with connect(arguments) as client:
        answer = client.status()
    if arguments.json:
        emit(report.to_json(report.status_document(answer)))
    else:
        emit(report.status_page(answer, now_ns=time.time_ns(), style=output_style()))
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
        emit("\n".join(report.channels_lines(found, output_style())) + "\n")
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
        )
    emit(
        report.to_json(report.channel_document(channel))
        if arguments.json
        else f"{report.channel_line(channel)}\n"
    )
    return 0


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
    if not arguments.binding_url and not arguments.target.isdecimal():
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


VERBS: Final[dict[str, Callable[[Namespace], int]]] = {
    "status": status,
    "channels": channels,
    "declare": declare,
    "undeclare": undeclare,
    "bind": bind,
    "unbind": unbind,
}
