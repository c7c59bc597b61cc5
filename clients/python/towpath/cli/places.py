"""``towpath places``: how far the named subscriptions of a durable topic have come, and to forget one.

A place stays until it is removed, also when nobody comes back to it: retention lets messages go that it has
not dealt with. So the list says how far behind each is, and how many of those are there no more. The two
questions, what is stored and which places there are, are asked one after the other: on a topic that moves, a
figure may be a little old.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Sequence

from towpath.cli import report
from towpath.cli.connection import connect
from towpath.cli.streams import STDOUT, emit, is_terminal
from towpath.cli.text import Style, ago, table
from towpath.model import ChannelContents, Place


def run(arguments: Namespace) -> int:
    """List places, or remove one."""
    with connect(arguments) as client:
        if arguments.remove is not None:
            client.delete_place(arguments.channel, arguments.remove)
            return 0
        found = client.places(arguments.channel)
        contents = client.channel_info(arguments.channel).contents or ChannelContents()
    if arguments.json:
        emit(report.to_json([_document(place, contents) for place in found]))
    elif found:
        style = Style(is_terminal(STDOUT) and not os.environ.get("NO_COLOR"))
        emit("\n".join(lines(found, contents, now_ns=time.time_ns(), style=style)) + "\n")
    else:
        emit(f"no subscription has a place in {arguments.channel}\n")
    return 0


def lines(places: Sequence[Place], contents: ChannelContents, *, now_ns: int, style: Style) -> list[str]:
    """Write the table.

    Args:
        contents: of the topic.
        now_ns: nanoseconds since the epoch, from which ages are told.
    """
    rows = [
        (
            place.name,
            f"{place.seq:,}",
            f"{_behind(place, contents):,}",
            f"{_gone(place, contents):,}",
            ago(place.saved_at_ns, now_ns),
        )
        for place in places
    ]
    return table(("PLACE", ">NEXT SEQ", ">BEHIND", ">GONE", "SAVED"), rows, style)


def _behind(place: Place, contents: ChannelContents) -> int:
    """How many messages were published that the place has not dealt with."""
    return max(contents.next_seq - place.seq, 0)


def _gone(place: Place, contents: ChannelContents) -> int:
    """How many of those are kept no more."""
    return max(contents.oldest_seq - place.seq, 0)


def _document(place: Place, contents: ChannelContents) -> dict[str, object]:
    return {
        "name": place.name,
        "seq": place.seq,
        "behind": _behind(place, contents),
        "gone": _gone(place, contents),
        "saved_at_ns": place.saved_at_ns,
    }
