"""The verbs of the command line: each with its summary, arguments, help and examples, in one table.

``VERBS`` is the single place that names a verb; the parsers, the general help, completion and the manual
page are made of it. What a placeholder is called decides how it is completed (``completion``): CHANNEL by the
channels there are, PATH by files.

Not here: how a command line is taken apart (``grammar``), what verbs do.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Callable
from typing import Final, NamedTuple

from towpath.cli import values

KINDS: Final = ("topic", "queue", "state", "service")
OVERFLOWS: Final = ("block", "drop", "reject")
ORDERS: Final = ("source", "total")
DIRECTIONS: Final = ("in", "out", "both")
FRAMINGS: Final = ("line", "length", "netstring", "delimiter", "fixed", "raw")
SHELLS: Final = ("bash", "zsh", "tcsh")


class Verb(NamedTuple):
    """One verb of the command line.

    Attributes:
        group: under which heading the general help lists it.
        summary: one line, for lists.
        build: gives a parser the verb's own arguments.
        description: a paragraph or two for the verb's own help; may be empty.
        examples: command lines for the end of the help.
    """

    name: str
    group: str
    summary: str
    build: Callable[[ArgumentParser], None]
    description: str
    examples: tuple[str, ...]


def _add_json(parser: ArgumentParser, what: str = "one JSON document instead of text") -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def _add_framing(parser: ArgumentParser, default: str) -> None:
    group = parser.add_argument_group("framing: where one message ends and the next begins")
    group.add_argument(
        "--frame",
        choices=FRAMINGS,
        help="how they lie in the stream: line; length (u32, big-endian, before each); netstring; "
        f"delimiter; fixed; raw (bytes as they come). Default: {default}",
    )
    group.add_argument(
        "--delimiter",
        metavar="BYTES",
        help=r"for delimiter: what ends a message; \0 \n \r \t \\ \xNN are understood",
    )
    group.add_argument(
        "--frame-bytes", metavar="SIZE", type=values.size, help="for fixed: bytes of each message"
    )
    group.add_argument(
        "--frame-bytes-max",
        metavar="SIZE",
        type=values.size,
        help="refuse longer messages. Default: the largest that the channel takes",
    )


def _serve(parser: ArgumentParser) -> None:
    """Nothing here: ``grammar.tree`` lets the daemon add its own, where it is installed."""


def _status(parser: ArgumentParser) -> None:
    _add_json(parser)


def _channels(parser: ArgumentParser) -> None:
    parser.add_argument(
        "prefix", metavar="PREFIX", nargs="?", default="", help="only names that begin with this"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document: a list of channels")
    form.add_argument("--names", action="store_true", help="print the names only, one on each line")


_KEEPING_FLAGS: Final = (
    ("--capacity", "N", False, "queues: hold at most N messages. Default: 100000"),
    ("--capacity-bytes", "SIZE", True, "queues: hold at most so much. Default: 64M"),
    ("--ack-ms", "MS", False, "queues: a delivery not settled in time goes back. Default: 30000"),
    (
        "--max-deliveries",
        "N",
        False,
        "queues: after N deliveries a message is a dead letter; 0: never. Default: 0",
    ),
    ("--retain-bytes", "SIZE", True, "durable topics: keep so much; 0: all. Default: 1G"),
    ("--retain-ms", "MS", False, "durable topics: keep what is no older; 0: all. Default: 0"),
    ("--retain-messages", "N", False, "durable topics: keep the last N; 0: all. Default: 0"),
    (
        "--dedupe-ms",
        "MS",
        False,
        "queues and durable topics: remember message ids for so long; 0: not. Default: 120000",
    ),
)


def _declare(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="NAME", help="dotted, as in plant.line1.temp")
    parser.add_argument("--kind", choices=KINDS, help="what the channel does. Default: topic")
    parser.add_argument(
        "--durable",
        action=BooleanOptionalAction,
        default=None,
        help="keep messages on disk. Default: no",
    )
    parser.add_argument(
        "--overflow",
        choices=OVERFLOWS,
        help="when a subscriber falls behind: block the publisher, or drop the oldest; when a queue is full: "
        "block, or reject. Default: block",
    )
    parser.add_argument(
        "--ring-bytes",
        metavar="SIZE",
        type=values.size,
        help="of each publisher's ring: a power of two, as in 4M; the largest message is a quarter of it",
    )
    parser.add_argument(
        "--order",
        choices=ORDERS,
        help="whose order subscribers see: each publisher's own, or one for all. Default: source",
    )
    parser.add_argument(
        "--history",
        metavar="N",
        type=values.number,
        help="give a new subscriber each publisher's last N messages first. Default: 0",
    )
    parser.add_argument(
        "--stall-ms-max",
        metavar="MS",
        type=values.number,
        help="detach a subscriber that does not move for so long while a publisher waits for it; "
        "0: never. Default: 30000",
    )
    for flag, metavar, size, text in _KEEPING_FLAGS:
        parser.add_argument(flag, metavar=metavar, type=values.size if size else values.number, help=text)
    parser.add_argument(
        "--dead-letter",
        metavar="CHANNEL",
        help="queues: where dead letters go, a queue or a topic. Default: nowhere, they are counted",
    )
    _add_json(parser)


def _undeclare(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument("--force", action="store_true", help="even while it is used: its users are told")


def _bind(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument("binding_url", metavar="MECHANISM:PLACE", help="fifo:/run/x, or 'pipe:vmstat 1'")
    parser.add_argument(
        "--direction", choices=DIRECTIONS, required=True, help="in: into the channel; out: out of the channel"
    )
    parser.add_argument(
        "--option", metavar="KEY=VALUE", action="append", type=values.pair, default=[], help="may be repeated"
    )
    parser.add_argument("--frame", choices=FRAMINGS, help="short for --option framing=...; default: line")
    parser.add_argument(
        "--keep", action="store_true", help="leave it there even if it cannot be brought up now"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=values.seconds,
        default=10.0,
        help="for it to come up. Default: 10",
    )
    _add_json(parser)
    parser.epilog = f"{_binding_options()}\n\n{parser.epilog}"


def _binding_options() -> str:
    """The options of bindings, for the end of the help."""
    # Not above: the other verbs have no use for the table.
    from textwrap import fill

    from towpath.bindings import DESCRIBED_OPTIONS, SCHEMES

    lines = ["options of a binding (--option KEY=VALUE):"]
    for option, schemes in DESCRIBED_OPTIONS:
        only = "" if schemes == SCHEMES else f"For {', '.join(schemes)}. "
        default = "" if option.default is None else f"; default: {option.default}"
        text = f"{only}{option.doc} ({option.allowed}{default})"
        lines.append(fill(text, 78, initial_indent=f"  {option.name:20}  ", subsequent_indent=" " * 24))
    return "\n".join(lines)


def _unbind(parser: ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="ID|CHANNEL", help="a binding's id; or its channel, and then its URL"
    )
    parser.add_argument("binding_url", metavar="MECHANISM:PLACE", nargs="?", default="")
    _add_json(parser)


def _pub(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument(
        "data", metavar="DATA", nargs="*", default=[], type=values.data, help="each is one message"
    )
    _add_framing(parser, "line")
    headers = parser.add_argument_group("headers, the same for every message")
    headers.add_argument(
        "--header",
        metavar="KEY=VALUE",
        action="append",
        type=values.pair,
        default=[],
        help="of your own; may be repeated",
    )
    headers.add_argument("--content-type", metavar="TYPE", default="", help="as in MIME: application/json")
    headers.add_argument("--key", metavar="TEXT", default="", help="what the messages are about")
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
    _add_framing(parser, "a newline after each message, whatever is in it")
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


def _add_headers(parser: ArgumentParser) -> None:
    headers = parser.add_argument_group("headers")
    headers.add_argument(
        "--header",
        metavar="KEY=VALUE",
        action="append",
        type=values.pair,
        default=[],
        help="of your own; may be repeated",
    )
    headers.add_argument("--content-type", metavar="TYPE", default="", help="as in MIME: application/json")
    headers.add_argument("--key", metavar="TEXT", default="", help="what it is about")


def _call(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL", help="the service")
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        type=values.data,
        help="what is asked; without it, or -, what is on stdin",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=values.seconds,
        default=10.0,
        help="the longest wait for the reply; then exit 124. Default: 10",
    )
    parser.add_argument("--stream", action="store_true", help="take any number of replies, one on each line")
    parser.add_argument("--wait", action="store_true", help="where nobody serves, wait for somebody to")
    parser.add_argument(
        "--idempotent",
        action="store_true",
        help="carrying it out twice does no harm: if the server dies, ask another",
    )
    _add_headers(parser)
    _add_json(parser, "one JSON object on a line for each reply")


def _answer(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL", help="the service")
    parser.add_argument(
        "command", metavar="CMD", nargs="+", type=values.data, help="and its arguments, after --"
    )
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=values.count,
        default=1,
        help="run so many at a time, 1 to 4096. Default: 1",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing of requests that failed")


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
    _add_framing(parser, "line")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing of what could not be carried")


def _get(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL", help="the state")
    parser.add_argument("-f", "--follow", action="store_true", help="then print each value that follows")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--version", action="store_true", help="print the value's version instead")
    form.add_argument(
        "--json", action="store_true", help="print one JSON object on a line: value and version"
    )


def _set(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL", help="the state")
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        type=values.data,
        help="the value; without it, or -, what is on stdin",
    )
    parser.add_argument(
        "--if-version",
        metavar="N",
        type=values.number,
        help="only if it has this version now; 0: only if nothing was ever set",
    )
    parser.add_argument("--delete", action="store_true", help="delete it")
    parser.add_argument("--version", action="store_true", help="print the new version")


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
    _add_json(parser, "one JSON object on each line, with the whole payload")
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


def _top(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=values.interval,
        default=1.0,
        help="between two looks, 0.1 or more. Default: 1",
    )
    parser.add_argument("--once", action="store_true", help="look twice, print the rates between, and leave")
    _add_json(parser, "one JSON object on a line for each interval")


def _store(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "check", "backup"),
        help="show: what there is; check: read everything, and tell whether it is whole; backup: copy it",
    )
    parser.add_argument(
        "target", metavar="PATH", nargs="?", help="for backup: the copy; must not be there yet"
    )
    parser.add_argument(
        "--state-dir", metavar="PATH", help="the daemon's. Default: as towpath serve without a configuration"
    )
    _add_json(parser)


def _completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or tcsh")


VERBS: Final = {
    verb.name: verb
    for verb in (
        Verb(
            "serve",
            "The daemon",
            "run the daemon in the foreground",
            _serve,
            "What follows belongs to the daemon's own command line: towpath serve --help. "
            "towpathd is the same as towpath serve.",
            ("towpath serve", "towpath serve --config towpath.toml"),
        ),
        Verb(
            "status",
            "The daemon",
            "show the daemon, its gateways, channels and bindings",
            _status,
            "",
            ("towpath status", "towpath status --json | jq '.gateways[].endpoints'"),
        ),
        Verb(
            "top",
            "The daemon",
            "show live rates of channels, bindings, gateways and sessions",
            _top,
            "Rates are of what lies in rings, and cost those who publish and subscribe nothing. PENDING is "
            "what a session's subscriptions have not taken yet. Ctrl-C ends it.",
            ("towpath top", "towpath top --once --interval 5", "towpath top --json | jq .channels"),
        ),
        Verb(
            "store",
            "The daemon",
            "show, check or copy what is stored of queues, states and durable topics",
            _store,
            "Reads the store's file, whether the daemon runs or not, and changes nothing. A backup is the "
            "store as it was at one moment; to go back to it, stop the daemon and put it in the place of "
            "store.sqlite in the state directory. check exits with 74 when something is damaged.",
            (
                "towpath store show",
                "towpath store check --state-dir /var/lib/towpath",
                "towpath store backup /mnt/backup/monday.sqlite",
            ),
        ),
        Verb(
            "pub",
            "Messages",
            "publish messages: the arguments, or frames from standard input",
            _pub,
            "Each DATA is one message. Without DATA, standard input is cut into messages as --frame says. "
            "Leaves when every subscriber has read everything.",
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
            "call",
            "Requests and values",
            "ask a service, and print the reply",
            _call,
            "The reply is printed as it is; on a terminal with a newline. What the server failed with is "
            "told, and has its exit code: 74 for an error of the server's own, 69 where nobody serves.",
            (
                "towpath call weather Berlin",
                "cat photo.jpg | towpath call thumbnails | display",
                "towpath call log.search --stream 'error' | head",
            ),
        ),
        Verb(
            "answer",
            "Requests and values",
            "be a service: run a program for each request",
            _answer,
            "The program gets the request on standard input; what it prints is the reply. An exit status "
            "other than 0 is the caller's error, with the end of what it wrote to standard error. In its "
            "environment: TOWPATH_CHANNEL, TOWPATH_PRINCIPAL (who asks), TOWPATH_TIMEOUT (seconds left), "
            "TOWPATH_CONTENT_TYPE, TOWPATH_KEY. It is ended when the caller does not wait any more.",
            (
                "towpath declare upper --kind service",
                "towpath answer upper -- tr a-z A-Z",
                "towpath answer thumbnails --concurrency 4 -- convert - -resize 200x200 jpg:-",
            ),
        ),
        Verb(
            "get",
            "Requests and values",
            "print a state's value",
            _get,
            "Exits with 1 when there is no value.",
            ("towpath get config.mode", "towpath get config.mode --json", "towpath get config.mode --follow"),
        ),
        Verb(
            "set",
            "Requests and values",
            "set a state's value",
            _set,
            "With --if-version it is set only if nobody else was quicker; else exit code 75.",
            (
                "towpath declare config.mode --kind state",
                "towpath set config.mode night",
                "towpath set config.mode day --if-version 7",
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
        Verb(
            "channels",
            "Channels and bindings",
            "list the channels",
            _channels,
            "",
            ("towpath channels", "towpath channels plant. --json"),
        ),
        Verb(
            "declare",
            "Channels and bindings",
            "declare a channel",
            _declare,
            "Declaring it again is fine, as long as every option that is given has the value it has.",
            ("towpath declare plant.line1.temp", "towpath declare camera --overflow drop --ring-bytes 64M"),
        ),
        Verb(
            "undeclare",
            "Channels and bindings",
            "remove a channel and its bindings",
            _undeclare,
            "",
            ("towpath undeclare plant.line1.temp", "towpath undeclare camera --force"),
        ),
        Verb(
            "bind",
            "Channels and bindings",
            "attach a FIFO, a command, a message queue, a signal or shared memory to a channel",
            _bind,
            "Waits until the binding is up. One that cannot is taken away again, and the error says why.",
            (
                "towpath bind host.vmstat 'pipe:vmstat 1' --direction in",
                "towpath bind orders fifo:/tmp/orders --direction out --option mode=0660",
            ),
        ),
        Verb(
            "unbind",
            "Channels and bindings",
            "detach a binding",
            _unbind,
            "towpath status lists the bindings with their ids.",
            ("towpath unbind 7", "towpath unbind orders fifo:/tmp/orders"),
        ),
        Verb(
            "completion",
            "The shell",
            "print a completion script for your shell",
            _completion,
            "Completes verbs, options and the names of the channels there are.",
            (
                "bash:  source <(towpath completion bash)",
                "zsh:   towpath completion zsh > ~/.zfunc/_towpath",
                "tcsh:  towpath completion tcsh > ~/.towpath.tcsh; source ~/.towpath.tcsh",
            ),
        ),
    )
}
