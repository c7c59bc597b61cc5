"""``towpath sub``: messages to standard output as they come.

Theory of operation
    Messages are taken in batches. While more are waiting, their output is collected; once none is, or
    ``HELD_S`` have passed, it is written: so `towpath sub x | while read` sees each line at once, and a
    flood goes out in large pieces. A reader of ours that is slow makes us slow, and so, by the channel's
    overflow policy, the publishers. Without ``--frame`` each payload is followed by a newline, whatever
    is in it; a note tells, once, when that makes one message look like several. With ``--frame`` a
    payload that the framing cannot carry is left out and told of, and the exit code says so.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from towpath.cli import report, streams
from towpath.cli.connection import connect
from towpath.cli.frames import Refusals, framing_options
from towpath.cli.grammar import UsageError
from towpath.cli.text import printable
from towpath.errors import Timeout
from towpath.framing import encoder
from towpath.names import check_pattern, is_pattern
from towpath.wording import plural

if TYPE_CHECKING:
    import towpath

BATCH_COUNT_MAX: Final = 4096
HELD_S: Final = 0.05
"""Longest that output is held back while messages keep coming."""

PLACE_TIMEOUT_S: Final = 5.0

Writer = Callable[[Sequence["towpath.Message"]], list[bytes]]


def run(arguments: Namespace) -> int:
    """Print messages until there were enough, or nothing came for too long, or somebody stops it."""
    check_pattern(arguments.channel)
    refusals = Refusals("not printed")
    write = _writer(arguments, refusals)
    if arguments.take_over and not arguments.place:
        raise UsageError("--take-over without --place", "a name is taken over: say which")
    with (
        connect(arguments) as client,
        client.subscribe(
            arguments.channel,
            start=arguments.start,
            place=arguments.place or "",
            take_over=arguments.take_over,
            held_max=0,
        ) as subscription,
    ):
        streams.leave_when_output_closes()
        try:
            _carry(subscription, write, arguments.count, arguments.timeout)
        finally:
            if arguments.place and subscription.next_seq is not None:
                subscription.save_place(PLACE_TIMEOUT_S)
            if subscription.lost:
                streams.warn(f"not read in time, and lost: {plural(subscription.lost, 'message')}")
            exit_code = refusals.conclude()
    return exit_code


def _carry(
    subscription: towpath.Subscription, write: Writer, count: int | None, timeout_s: float | None
) -> None:
    """Print ``count`` messages, or go on for ever.

    Raises:
        Timeout: nothing came for ``timeout_s``; what came before has been printed.
    """
    output = streams.Output()
    received = 0
    held_since_s = 0.0
    try:
        while count is None or received < count:
            wanted = BATCH_COUNT_MAX if count is None else min(BATCH_COUNT_MAX, count - received)
            batch: Sequence[towpath.Message] = []
            if output.pending_bytes and time.monotonic() - held_since_s < HELD_S:
                batch = subscription.receive_many(wanted, timeout=0)
            if not batch:
                output.flush()
                batch = subscription.receive_many(wanted, timeout=timeout_s)
                held_since_s = time.monotonic()
            if not batch:
                raise Timeout(_shortfall(subscription.name, received, count, timeout_s), hint="")
            received += len(batch)
            output.write(write(batch))
    finally:
        output.flush()


def _shortfall(channel: str, received: int, count: int | None, timeout_s: float | None) -> str:
    of = "" if count is None else f" of {count:,}"
    return f"no message on {channel} for {timeout_s or 0:g} s, after {plural(received, 'message')}{of}"


def _writer(arguments: Namespace, refusals: Refusals) -> Writer:
    """Choose how messages are printed."""
    if arguments.frame is not None:
        if arguments.json or arguments.meta:
            raise UsageError("--frame cannot go with --json or --meta", "these two print lines")
        return _frame_writer(arguments, refusals)
    for option in ("delimiter", "frame_bytes", "frame_bytes_max"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} needs --frame", "try: towpath sub --help")
    if arguments.json:
        return lambda batch: [report.message_json_line(message) for message in batch]
    is_terminal = streams.is_terminal(streams.STDOUT)
    if arguments.meta:
        with_channel = is_pattern(arguments.channel)
        return lambda batch: [
            report.message_prefix(message, with_channel=with_channel)
            + (printable(message.payload) if is_terminal else message.payload)
            + b"\n"
            for message in batch
        ]
    if is_terminal:
        return lambda batch: [printable(message.payload) + b"\n" for message in batch]
    return _line_writer()


def _line_writer() -> Writer:
    """Each payload and a newline; a note, once, when a payload has newlines of its own."""
    is_noted = False

    def write(batch: Sequence[towpath.Message]) -> list[bytes]:
        nonlocal is_noted
        text = b"\n".join([*[message.payload for message in batch], b""])
        if not is_noted and text.count(b"\n") != len(batch):
            is_noted = True
            streams.note("note: a message has newlines in it and looks like several; see --frame and --json")
        return [text]

    return write


def _frame_writer(arguments: Namespace, refusals: Refusals) -> Writer:
    frames = encoder(framing_options(arguments))

    def write(batch: Sequence[towpath.Message]) -> list[bytes]:
        pieces = frames.encode([message.payload for message in batch])
        if frames.refused:
            refusals.note(frames.refused, frames.last_error)
        return pieces

    return write
