"""The verb that helps to choose a mechanism."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Final

from towpath.cli import values

from .verb import Verb, add_json


def _advise(parser: ArgumentParser) -> None:
    needs = parser.add_argument_group("what the conversation needs")
    needs.add_argument(
        "--size",
        metavar="SIZE",
        type=values.size,
        default=1024,
        help="of a message: 64, 16K, 1M, up to 16M. Default: 1K",
    )
    needs.add_argument(
        "--rate",
        metavar="N",
        type=values.rate,
        help="messages a second, as in 0.5 or 20000. Default: as many as can be",
    )
    needs.add_argument(
        "--fan-out",
        metavar="N",
        type=values.count,
        default=1,
        help="how many receive each message, at most 32. Default: 1",
    )
    needs.add_argument("--sync", action="store_true", help="the sender needs an answer to each")
    needs.add_argument("--durable", action="store_true", help="messages survive a crash of everything")
    needs.add_argument(
        "--reach", choices=("host", "network"), default="host", help="where the other side is. Default: host"
    )
    parser.add_argument(
        "--plot",
        metavar="PATH",
        help="draw size against throughput and latency (.png, .svg, .pdf); needs the extra plot",
    )
    parser.add_argument("--quick", action="store_true", help="measure each for a moment only")
    parser.add_argument("--no-progress", action="store_true", help="no progress line")
    add_json(parser)


VERBS: Final = (
    Verb(
        "advise",
        "Choosing",
        "measure the mechanisms on this machine, and advise one",
        _advise,
        "Measures pipe, FIFO, UNIX socket, message queue, Towpath's ring and loan, ZeroMQ and gRPC for what "
        "the conversation needs, and says which one suits, why, and by which commands it is set up. Takes "
        "about 15 s, with --quick 6, with --plot a minute; at most 2 minutes, with --plot 4. No daemon need "
        "run. Exits with 1 when none will do.",
        (
            "towpath advise",
            "towpath advise --size 64 --rate 20000 --fan-out 3",
            "towpath advise --sync --reach network --quick",
            "towpath advise --size 1M --plot advice.png",
        ),
    ),
)
