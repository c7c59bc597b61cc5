"""Verbs that carry messages: from a terminal, a pipe or a file into a channel, and the other way.

Each is one end of a stream, so they share how a stream is cut into messages (``--frame``), and end by a count
or a time. Not here: what a request and its reply are (``requests``), what they do (modules of
``towpath.cli`` with their names).
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Final

from towpath.cli import values

from .verb import Verb, add_framing, add_headers, add_json


def _pub(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument(
        "data", metavar="DATA", nargs="*", default=[], type=values.data, help="each is one message"
    )
    add_framing(parser, "line")
    headers = add_headers(parser, "headers, the same for every message", "what the messages are about")
    headers.add_argument(
        "--priority",
        metavar="N",
        type=values.number,
        default=0,
        help="queues: 0 to 31, the highest. Default: 0",
    )
    headers.add_argument(
        "--message-id",
        metavar="ID",
        default="",
        help="of one message: published again with the same id it is still there once",
    )
    headers.add_argument(
        "--delay", metavar="SECONDS", type=values.seconds, help="queues: not delivered before so long"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=values.seconds,
        help="the longest wait for room in a ring, and at the end for all to be read; then exit 124. "
        "Default: no bound for room; 10 s at the end, and then only a note",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes; errors only")
    parser.add_argument("--no-progress", action="store_true", help="no progress line")


def _sub(parser: ArgumentParser) -> None:
    parser.add_argument(
        "channel", metavar="CHANNEL", help="or a pattern: 'plant.*.temp' (one level), 'plant.>' (one or more)"
    )
    parser.add_argument("-n", "--count", metavar="N", type=values.count, help="leave after N messages")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=values.seconds,
        help="leave when nothing came for so long, with exit code 124",
    )
    stored = parser.add_argument_group("durable topics")
    stored.add_argument(
        "--start",
        metavar="WHERE",
        type=values.start,
        help="begin with: all (that is kept), new, a seq, or a time (2026-11-22T14:00Z). Default: new",
    )
    stored.add_argument(
        "--place",
        metavar="NAME",
        help="go on where the subscription of that name left off, and remember where this one does",
    )
    stored.add_argument(
        "--take-over",
        action="store_true",
        help="end the subscription that goes by that name now, if one does",
    )
    add_framing(parser, "a newline after each message, whatever is in it")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object on each line")
    form.add_argument(
        "--meta",
        action="store_true",
        help="before each message its publish time (UTC), source, seq and, for a pattern, its channel, each "
        "with a tab",
    )


def _take(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="QUEUE")
    parser.add_argument(
        "command", metavar="CMD", nargs="*", type=values.data, help="and its arguments, after --"
    )
    parser.add_argument("-n", "--count", metavar="N", type=values.count, help="leave after N messages")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=values.seconds,
        help="leave when nothing came for so long, with exit code 124",
    )
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=values.count,
        default=1,
        help="run so many programs at a time. Default: 1",
    )
    parser.add_argument(
        "--delay",
        metavar="SECONDS",
        type=values.seconds,
        default=1.0,
        help="before a message is tried again whose program failed, at most a day. Default: 1",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing of programs that failed")
    parser.add_argument("--json", action="store_true", help="without CMD: print one JSON object on each line")


def _run(parser: ArgumentParser) -> None:
    parser.add_argument(
        "command", metavar="CMD", nargs="+", type=values.data, help="and its arguments, after --"
    )
    parser.add_argument(
        "--out", metavar="CHANNEL", dest="publish", help="publish what it writes to standard output"
    )
    parser.add_argument(
        "--in", metavar="CHANNEL", dest="subscribe", help="a channel or pattern: its standard input"
    )
    parser.add_argument(
        "-n", "--count", metavar="N", type=values.count, help="end its standard input after N messages"
    )
    add_framing(parser, "line")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing of what could not be carried")


def _tap(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL", help="a channel, or a pattern as in 'plant.>'")
    parser.add_argument("-n", "--count", metavar="N", type=values.count, help="leave after N messages")
    parser.add_argument("--duration", metavar="SECONDS", type=values.seconds, help="leave after so long")
    parser.add_argument(
        "--record", metavar="PATH", help="write the messages to a new file, for replay, and show none"
    )
    parser.add_argument("--force", action="store_true", help="for --record: replace a file that is there")
    parser.add_argument(
        "--block",
        action="store_true",
        help="show, or record, every message, even if publishers have to wait for that",
    )
    parser.add_argument(
        "--format",
        choices=("auto", "text", "hex", "none"),
        default="auto",
        help="of the payload's beginning. Default: auto: text where it is text, else hex",
    )
    parser.add_argument(
        "--width", metavar="COLUMNS", type=values.count, help="of a line. Default: the terminal's, or 80"
    )
    add_json(parser, "one JSON object on each line, with the whole payload")
    parser.add_argument("-q", "--quiet", action="store_true", help="no rates, no account at the end")


def _replay(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="PATH", help="what towpath tap --record wrote")
    parser.add_argument(
        "--speed",
        metavar="X",
        type=values.speed,
        default=1.0,
        help="so many times as fast as it was; max: as fast as can be. Default: 1",
    )
    parser.add_argument("--channel", metavar="CHANNEL", help="publish everything there. Default: as recorded")
    parser.add_argument("--loop", action="store_true", help="begin again at the end, until stopped")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes; errors only")


VERBS: Final = (
    Verb(
        "pub",
        "Messages",
        "publish messages: the arguments, or frames from standard input",
        _pub,
        "Each DATA is one message. Without DATA, standard input is cut into messages as --frame says. "
        "Leaves when every subscriber has read everything and, of a durable channel, everything is on disk.",
        (
            "towpath pub plant.temp 21.5",
            "vmstat 1 | towpath pub host.vmstat",
            "find . -print0 | towpath pub files --frame delimiter --delimiter '\\0'",
        ),
    ),
    Verb(
        "sub",
        "Messages",
        "print messages as they come",
        _sub,
        "Prints what is published from now on. On a terminal, control characters are escaped "
        "unless --frame is given.",
        (
            "towpath sub plant.temp",
            "towpath sub plant.temp --count 1 --timeout 5",
            'towpath sub plant.temp | while read -r line; do echo "got $line"; done',
            "towpath sub plant.temp --json | jq -r .payload",
            "towpath sub 'plant.>' --meta",
            "towpath sub orders --start all",
            "towpath sub orders --place billing --start all",
        ),
    ),
    Verb(
        "take",
        "Messages",
        "take messages out of a queue, and run a program for each",
        _take,
        "The program gets the message on standard input. Its exit status settles it: 0, it is done; 65, "
        "it is rejected, and becomes a dead letter; any other, it is tried again after --delay. While it "
        "runs the message is its own. In its environment: TOWPATH_CHANNEL, TOWPATH_SEQ, TOWPATH_ATTEMPT "
        "(from 1), TOWPATH_CONTENT_TYPE, TOWPATH_KEY. Without a program messages are printed, a line "
        "each, and done when they are written.",
        (
            "towpath declare jobs --kind queue --durable --max-deliveries 5 --dead-letter jobs.dead",
            "towpath take jobs -- ./job.sh",
            "towpath take jobs --concurrency 4 -- sh -c 'convert - -resize 50% out/$TOWPATH_SEQ.jpg'",
            "towpath take jobs --count 1 --timeout 5",
        ),
    ),
    Verb(
        "run",
        "Messages",
        "run a program with its standard streams on channels",
        _run,
        "What it writes is published, what is published it reads; a stream without a channel stays as it "
        "is. It misses nothing that is published after it was started. Of a queue, a message counts as "
        "acknowledged once it is in the program's pipe. The exit code is the program's, 128 + N when "
        "signal N ended it; or what a channel failed with. Pipes are one-way: one for each direction.",
        (
            "towpath run --out load -- vmstat -n 1",
            "towpath run --in 'plant.>' -- logger -t plant",
            "towpath run --in orders --out replies -- ./work",
        ),
    ),
    Verb(
        "tap",
        "Messages",
        "watch a channel live, or record it to a file",
        _tap,
        "One line for each message: publish time (UTC), channel, source#seq, age, size, headers, and the "
        "beginning of the payload. Never waits for whoever reads its output: of a flood not everything "
        "is shown, and a recording ends when its file is too slow, unless --block is given.",
        (
            "towpath tap plant.temp",
            "towpath tap 'plant.>' --record monday.towpath --duration 3600",
            "towpath tap plant.temp --format hex --count 1",
        ),
    ),
    Verb(
        "replay",
        "Messages",
        "publish a recording with the timing it had",
        _replay,
        "The channels must be declared. Payloads and headers are as recorded; sources, seqs and publish "
        "times are new. A recording that was cut short is replayed as far as it is whole.",
        (
            "towpath replay monday.towpath",
            "towpath replay monday.towpath --speed max --channel test.input",
        ),
    ),
)
