"""``towpath tap``: look at a channel live, or record it to a file, without holding anybody up.

Theory of operation
    A tap is a subscriber like any other, and so on a channel that blocks its publishers wait for it. That is
    why it takes messages as fast as they come and never waits for its own output: what cannot be shown in
    time is not shown, and counted. What cannot be written in time cannot be left out of a recording, so a
    recorder has a bounded buffer and a thread that writes it to the file, and when the buffer is full it
    says so and leaves. ``--block`` asks for the other choice: everything is shown, or recorded, and
    publishers wait.

    In front of a slow reader of standard output ``poll(2)`` says when a write of up to ``PIPE_BUF`` bytes
    will not wait.

Not here: the file's layout (``towpath.recording``), playing it back (``replay``).
"""

from __future__ import annotations

import os
import select
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final

from towpath.cli import report, streams
from towpath.cli.connection import connect
from towpath.cli.grammar import UsageError
from towpath.cli.preview import preview_line
from towpath.cli.text import byte_size, duration
from towpath.errors import SlowConsumer
from towpath.recording import Batcher, Gaps, encode_batch, encode_header, runs
from towpath.wording import plural

if TYPE_CHECKING:
    import towpath

TAKEN_COUNT_MAX: Final = 1024
TAKEN_BYTES_MAX: Final = 1 << 20
SHOWN_PER_TURN: Final = 8
"""Of a flood, so many of those taken at once are shown; showing all would make it wait."""
PENDING_BYTES_MAX: Final = 256 << 10
"""Output that its reader has not taken; above it nothing more is shown."""
TURN_S: Final = 0.25
"""How often, at least, the time, the rates and what is pending are looked at."""
RATES_S: Final = 1.0
_ERASE: Final = "\r\x1b[K"


def run(arguments: Namespace) -> int:
    """Look, or record, until there was enough or somebody stops it."""
    if arguments.record is None and arguments.force:
        raise UsageError("--force is for --record", "try: towpath tap --help")
    if arguments.record is not None and arguments.json:
        raise UsageError("--json cannot go with --record", "a recording shows nothing")
    with connect(arguments) as client, client.subscribe(arguments.channel, held_max=0) as subscription:
        tap = Recorder(arguments) if arguments.record is not None else Viewer(arguments)
        _follow(arguments, subscription, tap)
    return 0


class Tap:
    """What is done with the messages; and an account of them.

    Attributes:
        messages, payload_bytes: taken so far.
        missed: of sources that were followed, messages that never came.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.payload_bytes = 0
        self._gaps = Gaps()

    @property
    def missed(self) -> int:
        return self._gaps.missed

    def take(self, messages: Sequence[towpath.Message]) -> None:
        """Do it, without waiting."""
        self.messages += len(messages)
        self.payload_bytes += sum(len(message.payload) for message in messages)
        for run in runs(messages):
            self._take_run(run, self._gaps.before(run))

    def _take_run(self, run: Sequence[towpath.Message], missed: int) -> None:
        """Do it for messages of one source, before which some are missing."""

    def tend(self) -> None:
        """Go on with what is pending."""

    def show_rates(self, line: str) -> None:
        """Show a line of figures, where the last one was."""
        streams.show(f"{_ERASE}{line[: streams.columns(streams.STDERR) - 1]}")

    def finish(self) -> None:
        """Complete what was begun; may wait."""

    def account(self) -> list[str]:
        """What there is to say at the end, beyond the figures."""
        return [f"{self.missed:,} missed"] if self.missed else []


class Viewer(Tap):
    """Shows messages on standard output."""

    def __init__(self, arguments: Namespace) -> None:
        super().__init__()
        self._blocks = bool(arguments.block)
        self._line = _line_maker(arguments)
        self._pending = bytearray()
        streams.leave_when_output_closes()
        self._poll = select.poll()
        self._poll.register(streams.STDOUT, select.POLLOUT)
        self._has_rates = False
        self.not_shown = 0

    def take(self, messages: Sequence[towpath.Message]) -> None:
        super().take(messages)
        shown: Sequence[towpath.Message] = messages
        if not self._blocks:
            if len(self._pending) >= PENDING_BYTES_MAX:
                shown = ()
            elif len(messages) == TAKEN_COUNT_MAX:  # there are more
                shown = messages[-SHOWN_PER_TURN:]
            self.not_shown += len(messages) - len(shown)
        now_ns = time.time_ns()
        for message in shown:
            self._pending += self._line(message, now_ns)
        self._write(waits=self._blocks)

    def tend(self) -> None:
        self._write(waits=False)

    def show_rates(self, line: str) -> None:
        super().show_rates(line)
        self._has_rates = True

    def finish(self) -> None:
        # What is pending is bounded; but a reader that does not read must not hold us.
        deadline_s = time.monotonic() + 1
        while self._pending and time.monotonic() < deadline_s:
            self._poll.poll(100)
            self._write(waits=False)

    def account(self) -> list[str]:
        return [*super().account(), *([f"{self.not_shown:,} not shown"] if self.not_shown else [])]

    def _write(self, *, waits: bool) -> None:
        if self._pending and self._has_rates:
            self._has_rates = False
            streams.show(_ERASE)
        while self._pending and (waits or self._poll.poll(0)):
            size = len(self._pending) if waits else select.PIPE_BUF
            written = _write_once(self._pending[:size])
            if written == 0 and not waits:
                return
            del self._pending[:written]


def _write_once(data: bytes | bytearray) -> int:
    try:
        return os.write(streams.STDOUT, data)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        raise streams.OutputClosed from None
    except OSError as error:
        raise streams.StreamError(f"cannot write to standard output: {error.strerror}") from None


def _line_maker(arguments: Namespace) -> Callable[[towpath.Message, int], bytes]:
    if arguments.json:
        return lambda message, now_ns: report.message_json_line(message)
    width = arguments.width or max(streams.columns(streams.STDOUT) - 1, 40)
    return lambda message, now_ns: preview_line(message, now_ns, width=width, form=arguments.format)


class Recorder(Tap):
    """Writes messages to a file."""

    def __init__(self, arguments: Namespace) -> None:
        from towpath.cli.appending import Appender

        super().__init__()
        self._file = Appender(arguments.record, replaces=arguments.force, waits=arguments.block)
        self._batcher = Batcher()
        self._file.put(encode_header(arguments.channel, time.time_ns()))

    def _take_run(self, run: Sequence[towpath.Message], missed: int) -> None:
        if not self._file.put(encode_batch(self._batcher.batch(run, missed))):
            raise SlowConsumer(
                f"{self._file.path} cannot be written as fast as messages come; the recording ends here",
                hint="what was recorded until now is whole; --block makes the publishers wait instead",
            )

    def tend(self) -> None:
        self._file.check()

    def finish(self) -> None:
        self._file.close()

    def account(self) -> list[str]:
        unreadable = self._batcher.unreadable
        headers = [f"{plural(unreadable, 'message')} without its headers, which could not be read"]
        recorded = f"{byte_size(self._file.written_bytes)} recorded in {self._file.path}"
        return [*super().account(), *(headers if unreadable else []), recorded]


class _Stopped(Exception):
    """SIGTERM came."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Stopped


def _follow(arguments: Namespace, subscription: towpath.Subscription, tap: Tap) -> None:
    """Take messages until there were enough; at the end say how many, whatever ended it."""
    started_s = time.monotonic()
    is_stopped = False
    signal.signal(signal.SIGTERM, _stop)
    try:
        _take_all(arguments, subscription, tap, started_s)
    except _Stopped:
        is_stopped = True
    finally:
        subscription.close()  # before anything that may wait
        tap.finish()
        _conclude(arguments, tap, started_s)
    if is_stopped:
        streams.die_of(signal.SIGTERM)


def _take_all(arguments: Namespace, subscription: towpath.Subscription, tap: Tap, started_s: float) -> None:
    has_rates = streams.is_terminal(streams.STDERR) and not arguments.quiet
    end_s = started_s + (arguments.duration if arguments.duration is not None else float("inf"))
    rates_s, messages, payload_bytes = started_s, 0, 0
    while arguments.count is None or tap.messages < arguments.count:
        now_s = time.monotonic()
        if now_s >= end_s:
            return
        wanted = TAKEN_COUNT_MAX
        if arguments.count is not None:
            wanted = min(wanted, arguments.count - tap.messages)
        batch = subscription.receive_many(
            wanted, bytes_max=TAKEN_BYTES_MAX, timeout=min(TURN_S, end_s - now_s)
        )
        if batch:
            tap.take(batch)
        else:
            tap.tend()
        if has_rates and now_s >= rates_s + RATES_S:
            span_s = now_s - rates_s
            tap.show_rates(
                _rates((tap.messages - messages) / span_s, (tap.payload_bytes - payload_bytes) / span_s, tap)
            )
            rates_s, messages, payload_bytes = now_s, tap.messages, tap.payload_bytes


def _rates(messages_per_s: float, bytes_per_s: float, tap: Tap) -> str:
    figures = f"{messages_per_s:,.0f} messages/s, {byte_size(round(bytes_per_s))}/s"
    total = f"{plural(tap.messages, 'message')} in all"
    return ", ".join([figures, total, *tap.account()])


def _conclude(arguments: Namespace, tap: Tap, started_s: float) -> None:
    if arguments.quiet:
        return
    if streams.is_terminal(streams.STDERR):
        streams.show(_ERASE)
    carried = f"{plural(tap.messages, 'message')}, {byte_size(tap.payload_bytes)}"
    streams.note(", ".join([f"{carried} in {duration(time.monotonic() - started_s)}", *tap.account()]))
