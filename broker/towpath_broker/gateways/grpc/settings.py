"""The table ``[grpc]``: what can be configured, and where the gateway may listen.

Theory of operation
    :class:`GrpcSettings` checks ``listen`` when it is made, so that whoever holds one holds a valid one. Only
    loopback addresses and UNIX sockets are accepted, because peers are not authenticated yet; names other
    than ``localhost`` are not looked up, so that what was checked is what is bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from towpath.errors import InvalidConfiguration
from towpath_broker.gateways._common import setting

UNIX_PATH_BYTES_MAX: Final = 107
"""The path in a sockaddr_un, less its closing NUL (unix(7))."""


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """What can be configured; each field says what it is."""

    listen: str = setting(
        "127.0.0.1:50551",
        "HOST:PORT on this host, or unix:/path; port 0 takes a free port, which towpath status tells",
    )
    calls_max: int = setting(
        32_768,
        "calls open at once, streams and requests for locks included, over all connections; more are refused",
        minimum=1,
        maximum=65_536,
    )
    calls_per_connection_max: int = setting(
        16_384,
        "calls open at once on one connection; more wait in the client",
        minimum=1,
        maximum=65_536,
    )
    connections_max: int = setting(
        512, "connections open at once; more are closed as they come", minimum=1, maximum=65_536
    )
    message_bytes_max: int = setting(
        4 << 20,
        "bytes of the largest request; a larger one is refused",
        minimum=4_096,
        maximum=1 << 30,
    )
    batch_messages_max: int = setting(
        1_024, "messages in one response of a subscription", minimum=1, maximum=10_000
    )
    batch_bytes_max: int = setting(
        256 << 10,
        "bytes after which a subscription's response is full; clients accept 4 MiB unless told otherwise",
        minimum=1,
        maximum=64 << 20,
    )
    publishers_max: int = setting(
        256,
        "channels that unary publishes keep a source open on; the one used longest ago gives way",
        minimum=1,
        maximum=65_536,
    )
    publisher_idle_ms: int = setting(
        60_000,
        "milliseconds without a unary publish after which the channel's source is closed",
        minimum=100,
        maximum=86_400_000,
    )
    keepalive_ms: int = setting(
        20_000, "milliseconds of silence after which a connection is pinged", minimum=1_000, maximum=7_200_000
    )
    keepalive_timeout_ms: int = setting(
        10_000,
        "milliseconds that a ping may stay unanswered; then the connection ends, with all that it had open",
        minimum=100,
        maximum=600_000,
    )

    def __post_init__(self) -> None:
        listen_target(self.listen)


def listen_target(listen: str) -> str:
    """Check where the gateway is to listen.

    Args:
        listen: the setting, as it stands in the configuration.

    Returns:
        The address for gRPC's ``add_insecure_port``: a literal one, or ``unix:`` and an absolute path.

    Raises:
        InvalidConfiguration: it is malformed, or would be reachable from other hosts.
    """
    if listen.startswith("unix:"):
        return _unix_target(listen)
    host, separator, port = listen.rpartition(":")
    if not separator or not (port.isascii() and port.isdecimal() and int(port) <= 65_535):
        raise InvalidConfiguration(
            f"listen is {listen!r}; it must be HOST:PORT with a port from 0 to 65535, or unix:/path",
            hint='for example listen = "127.0.0.1:50551"',
        )
    if host == "localhost":
        host = "127.0.0.1"
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise InvalidConfiguration(
            f"listen is {listen!r}; the host must be an address, or localhost",
            hint="names are not looked up: write 127.0.0.1 or [::1]",
        ) from None
    if bracketed != (address.version == 6):
        raise InvalidConfiguration(
            f"listen is {listen!r}; brackets go around an IPv6 address, and only there"
        )
    if not address.is_loopback:
        raise InvalidConfiguration(
            f"listen is {listen!r}, which other hosts can reach, and peers are not authenticated",
            hint="listen on 127.0.0.1, [::1] or unix:/path; access from other hosts needs TLS client "
            "certificates, which this version does not have yet",
        )
    return f"{host}:{int(port)}"


def _unix_target(listen: str) -> str:
    # gRPC knows unix:/path and unix:///path; more slashes than one mean the same to the kernel.
    path = listen.removeprefix("unix:")
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/") or path.startswith("//") or path.endswith("/") or "\0" in path:
        raise InvalidConfiguration(f"listen is {listen!r}; after unix: comes an absolute path of a socket")
    if len(path.encode(errors="surrogateescape")) > UNIX_PATH_BYTES_MAX:
        raise InvalidConfiguration(
            f"listen is {listen!r}; a socket's path has at most {UNIX_PATH_BYTES_MAX} bytes"
        )
    return f"unix:{path}"
