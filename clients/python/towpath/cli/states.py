"""``towpath get`` and ``towpath set``: a state's value."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from towpath.cli import report, streams
from towpath.cli.connection import connect
from towpath.cli.grammar import UsageError

if TYPE_CHECKING:
    import towpath

EXIT_ABSENT = 1
"""There is no value."""


def get(arguments: Namespace) -> int:
    """Print the value, and perhaps each that follows it."""
    with connect(arguments) as client:
        state = client.state(arguments.channel)
        if not arguments.follow:
            value = state.look()
            _print(arguments, value)
            return 0 if value.is_set else EXIT_ABSENT
        streams.leave_when_output_closes()
        with state.watch() as watch:
            for value in watch:
                _print(arguments, value)
    return 0


def _print(arguments: Namespace, value: towpath.Value) -> None:
    if arguments.json:
        data = report.value_json_line(value)
    elif arguments.version:
        data = b"%d\n" % value.version
    elif not value.is_set:
        streams.note("no value")
        return
    else:
        is_line = arguments.follow or streams.is_terminal(streams.STDOUT)
        data = value.payload + (b"\n" if is_line and not value.payload.endswith(b"\n") else b"")
    output = streams.Output()
    output.write([data])
    output.flush()


def set_value(arguments: Namespace) -> int:
    """Set the value, or delete it."""
    if arguments.delete and arguments.data is not None:
        raise UsageError("--delete takes no value", "leave DATA out, or --delete")
    with connect(arguments) as client:
        state = client.state(arguments.channel)
        if arguments.delete:
            version = state.delete(if_version=arguments.if_version)
        else:
            version = state.set(_payload(arguments), if_version=arguments.if_version)
    if arguments.version:
        streams.emit(f"{version}\n")
    return 0


def _payload(arguments: Namespace) -> bytes:
    if arguments.data is not None and arguments.data != "-":
        return os.fsencode(arguments.data)
    return b"".join(streams.read_chunks())
