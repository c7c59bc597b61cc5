"""``towpath replay``: publish what ``towpath tap --record`` recorded, with the timing that it had.

Theory of operation
    The first message goes out at once, and every other one as long after it as it was published after the
    first, divided by ``--speed``; with ``max`` each goes out as soon as there is room. Messages that are due
    together, on one channel, go out as one batch. Where the recording has several sources their order is the
    order in which they were received, and what would be due in the past is due now. Replayed messages are
    new ones: they have a source, seqs and publish times of their own; payloads and headers are as recorded.
    Nothing is read ahead of the batch that is under way.

Not here: the file's layout (``towpath.recording``).
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Final

from towpath.cli import streams
from towpath.cli.connection import connect
from towpath.cli.progress import Progress
from towpath.errors import BadFrame, InvalidArgument, LimitExceeded, NotSupported
from towpath.recording import Recording, headers_column
from towpath.wording import plural

if TYPE_CHECKING:
    import towpath
    from towpath.v1.message_pb2 import MessageBatch

DUE_COUNT_MAX: Final = 256
PUBLISHERS_MAX: Final = 1_000
"""Channels that one replay publishes on."""
DRAIN_TIMEOUT_S: Final = 10.0


def run(arguments: Namespace) -> int:
    """Replay a recording, once or for ever."""
    with open(arguments.file, "rb") as file, connect(arguments) as client, ExitStack() as publishers:
        if arguments.loop and not file.seekable():
            raise InvalidArgument(f"{arguments.file} cannot be read twice", hint="--loop needs a plain file")
        replay = _Replay(arguments, client, publishers)
        try:
            replay.play(file)
            while arguments.loop:
                file.seek(0)
                replay.play(file)
        finally:
            replay.progress.finish()
        replay.wait_drained()
        if not arguments.quiet:
            streams.note(f"{plural(replay.published, 'message')} replayed")
    return 0


class _Replay:
    """Publishes recordings; ``published`` counts messages."""

    def __init__(self, arguments: Namespace, client: towpath.Client, publishers: ExitStack) -> None:
        self._arguments = arguments
        self._client = client
        self._closing = publishers
        self._publishers: dict[str, towpath.Publisher] = {}
        self.published = 0
        is_quiet = arguments.quiet or not streams.is_terminal(streams.STDERR)
        self.progress = Progress(
            None if arguments.loop else _size_of(arguments.file),
            show=_show_nothing if is_quiet else streams.show,
            columns=streams.columns(streams.STDERR),
        )

    def play(self, file: IO[bytes]) -> None:
        """Publish one recording, with its timing."""
        try:
            recording = Recording(file)
        except BadFrame as error:
            raise BadFrame(f"{self._arguments.file}: {error.message}", hint=error.hint) from None
        clock = _Clock(self._arguments.speed)
        before = recording.position
        published = self.published
        for batch in recording:
            publisher = self._publisher(self._arguments.channel or batch.channel)
            column = headers_column(batch)
            for start, end in clock.stretches(batch):
                publisher.publish_many(
                    batch.payloads[start:end], headers_raw=column[start:end] if column else None
                )
                self.published += end - start
                self.progress.advance(end - start, 0)
            self.progress.advance(0, recording.position - before)
            before = recording.position
        if recording.lost_bytes:
            self.progress.erase()
            streams.warn(
                f"{self._arguments.file} was cut short: its last {recording.lost_bytes:,} bytes are no whole"
                " record; all before them was replayed"
            )
        if self._arguments.loop and self.published == published:
            raise InvalidArgument(f"{self._arguments.file} has no messages", hint="--loop would never end")

    def _publisher(self, channel: str) -> towpath.Publisher:
        publisher = self._publishers.get(channel)
        if publisher is None:
            if len(self._publishers) >= PUBLISHERS_MAX:
                raise LimitExceeded(
                    f"the recording has more than {PUBLISHERS_MAX:,} channels",
                    hint="--channel NAME publishes everything on one",
                )
            publisher = self._closing.enter_context(self._client.publisher(channel))
            self._publishers[channel] = publisher
        return publisher

    def wait_drained(self) -> None:
        """Wait until every subscriber has read everything; bounded, and then there is a note."""
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        for channel, publisher in self._publishers.items():
            try:
                is_drained = publisher.wait_drained(max(deadline_s - time.monotonic(), 0))
            except NotSupported:  # from afar, where each publish was acknowledged
                return
            if not is_drained and not self._arguments.quiet:
                streams.warn(f"a subscriber of {channel} has not read everything after {DRAIN_TIMEOUT_S:g} s")


class _Clock:
    """When each message of one recording is due.

    Args:
        speed: how many times as fast as it was; 0 for as fast as can be.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._first_ns: int | None = None
        self._started_ns = 0

    def stretches(self, batch: MessageBatch) -> Iterator[tuple[int, int]]:
        """Divide a batch into stretches that are due together; yield each when it is due."""
        times_ns = batch.publish_times_ns
        count = len(times_ns)
        if self._first_ns is None:
            self._first_ns, self._started_ns = times_ns[0], time.monotonic_ns()
        start = 0
        while start < count:
            now_ns = self._wait_due(times_ns[start])
            end = start + 1
            while end < min(count, start + DUE_COUNT_MAX) and self._due_ns(times_ns[end]) <= now_ns:
                end += 1
            yield start, end
            start = end

    def _due_ns(self, time_ns: int) -> int:
        assert self._first_ns is not None
        if self._speed == 0:
            return self._started_ns
        return self._started_ns + int((time_ns - self._first_ns) / self._speed)

    def _wait_due(self, time_ns: int) -> int:
        due_ns = self._due_ns(time_ns)
        while (now_ns := time.monotonic_ns()) < due_ns:
            time.sleep(min((due_ns - now_ns) / 1e9, _SLEEP_S_MAX))
        return now_ns


_SLEEP_S_MAX: Final = 3600.0


def _size_of(path: str) -> int | None:
    size = os.stat(path).st_size
    return size or None


def _show_nothing(_text: str) -> None:
    return None
