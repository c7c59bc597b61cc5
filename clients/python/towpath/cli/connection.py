"""Where the command line's verbs get their client from."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

import towpath
from towpath.errors import InvalidArgument

if TYPE_CHECKING:
    from towpath.sync.brief import BriefClient


def connect(arguments: Namespace, *, timeout: float = 5.0) -> towpath.Client:
    """Connect as ``--socket`` or ``--url`` say, or to this user's daemon.

    Args:
        arguments: with ``socket``, ``url`` and ``verb``.
        timeout: seconds, for the connection and for each call.

    Raises:
        Unavailable: no daemon answers there.
    """
    return towpath.connect(_url(arguments), timeout=timeout, name=f"towpath {arguments.verb}")


def connect_briefly(arguments: Namespace, *, timeout: float = 5.0) -> BriefClient | None:
    """The same for a few calls; None where only the whole client can reach the daemon: from afar.

    Raises:
        Unavailable: no daemon answers there.
    """
    from towpath.sync.brief import BriefClient

    url = _url(arguments)
    if url is not None and "://" in url:
        return None
    return BriefClient(url, timeout=timeout, name=f"towpath {arguments.verb}")


def _url(arguments: Namespace) -> str | None:
    if arguments.socket is not None:
        if not arguments.socket:
            raise InvalidArgument("--socket is empty", hint="--socket PATH, or leave it out to have it found")
        return f"unix:{os.path.abspath(arguments.socket)}"
    url: str | None = arguments.url
    return url
