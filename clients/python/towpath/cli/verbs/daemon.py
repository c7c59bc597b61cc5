"""Verbs about the daemon as a whole: serve it, look at it, look after what it stores.

They name no channel: what they show is everything that there is. Not here: what they do (``status`` and the
like are modules of ``towpath.cli``); the daemon's own command line (``towpath_broker.cli``).
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Final

from towpath.cli import values

from .verb import Verb, add_json


def _serve(parser: ArgumentParser) -> None:
    """Nothing here: ``grammar.tree`` lets the daemon add its own, where it is installed."""


def _status(parser: ArgumentParser) -> None:
    add_json(parser)


def _top(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=values.interval,
        default=1.0,
        help="between two looks, 0.1 or more. Default: 1",
    )
    parser.add_argument("--once", action="store_true", help="look twice, print the rates between, and leave")
    add_json(parser, "one JSON object on a line for each interval")


def _store(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "check", "backup", "compact"),
        help="show: what there is; check: read everything, and tell whether it is whole; backup: copy it; "
        "compact: give back to the disk what the file does not use",
    )
    parser.add_argument(
        "target", metavar="PATH", nargs="?", help="for backup: the copy; must not be there yet"
    )
    parser.add_argument(
        "--state-dir", metavar="PATH", help="the daemon's. Default: as towpath serve without a configuration"
    )
    add_json(parser)


VERBS: Final = (
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
        "Rates are of what lies in rings, and cost those who publish and subscribe nothing. Of queues they "
        "are of what was taken in, and DONE/S of what was settled; HELD is how deep they are. PENDING is "
        "what a session's subscriptions have not taken yet. Ctrl-C ends it.",
        ("towpath top", "towpath top --once --interval 5", "towpath top --json | jq .channels"),
    ),
    Verb(
        "store",
        "The daemon",
        "show, check, copy or compact what is stored of queues, states and durable topics",
        _store,
        "Reads the store's file, whether the daemon runs or not, and changes nothing; but for compact. A "
        "backup is the store as it was at one moment; to go back to it, stop the daemon and put it in "
        "the place of store.sqlite in the state directory, without store.sqlite-parcels, where large parts "
        "of the store are that a backup has in itself. check exits with 74 if something is damaged. "
        "The file keeps the room of what was let go, for what comes; compact, while no daemon runs, "
        "writes it anew without: that needs room for all that is stored once more.",
        (
            "towpath store show",
            "towpath store check --state-dir /var/lib/towpath",
            "towpath store backup /mnt/backup/monday.sqlite",
        ),
    ),
)
