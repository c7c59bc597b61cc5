"""``towpath pub``: messages from the arguments, or from standard input cut into frames.

Theory of operation
    Little that is known at once, a few words or a short file, goes to the daemon in one request, which the
    core writes into a ring of its own: there it stays for the subscribers when this process is gone.

    More, or input that comes bit by bit, is published from a ring of this process. It is read in pieces of
    up to 1 MiB, and each piece's frames are published as one batch, so a single line goes out at once and a
    large file goes in large batches. At the end it waits until everything is on disk, where the channel is
    durable, and until everyone has read everything. A subscriber
    that does not read must not make us fail, so without ``--timeout`` what follows the wait is a note: its
    messages stay in the ring for it.

    A core that is started again is not noticed. If there is none for ``ABSENT_S``, and still something comes
    to be published, it is told and this ends: subscribers that come meanwhile would not be known here.

    Either way, a subscriber whose ring is full makes the publisher wait, and through the pipe whoever writes
    to us; nothing is dropped here. Frames longer than the channel takes are told of and left out, and the
    exit code says so.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from towpath import calls, outcomes
from towpath.cli import streams
from towpath.cli.connection import connect, connect_briefly
from towpath.cli.grammar import UsageError, mapping
from towpath.convert import encode_headers
from towpath.errors import NotSupported, Timeout
from towpath.model import ChannelInfo, Headers
from towpath.waiting import CALL_TIMEOUT_S

if TYPE_CHECKING:
    import towpath
    from towpath.cli.progress import Progress
    from towpath.sync.brief import BriefClient

DRAIN_TIMEOUT_S: Final = 10.0
"""How long to wait at the end, when ``--timeout`` does not say."""
ABSENT_S: Final = CALL_TIMEOUT_S
"""How long a stream is published on while there is no daemon."""
BRIEF_BYTES_MAX: Final = 64 << 10
"""What goes to the daemon in one request, at most."""
PAYLOADS_MAX: Final = 10_000
"""Payloads of one request; the contract's."""


def run(arguments: Namespace) -> int:
    """Publish, and leave when it is where subscribers find it."""
    if arguments.message_id and len(arguments.data) != 1:
        raise UsageError("--message-id is of one message", "give that one after the channel's name")
    if arguments.data:
        payloads = [os.fsencode(text) for text in arguments.data]
        if _is_little(payloads) and (brief := connect_briefly(arguments)) is not None:
            with brief:
                _publish_briefly(arguments, brief, payloads)
            return 0
        return _stream(arguments, lambda _, publisher: _publish_data(arguments, publisher, payloads))
    chunks = streams.read_chunks()
    if streams.is_terminal(streams.STDIN):
        return _stream(arguments, functools.partial(_publish_input, arguments, chunks))
    beginning, is_whole = streams.read_little(chunks, BRIEF_BYTES_MAX)
    if is_whole and (brief := connect_briefly(arguments)) is not None:
        with brief:
            return _publish_whole(arguments, brief, beginning)
    rest = itertools.chain([beginning], chunks)
    return _stream(arguments, functools.partial(_publish_input, arguments, rest))


# ---- in one request


def _is_little(payloads: Sequence[bytes]) -> bool:
    return len(payloads) <= PAYLOADS_MAX and sum(map(len, payloads)) <= BRIEF_BYTES_MAX


def _publish_whole(arguments: Namespace, client: BriefClient, data: bytes) -> int:
    """Publish all of standard input, which is little; return the exit code."""
    from towpath.cli.frames import Refusals, framing_options
    from towpath.framing import decoder

    # What a ring takes, as the ring itself would say: a quarter of it less the record's own bytes.
    bytes_max = client.call(calls.channel_info(arguments.channel), CALL_TIMEOUT_S).ring_bytes // 4 - 32
    frames = decoder(framing_options(arguments, bytes_max=bytes_max - len(_headers(arguments))))
    payloads = [*frames.feed(data), *frames.end()]
    for start in range(0, len(payloads), PAYLOADS_MAX):
        _publish_briefly(arguments, client, payloads[start : start + PAYLOADS_MAX])
    refusals = Refusals("not published")
    refusals.note(frames.refused, frames.last_error)
    return refusals.conclude()


def _publish_briefly(arguments: Namespace, client: BriefClient, payloads: Sequence[bytes]) -> None:
    if _wants_note(arguments):
        _tell_of_nobody(client.call(calls.channel_info(arguments.channel), CALL_TIMEOUT_S))
    client.call(calls.publish(arguments.channel, payloads, _headers(arguments)), arguments.timeout)


# ---- from a ring of our own


def _stream(arguments: Namespace, publish: Callable[[towpath.Client, towpath.Publisher], int]) -> int:
    with connect(arguments) as client, client.publisher(arguments.channel) as publisher:
        if _wants_note(arguments):
            _tell_of_nobody(client.channel_info(arguments.channel))
        exit_code = publish(client, publisher)
        publisher.flush(arguments.timeout)
        _wait_drained(arguments, publisher)
    return exit_code


def _publish_data(arguments: Namespace, publisher: towpath.Publisher, payloads: Sequence[bytes]) -> int:
    publisher.publish_many(payloads, headers_raw=_headers(arguments), timeout=arguments.timeout)
    return 0


def _publish_input(
    arguments: Namespace, chunks: Iterable[bytes], client: towpath.Client, publisher: towpath.Publisher
) -> int:
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
        for chunk in _while_there(client, chunks):
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


def _while_there(client: towpath.Client, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass on what is to be published.

    Raises:
        Unavailable: there is no daemon any more, and has not been for ``ABSENT_S``.
    """
    absent_since_s: float | None = None
    for chunk in chunks:
        if client.is_connected:
            absent_since_s = None
        elif absent_since_s is None:
            absent_since_s = time.monotonic()
        elif time.monotonic() - absent_since_s > ABSENT_S:
            raise outcomes.silent(is_connected=False)
        yield chunk


def _headers(arguments: Namespace) -> bytes:
    """Serialize the headers, the same for every message; empty when none were given."""
    return encode_headers(
        Headers(
            content_type=arguments.content_type,
            key=os.fsencode(arguments.key),
            user=mapping("--header", arguments.header),
            priority=arguments.priority,
            message_id=arguments.message_id,
            deliver_at_ns=0 if arguments.delay is None else time.time_ns() + int(arguments.delay * 1e9),
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


def _wants_note(arguments: Namespace) -> bool:
    return not arguments.quiet and streams.is_terminal(streams.STDERR)


def _tell_of_nobody(channel: ChannelInfo) -> None:
    if channel.subscribers == 0:
        streams.note(f"note: nobody subscribes to {channel.name} at the moment")


def _wait_drained(arguments: Namespace, publisher: towpath.Publisher) -> None:
    """Wait until every subscriber has read everything; bounded.

    Raises:
        Timeout: not within ``--timeout``. Without that, there is a note instead.
    """
    timeout_s = DRAIN_TIMEOUT_S if arguments.timeout is None else arguments.timeout
    try:
        if publisher.wait_drained(timeout_s):
            return
    except NotSupported:
        return  # from afar: what was acknowledged is in the gateway's ring, and stays there
    message = f"a subscriber of {arguments.channel} has not read everything after {timeout_s:g} s"
    hint = "everything was published, and stays in its ring for it"
    if arguments.timeout is not None:
        raise Timeout(message, hint=hint)
    if not arguments.quiet:
        streams.warn(f"{message}; {hint}")
