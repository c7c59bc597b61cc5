"""Where the daemon is: the search order of ``towpath.connect()``, what its URLs mean, and how the daemon of
this host is connected to. No protocol in here.
"""

from __future__ import annotations

import array
import os
import re
import socket
from dataclasses import dataclass
from typing import Final, Literal

from towpath.errors import InvalidArgument, Unavailable, host_limits

SOCKET_NAME: Final = "towpath.sock"
GATEWAY_ENV: Final = "TOWPATH_GATEWAY_FD"
SOCKET_ENV: Final = "TOWPATH_SOCKET"

_PORTS: Final = {"grpc": 50551, "zmq": 5558}
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?/?\Z")


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """An address of a gateway.

    Attributes:
        carrier: how it is reached; also the name of the extra that this needs.
        target: as the carrier's own library has it: ``host:50551``, ``tcp://host:5558``.
        url: as it was given.
    """

    carrier: Literal["grpc", "zmq"]
    target: str
    url: str


def candidates() -> list[str]:
    """Paths at which a local daemon may listen, most specific first."""
    given = os.environ.get(SOCKET_ENV)
    if given:
        return [given]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    paths = [os.path.join(runtime, "towpath", SOCKET_NAME)] if runtime else []
    return [*paths, f"/run/towpath/{SOCKET_NAME}", f"/tmp/towpath-{os.getuid()}/{SOCKET_NAME}"]


def parse_url(url: str | None) -> list[str]:
    """Return the socket paths that a URL of this host's daemon stands for, in the order in which to try them.

    Args:
        url: None (search), a path, or ``unix:/path``.

    Raises:
        InvalidArgument: neither a path nor a URL.
    """
    if url is None:
        return candidates()
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        return [path.removeprefix("//") if path.startswith("///") else path]
    if "://" in url or not url:
        raise InvalidArgument(
            f"{url!r} is not an address of a daemon",
            hint="a path, unix:/path, grpc://HOST[:PORT] or zmq://HOST[:PORT]",
        )
    return [url]


def parse_remote(url: str | None) -> RemoteAddress | None:
    """Take a gateway's URL apart.

    Args:
        url: ``grpc://HOST[:PORT]``, ``grpc+unix:///PATH``, ``zmq://HOST[:PORT]``, ``zmq+ipc:///PATH``; the
            ports are 50551 and 5558 unless given.

    Returns:
        None for what is no gateway's URL, but perhaps the local daemon's.

    Raises:
        InvalidArgument: it is malformed.
    """
    if url is None or not url.startswith(("grpc:", "grpc+", "zmq:", "zmq+")):
        return None
    scheme, _, rest = url.partition("://")
    if scheme in ("grpc+unix", "zmq+ipc") and re.match(r"/[^/\0]", rest):
        if scheme == "grpc+unix":
            return RemoteAddress("grpc", f"unix:{rest}", url)
        return RemoteAddress("zmq", f"ipc://{rest}", url)
    match = _HOST_AND_PORT.match(rest)
    if scheme not in ("grpc", "zmq") or match is None or int(match[2] or 1) not in range(1, 65_536):
        raise InvalidArgument(
            f"{url!r} is not an address of a gateway",
            hint="grpc://HOST[:PORT], grpc+unix:///PATH, zmq://HOST[:PORT] or zmq+ipc:///PATH",
        )
    port = int(match[2] or _PORTS[scheme])
    if scheme == "grpc":
        return RemoteAddress("grpc", f"{match[1]}:{port}", url)
    return RemoteAddress("zmq", f"tcp://{match[1]}:{port}", url)


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
        with host_limits("a connection to the daemon"):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            failures.append(f"{path}: {error.strerror or error}")
        else:
            return sock
    raise Unavailable(f"no daemon answers ({'; '.join(failures)})")
