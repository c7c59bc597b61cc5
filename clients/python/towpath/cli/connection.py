"""Where the command line's verbs get their client from, and their colours."""

from __future__ import annotations

import os
from argparse import Namespace

import towpath
from towpath.cli import streams
from towpath.cli.text import Style


def connect(arguments: Namespace, *, timeout: float = 5.0) -> towpath.Client:
    """Connect as ``--socket`` or ``--url`` say, or to this user's daemon.

    Args:
        arguments: with ``socket``, ``url`` and ``verb``.
        timeout: seconds, for the connection and for each call.

    Raises:
        Unavailable: no daemon answers there.
    """
    url: str | None = arguments.url
    if arguments.socket is not None:
        url = f"unix:{os.path.abspath(arguments.socket)}"
    return towpath.connect(url, timeout=timeout, name=f"towpath {arguments.verb}")


def output_style() -> Style:
    """Colours where standard output is a terminal and NO_COLOR is unset or empty (https://no-color.org)."""
    return Style(streams.is_terminal(streams.STDOUT) and not os.environ.get("NO_COLOR"))
