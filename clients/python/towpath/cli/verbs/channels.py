"""Verbs about what there is: channels with their options, and the bindings attached to them.

An option that is not given is left to the daemon, so that its defaults, which the configuration may change,
hold here too; the defaults that the help names are those without a configuration. Not here: which options go
with which kind, which the daemon judges.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from typing import Final

from towpath.cli import values

from .verb import FRAMINGS, Verb, add_json

KINDS: Final = ("topic", "queue", "state", "service")
OVERFLOWS: Final = ("block", "drop", "reject")
ORDERS: Final = ("source", "total")
DIRECTIONS: Final = ("in", "out", "both")


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
    add_json(parser)


def _undeclare(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even while it is used (its users are told) or holds messages (they are lost)",
    )


def _places(parser: ArgumentParser) -> None:
    parser.add_argument("channel", metavar="CHANNEL", help="a durable topic")
    parser.add_argument("--remove", metavar="NAME", help="forget the place of that name")
    add_json(parser, "one JSON document: a list of places")


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
    add_json(parser)
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
    add_json(parser)


VERBS: Final = (
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
        "Refused while somebody publishes, subscribes or is bound, and while a queue or a durable topic "
        "holds messages; --force removes it all the same.",
        ("towpath undeclare plant.line1.temp", "towpath undeclare camera --force"),
    ),
    Verb(
        "places",
        "Channels and bindings",
        "list or remove the places of named subscriptions of a durable topic",
        _places,
        "A subscription with a place (towpath sub --place) goes on where it left off. NEXT SEQ is the first "
        "message that it has not dealt with, BEHIND how many there are of those, GONE how many of them "
        "retention has let go. A place that is removed begins anew.",
        ("towpath places orders", "towpath places orders --remove billing"),
    ),
    Verb(
        "bind",
        "Channels and bindings",
        "attach a FIFO, a command, a message queue, a signal, shared memory or a UNIX socket to a channel",
        _bind,
        "Waits until the binding is up. One that cannot be is taken away again, and the error says why; one"
        " that can come up by itself later (its directory is not there yet) stays, and is tried again.",
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
)
