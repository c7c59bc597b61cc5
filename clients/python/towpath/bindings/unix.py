"""``unix:PATH`` and ``unix:@NAME``: a UNIX socket. What its URL and options may say. See unix(7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from towpath.bindings import framings
from towpath.bindings.fifo import WhenAbsent
from towpath.bindings.grammar import Option, Scheme, check_path, path_key, shown, utf8_bytes
from towpath.errors import InvalidArgument
from towpath.framing import FramingOptions

ADDRESS_BYTES_MAX: Final = 107
"""sun_path holds 108, of a path with its NUL and of an abstract name with the NUL before it."""
PEERS_MAX_LIMIT: Final = 1024
PACKET_BYTES_MAX_LIMIT: Final = 16 << 20
BACKLOG_BYTES_LIMIT: Final = 256 << 20

_EXAMPLE: Final = "unix:/run/app.sock"
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
_OWNER = re.compile(rf"(?:({_USER})(?::({_USER}))?|:({_USER}))\Z")


class SocketType(StrEnum):
    """How a socket carries: bytes, packets to anybody, packets over a connection."""

    STREAM = "stream"
    DGRAM = "dgram"
    SEQPACKET = "seqpacket"


class Role(StrEnum):
    """Whether the bridge makes the socket and takes whoever comes, or goes to another's."""

    LISTEN = "listen"
    CONNECT = "connect"


class WhenSlow(StrEnum):
    """What becomes of a peer that does not take what it is sent."""

    BLOCK = "block"
    DROP = "drop"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True)
class UnixOptions:
    """A ``unix:`` binding's options, with every default filled in.

    Attributes:
        user, group: whom the socket's file is given to, by name or number; empty for nobody else.
    """

    framing: FramingOptions = FramingOptions()
    socket: SocketType = SocketType.STREAM
    role: Role = Role.LISTEN
    mode: int = 0o600
    user: str = ""
    group: str = ""
    peers_max: int = 64
    packet_bytes_max: int = 65_536
    when_absent: WhenAbsent = WhenAbsent.DROP
    when_slow: WhenSlow = WhenSlow.BLOCK
    backlog_bytes: int = 1 << 20


def _check_place(url: str, place: str) -> None:
    option = re.search(rf"\?({'|'.join(each.name for each in _OPTIONS)})=", place)
    if option is not None:
        raise InvalidArgument(
            f"{shown(url)}: options are not part of a URL",
            hint=f"as in: {_EXAMPLE} --option {option[1]}=..., or as keys beside url in [[bindings]]",
        )
    if place.startswith("@"):
        if place == "@" or "\0" in place:
            raise InvalidArgument(f"{shown(url)}: an abstract name is @ and what follows, without NUL")
        if utf8_bytes(place, "a name") - 1 > ADDRESS_BYTES_MAX:
            raise InvalidArgument(f"{shown(url)}: the name has more than {ADDRESS_BYTES_MAX} bytes")
        return
    check_path(url, place, example=f"{_EXAMPLE} and unix:@app")
    if utf8_bytes(place, "a path") > ADDRESS_BYTES_MAX:
        raise InvalidArgument(
            f"{shown(url)}: the path of a socket has more than {ADDRESS_BYTES_MAX} bytes",
            hint="sun_path in unix(7) holds no more; choose another, or an abstract name: unix:@NAME",
        )


def _key_of(place: str) -> tuple[str, ...]:
    return (place,) if place.startswith("@") else path_key(place)


def _refuse(checked: Mapping[str, str], names: tuple[str, ...], why: str) -> None:
    found = [name for name in names if name in checked]
    if found:
        raise InvalidArgument(f"option {found[0]} is for {why}")


def _check_together(checked: Mapping[str, str], direction: str) -> None:
    kind, role = SocketType(checked.get("socket", "stream")), Role(checked.get("role", "listen"))
    if kind is SocketType.STREAM:
        _refuse(checked, ("packet_bytes_max",), "socket=dgram and socket=seqpacket; a stream has framing")
        framings.check_together(checked)
    else:
        _refuse(checked, framings.NAMES, "socket=stream: elsewhere each packet is one message")
    if kind is SocketType.DGRAM:
        _refuse(checked, ("peers_max",), "stream and seqpacket: to a dgram socket nobody is connected")
        if role is Role.LISTEN and direction in ("out", "both"):
            raise InvalidArgument(
                "a listening dgram socket knows nobody to send to: it carries in only",
                hint="role=connect sends to another's socket, and with direction both hears its answers",
            )
        if role is Role.CONNECT and direction == "in":
            raise InvalidArgument(
                "nobody knows where to send to a dgram socket that connects",
                hint="role=listen receives; or direction both, which hears the answers to what was sent",
            )
    if role is Role.CONNECT:
        _refuse(checked, ("mode", "owner", "peers_max"), "role=listen: another program makes the socket")
    if direction == "in":
        _refuse(checked, ("when_absent", "when_slow", "backlog_bytes"), "directions out and both")
    if "owner" in checked and not _OWNER.match(checked["owner"]):
        raise InvalidArgument(
            f"option owner cannot be {shown(checked['owner'])}", hint="USER, USER:GROUP or :GROUP"
        )


def _read(value: Mapping[str, str]) -> UnixOptions:
    owner = _OWNER.match(value.get("owner", ""))
    user, group, group_alone = owner.groups() if owner else (None, None, None)
    return UnixOptions(
        framing=framings.read(value),
        socket=SocketType(value["socket"]),
        role=Role(value["role"]),
        mode=int(value["mode"], 8),
        user=user or "",
        group=group or group_alone or "",
        peers_max=int(value["peers_max"]),
        packet_bytes_max=int(value["packet_bytes_max"]),
        when_absent=WhenAbsent(value["when_absent"]),
        when_slow=WhenSlow(value["when_slow"]),
        backlog_bytes=int(value["backlog_bytes"]),
    )


_OPTIONS: Final = (
    Option(
        "socket", "choice", "stream", "The socket's type; of a stream, framing says what a message is.",
        choices=tuple(choice.value for choice in SocketType),
    ),
    Option(
        "role", "choice", "listen", "Make the socket and take whoever comes, or connect to another's.",
        choices=tuple(choice.value for choice in Role),
    ),
    *framings.OPTIONS,
    Option("mode", "octal", "0600", "Permissions of the socket: who may connect.", maximum=0o777),
    Option(
        "owner", "text", None, "Whom the socket's file is given to: USER, USER:GROUP or :GROUP.",
        minimum=1, maximum=129,
    ),
    Option(
        "peers_max", "integer", "64", "How many may be connected at a time; one more is turned away.",
        minimum=1, maximum=PEERS_MAX_LIMIT,
    ),
    Option(
        "packet_bytes_max", "integer", "65536",
        "The longest packet; a longer one is not carried, counted and reported. The ring bounds it too.",
        minimum=1, maximum=PACKET_BYTES_MAX_LIMIT,
    ),
    Option(
        "when_absent", "choice", "drop",
        "Outward, while nobody is connected: drop the oldest and count, or block the publishers.",
        choices=tuple(choice.value for choice in WhenAbsent),
    ),
    Option(
        "when_slow", "choice", "block",
        "Outward, of a peer that is behind by backlog_bytes: block the publishers, drop its oldest messages,"
        " or disconnect it.",
        choices=tuple(choice.value for choice in WhenSlow),
    ),
    Option(
        "backlog_bytes", "integer", str(1 << 20),
        "Outward, how much is held for each peer, and while there is none.",
        minimum=4096, maximum=BACKLOG_BYTES_LIMIT,
    ),
)  # fmt: skip

UNIX: Final = Scheme(
    name="unix",
    example=_EXAMPLE,
    options=_OPTIONS,
    check_place=_check_place,
    key_of=_key_of,
    read=_read,
    check_together=_check_together,
)
