"""Where the command line's verbs get their client from."""

from __future__ import annotations

import os
from argparse import Namespace

import towpath


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
