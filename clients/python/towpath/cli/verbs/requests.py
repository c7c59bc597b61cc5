"""Verbs that have an answer: calls of services, and a state's value.

Not here: streams of messages (``messages``), what they do (``services`` and ``states`` of ``towpath.cli``).
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Final

from towpath.cli import values

from .verb import Verb, add_headers, add_json


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
    add_headers(parser)
    add_json(parser, "one JSON object on a line for each reply")


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


VERBS: Final = (
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
)
