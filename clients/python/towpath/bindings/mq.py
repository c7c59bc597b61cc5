"""``mq:/NAME``: a POSIX message queue. What its URL and options may say. See mq_overview(7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from towpath.bindings.grammar import NAME_BYTES_MAX, Option, Scheme, shown, utf8_bytes
from towpath.errors import InvalidArgument

MAXMSG_LIMIT: Final = 65_536  # HARD_MSGMAX of Linux
MSGSIZE_LIMIT: Final = 16 << 20  # HARD_MSGSIZEMAX
SPLIT_BYTES_MAX_LIMIT: Final = 256 << 20

_EXAMPLE: Final = "mq:/orders"


@dataclass(frozen=True, slots=True)
class MqOptions:
    """An ``mq:`` binding's options, with every default filled in; None is the host's own default."""

    mode: int = 0o600
    create: bool = True
    maxmsg: int | None = None
    msgsize: int | None = None
    split: bool = False
    split_bytes_max: int = 1 << 20


def _check_place(url: str, place: str) -> None:
    hint = f"a slash and a name, as in {_EXAMPLE}"
    name = place[1:]
    if not place.startswith("/") or not name or "/" in name:
        raise InvalidArgument(
            f"{shown(url)}: a message queue's name is one slash and what follows", hint=hint
        )
    if name in (".", "..") or "\0" in name:
        raise InvalidArgument(f"{shown(url)}: no message queue can have this name", hint=hint)
    if utf8_bytes(name, "a name") > NAME_BYTES_MAX:
        raise InvalidArgument(f"{shown(url)}: the name has more than {NAME_BYTES_MAX} bytes", hint=hint)


def _key_of(place: str) -> tuple[str, ...]:
    return (place,)


def _check_together(checked: Mapping[str, str], direction: str) -> None:
    if "split_bytes_max" in checked and checked.get("split") != "true":
        raise InvalidArgument("option split_bytes_max needs split=true")


def _number(value: Mapping[str, str], name: str) -> int | None:
    return int(value[name]) if name in value else None


def _read(value: Mapping[str, str]) -> MqOptions:
    return MqOptions(
        mode=int(value["mode"], 8),
        create=value["create"] == "true",
        maxmsg=_number(value, "maxmsg"),
        msgsize=_number(value, "msgsize"),
        split=value["split"] == "true",
        split_bytes_max=int(value["split_bytes_max"]),
    )


MQ: Final = Scheme(
    name="mq",
    example=_EXAMPLE,
    options=(
        Option("mode", "octal", "0600", "Permissions of a queue that the bridge makes.", maximum=0o777),
        Option(
            "create", "boolean", "true",
            "Make the queue when there is none of the name; one that is there is taken as it is.",
        ),
        Option(
            "maxmsg", "integer", None,
            "How many messages a queue that is made holds; unless stated: fs.mqueue.msg_default.",
            minimum=1, maximum=MAXMSG_LIMIT,
        ),
        Option(
            "msgsize", "integer", None,
            "Bytes of the largest message of a queue that is made; unless stated: fs.mqueue.msgsize_default.",
            minimum=1, maximum=MSGSIZE_LIMIT,
        ),
        Option(
            "split", "boolean", "false",
            "Cut each message into pieces that the queue takes, and join them again: only between two"
            " bindings of Towpath, both with this option.",
        ),
        Option(
            "split_bytes_max", "integer", str(1 << 20), "With split: the longest message.",
            minimum=1, maximum=SPLIT_BYTES_MAX_LIMIT,
        ),
    ),
    check_place=_check_place,
    key_of=_key_of,
    read=_read,
    directions=("in", "out"),
    direction_hint=(
        "a message queue carries one way: direction both would read back what it wrote",
        "bind two queues, one in and one out",
    ),
    check_together=_check_together,
)  # fmt: skip
