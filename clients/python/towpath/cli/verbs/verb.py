"""What a verb is, and the arguments that several verbs share.

An argument that two verbs have means the same in both: it is added by the same function here.

Not here: any verb.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from towpath.cli import values

if TYPE_CHECKING:
    from argparse import _ArgumentGroup

FRAMINGS: Final = ("line", "length", "netstring", "delimiter", "fixed", "raw")


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


def add_json(parser: ArgumentParser, what: str = "one JSON document instead of text") -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def add_framing(parser: ArgumentParser, default: str) -> None:
    """Add ``--frame`` and what belongs to it."""
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


def add_headers(
    parser: ArgumentParser, title: str = "headers", key: str = "what it is about"
) -> _ArgumentGroup:
    """Add the headers that every message may have; the group is returned for further ones."""
    headers = parser.add_argument_group(title)
    headers.add_argument(
        "--header",
        metavar="KEY=VALUE",
        action="append",
        type=values.pair,
        default=[],
        help="of your own; may be repeated",
    )
    headers.add_argument("--content-type", metavar="TYPE", default="", help="as in MIME: application/json")
    headers.add_argument("--key", metavar="TEXT", default="", help=key)
    return headers
