"""``towpath pub``: messages from the arguments, or from standard input cut into frames.

Theory of operation
    Input is read as it comes, in pieces of up to 1 MiB; each piece's frames are published as one batch,
    so a single line goes out at once and a large file goes in large batches. A subscriber whose ring is
    full makes the publisher wait, and through the pipe whoever writes to us; nothing is dropped here.
    Frames longer than the channel takes are told of and left out, and the exit code says so. At the end
    it waits until everyone has read everything. A subscriber that does not read must not make us fail, so
    without ``--timeout`` what follows the wait is a note: its messages stay in the ring for it.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from towpath.cli import streams
from towpath.cli.connection import connect
from towpath.cli.grammar import mapping
from towpath.convert import encode_headers
from towpath.errors import Timeout
from towpath.model import Headers

if TYPE_CHECKING:
    import towpath
    from towpath.cli.progress import Progress

DRAIN_TIMEOUT_S: Final = 10.0
"""How long to wait at the end, when ``--timeout`` does not say."""


def run(arguments: Namespace) -> int:
    """Publish, and leave when everyone has read it."""
    with connect(arguments) as client, client.publisher(arguments.channel) as publisher:
        _tell_of_nobody(arguments, client)
        if arguments.data:
            payloads = [os.fsencode(text) for text in arguments.data]
            publisher.publish_many(payloads, headers_raw=_headers(arguments), timeout=arguments.timeout)
            exit_code = 0
        else:
            exit_code = _publish_input(arguments, publisher)
        _wait_drained(arguments, publisher)
    return exit_code


def _publish_input(arguments: Namespace, publisher: towpath.Publisher) -> int:
    """Publish standard input, to its end; return the exit code."""
    # Not above: a single message from the arguments should not pay for their import.
    from towpath.cli.frames import Refusals, framing_options
    from towpath.framing import decoder

    headers = _headers(arguments)
    frames = decoder(framing_options(arguments, bytes_max=publisher.message_bytes_max - len(headers)))
    refusals = Refusals("not published")
    progress = _progress(arguments)
    if streams.is_terminal(streams.STDIN) and not arguments.quiet:
        streams.note("each line you type is a message; Ctrl-D ends")
    try:
        for chunk in streams.read_chunks():
            payloads = frames.feed(chunk)
            if payloads:
                publisher.publish_many(payloads, headers_raw=headers, timeout=arguments.timeout)
            if progress is not None:
                progress.advance(len(payloads), len(chunk))
            if frames.refused:
                if progress is not None:
                    progress.erase()
                refusals.note(frames.refused, frames.last_error)
            if frames.is_broken:
                break
        if last := frames.end():
            publisher.publish_many(last, headers_raw=headers, timeout=arguments.timeout)
            if progress is not None:
                progress.advance(len(last), 0)
    finally:
        if progress is not None:
            progress.finish()
    refusals.note(frames.refused, frames.last_error)
    return refusals.conclude()


def _headers(arguments: Namespace) -> bytes:
    """Serialize the headers, the same for every message; empty when none were given."""
    return encode_headers(
        Headers(
            content_type=arguments.content_type,
            key=os.fsencode(arguments.key),
            user=mapping("--header", arguments.header),
        )
    )


def _progress(arguments: Namespace) -> Progress | None:
    if arguments.quiet or arguments.no_progress or not streams.is_terminal(streams.STDERR):
        return None
    # While somebody types, their own lines are on the terminal.
    if streams.is_terminal(streams.STDIN):
        return None
    from towpath.cli.progress import Progress

    return Progress(streams.input_bytes_left(), show=streams.show, columns=streams.columns(streams.STDERR))


def _tell_of_nobody(arguments: Namespace, client: towpath.Client) -> None:
    if arguments.quiet or not streams.is_terminal(streams.STDERR):
        return
    if client.channel_info(arguments.channel).subscribers == 0:
        streams.note(f"note: nobody subscribes to {arguments.channel} at the moment")


def _wait_drained(arguments: Namespace, publisher: towpath.Publisher) -> None:
    """Wait until every subscriber has read everything; bounded.

    Raises:
        Timeout: not within ``--timeout``. Without that, there is a note instead.
    """
    timeout_s = DRAIN_TIMEOUT_S if arguments.timeout is None else arguments.timeout
    if publisher.wait_drained(timeout_s):
        return
    message = f"a subscriber of {arguments.channel} has not read everything after {timeout_s:g} s"
    hint = "everything was published, and stays in its ring for it"
    if arguments.timeout is not None:
        raise Timeout(message, hint=hint)
    if not arguments.quiet:
        streams.warn(f"{message}; {hint}")
