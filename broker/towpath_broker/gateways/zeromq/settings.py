"""The table ``[zeromq]``: where the gateway listens, and every bound it keeps.

Theory of operation
    One frozen dataclass, from which flags, environment names and the manual are derived (see
    ``towpath_broker.tables``). An endpoint that other hosts could reach is refused, because peers are not
    authenticated yet; names other than ``localhost`` are not looked up, so that what was checked is what is
    bound.

What the bounds cost in memory
    ``sub``: libzmq holds up to ``sub_hwm`` messages for each subscriber that does not read; one payload is
    shared by all of them. 10,000 messages of 100 bytes are about 3 MB a subscriber; with payloads of 64 KiB
    they are 640 MB in all. ``push``: libzmq holds up to ``push_hwm`` messages of each peer, and the gateway
    ``push_queue`` messages or ``push_queue_bytes`` for each of up to ``sources_max`` channels. ``rpc``: up
    to ``rpc_hwm`` messages of each peer in each direction; a batch takes at most ``rpc_batch_bytes``, or
    one message.

What libzmq does not bound
    The parts of one message: a peer may send parts without end, and all are held until the last. The number
    of connections: only the process's limit of descriptors does. A service should have MemoryMax.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from towpath.errors import InvalidConfiguration
from towpath_broker.gateways._common import setting

UNIX_PATH_BYTES_MAX: Final = 107
"""The path in a ``sockaddr_un``, less its closing NUL (unix(7))."""

_TCP: Final = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^\[\]:/]+):([0-9]{1,5}|\*)\Z")


@dataclass(frozen=True, slots=True)
class ZeroMQSettings:
    """Where the gateway listens and what it bounds; the defaults suit one host with some hundred peers."""

    sub: str = setting("tcp://127.0.0.1:5556", "where SUB sockets connect; port 0 takes a free one")
    push: str = setting("tcp://127.0.0.1:5557", "where PUSH sockets connect; port 0 takes a free one")
    rpc: str = setting(
        "tcp://127.0.0.1:5558", "where DEALER and REQ sockets connect; port 0 takes a free one"
    )
    message_bytes_max: int = setting(
        16 << 20,
        "bytes of the largest message part taken from a peer; one that sends more is disconnected",
        minimum=1 << 10,
        maximum=1 << 28,
    )
    heartbeat_ms: int = setting(
        0,
        "a peer is pinged this often, and given up after three intervals of silence; 0: never, since "
        "peers of ZMTP 3.0 know no pings, and on one host the kernel tells who is gone",
        minimum=0,
        maximum=3_600_000,
    )
    sub_hwm: int = setting(
        10_000, "messages that wait for a subscriber that does not read", minimum=1, maximum=10_000_000
    )
    sub_stall_ms: int = setting(
        250,
        "how long a full subscriber holds up its channel before it loses messages",
        minimum=0,
        maximum=60_000,
    )
    sub_lossy_ms: int = setting(
        10_000,
        "how long, after a stall in vain, full subscribers are waited for less",
        minimum=0,
        maximum=3_600_000,
    )
    sub_prefixes_max: int = setting(
        65_536, "different subscriptions served; more are refused and counted", minimum=1, maximum=1_000_000
    )
    sub_channels_max: int = setting(
        4_096,
        "channels read at once for subscribers; more are refused and counted",
        minimum=1,
        maximum=65_536,
    )
    push_hwm: int = setting(1_000, "messages taken ahead from each PUSH peer", minimum=1, maximum=1_000_000)
    push_queue: int = setting(
        4_096, "messages that wait for one channel whose subscribers block", minimum=1, maximum=1_000_000
    )
    push_queue_bytes: int = setting(
        1 << 20,
        "bytes that wait for one such channel; one message always may",
        minimum=1 << 10,
        maximum=1 << 30,
    )
    push_stall_ms: int = setting(
        1_000,
        "how long one such channel holds up the others before what is pushed to it is refused",
        minimum=0,
        maximum=60_000,
    )
    sources_max: int = setting(
        1_024,
        "channels on which the gateway is a publisher at once; the one unused longest gives way",
        minimum=1,
        maximum=16_384,
    )
    rpc_hwm: int = setting(
        64, "messages that wait for each DEALER that does not read", minimum=1, maximum=100_000
    )
    rpc_calls_per_peer_max: int = setting(
        64, "unary calls that one peer may have open", minimum=1, maximum=65_536
    )
    rpc_streams_per_peer_max: int = setting(
        256,
        "subscriptions, watches and lock sessions that one peer may have open",
        minimum=1,
        maximum=65_536,
    )
    rpc_waits_per_peer_max: int = setting(
        16_384, "requests for locks that one peer may have waiting", minimum=1, maximum=65_536
    )
    rpc_calls_max: int = setting(
        32_768,
        "calls, subscriptions, watches and requests for locks open over all peers",
        minimum=1,
        maximum=1_000_000,
    )
    rpc_window: int = setting(
        1_024,
        "credit of a subscription that states none, in messages",
        minimum=1,
        maximum=1_000_000,
    )
    rpc_batch_bytes: int = setting(
        256 << 10, "payload bytes after which a batch takes no further message", minimum=1, maximum=1 << 26
    )
    rpc_stall_ms: int = setting(
        10_000,
        "how long an answer waits for a peer that does not read, before the peer's calls are ended",
        minimum=0,
        maximum=600_000,
    )

    def __post_init__(self) -> None:
        for name in ("sub", "push", "rpc"):
            check_endpoint(name, getattr(self, name))
        fixed = [text for text in (self.sub, self.push, self.rpc) if not text.endswith((":0", ":*"))]
        if len(set(fixed)) < len(fixed):
            raise InvalidConfiguration(f"sub, push and rpc share an endpoint: {', '.join(fixed)}")


def check_endpoint(name: str, text: str) -> str:
    """Check where an endpoint is to listen.

    Args:
        name: the setting: ``sub``.
        text: its value: ``tcp://127.0.0.1:5556``, ``tcp://[::1]:0`` or ``ipc:///run/towpath/sub``.

    Returns:
        The address to bind, which has a literal host.

    Raises:
        InvalidConfiguration: it is malformed, or reachable from other hosts.
    """
    if text.startswith("ipc://"):
        path = text.removeprefix("ipc://")
        if not path.startswith("/") or path.endswith("/"):
            raise InvalidConfiguration(
                f"{name}: {text!r} is not allowed; after ipc:// comes an absolute path of a socket"
            )
        if len(path.encode(errors="surrogateescape")) > UNIX_PATH_BYTES_MAX:
            raise InvalidConfiguration(
                f"{name}: the path of a socket has at most {UNIX_PATH_BYTES_MAX} bytes: {text!r}"
            )
        return text
    match = _TCP.match(text)
    if match is None or (match[2] != "*" and int(match[2]) > 65_535):
        raise InvalidConfiguration(
            f"{name}: {text!r} is not allowed; allowed: tcp://ADDRESS:PORT or ipc:///path",
            hint=f'for example {name} = "tcp://127.0.0.1:5556"',
        )
    host = "127.0.0.1" if match[1] == "localhost" else match[1]
    try:
        address = None if host == "*" else ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise InvalidConfiguration(
            f"{name}: {text!r} is not allowed; the host must be an address, or localhost",
            hint="names and interfaces are not looked up: write 127.0.0.1 or [::1]",
        ) from None
    if address is not None and (address.version == 6) != host.startswith("["):
        raise InvalidConfiguration(f"{name}: {text!r}: brackets go around an IPv6 address, and only there")
    if address is None or not address.is_loopback:
        raise InvalidConfiguration(
            f"{name}: {text!r} could be reached from other hosts, and peers are not authenticated",
            hint="listen on 127.0.0.1, [::1] or ipc:///path; other hosts need CURVE, which comes later",
        )
    return f"tcp://{host}:{0 if match[2] == '*' else int(match[2])}"
