"""Where the daemon is: the search order of ``towpath.connect()``, and how a connection is made. No
protocol in here.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Final

from towpath.errors import InvalidArgument, NotSupported, Unavailable

SOCKET_NAME: Final = "towpath.sock"
GATEWAY_ENV: Final = "TOWPATH_GATEWAY_FD"
SOCKET_ENV: Final = "TOWPATH_SOCKET"


def candidates() -> list[str]:
    """Paths at which a local daemon may listen, most specific first."""
    given = os.environ.get(SOCKET_ENV)
    if given:
        return [given]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    paths = [os.path.join(runtime, "towpath", SOCKET_NAME)] if runtime else []
    return [*paths, f"/run/towpath/{SOCKET_NAME}", f"/tmp/towpath-{os.getuid()}/{SOCKET_NAME}"]


def parse_url(url: str | None) -> list[str]:
    """Return the socket paths that a URL stands for, in the order in which to try them.

    Args:
        url: None (search), a path, or ``unix:/path``.

    Raises:
        NotSupported: a carrier that this version cannot use.
        InvalidArgument: not a URL of a carrier.
    """
    if url is None:
        return candidates()
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        return [path.removeprefix("//") if path.startswith("///") else path]
    if url.startswith(("grpc:", "zmq:")):
        raise NotSupported(
            f"{url!r}: the Python client reaches only the local daemon yet",
            hint="from afar use plain gRPC or ZeroMQ, as the README shows",
        )
    if "://" in url or not url:
        raise InvalidArgument(f"{url!r} is not an address of a daemon", hint="a path, or unix:/path")
    return [url]


def _connect_through_supervisor(control: int) -> socket.socket:
    """A gateway's way in: make a pair, and have the supervisor hand one end to the core as this gateway's."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        supervisor = socket.socket(fileno=os.dup(control))
        with theirs, supervisor:
            rights = array.array("i", [theirs.fileno()])
            supervisor.sendmsg([b'{"type": "connect"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError as error:
        mine.close()
        raise Unavailable(f"the supervisor is gone: {error.strerror}") from None
    return mine


def open_socket(url: str | None) -> socket.socket:
    """Connect; the first address that has somebody listening.

    Returns:
        A connected, blocking stream socket, owned by the caller.

    Raises:
        Unavailable: nobody listens; the message names the addresses tried.
    """
    control = os.environ.get(GATEWAY_ENV)
    if url is None and control:
        return _connect_through_supervisor(int(control))
    failures: list[str] = []
    for path in parse_url(url):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            failures.append(f"{path}: {error.strerror or error}")
        else:
            return sock
    raise Unavailable(f"no daemon answers ({'; '.join(failures)})")
