"""``shm:/NAME`` and ``shm:KEY``: a region of shared memory. What its URL and options may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from towpath.bindings.grammar import NAME_BYTES_MAX, Option, Scheme, shown, utf8_bytes
from towpath.errors import InvalidArgument

LENGTH_MAX: Final = 1 << 28
OFFSET_MAX: Final = (1 << 40) - 1
WORD_BYTES: Final = 4
_EXAMPLE: Final = "shm:/frame"
_OFFSET = re.compile(r"(.*)@([0-9]{1,13})\Z", re.DOTALL)
_KEY = re.compile(r"(?:0x([0-9A-Fa-f]{1,8})|([0-9]{1,10}))\Z")
KEY_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class ShmPlace:
    """A ``shm:`` binding's place.

    Attributes:
        name: of a POSIX segment, with its slash; empty for a System V one.
        key: of a System V segment.
        offset: where the region begins, in bytes.
    """

    name: str = ""
    key: int = 0
    offset: int = 0

    @property
    def segment(self) -> str:
        """The segment, for people."""
        return f"the segment {self.name}" if self.name else f"the System V segment 0x{self.key:x}"


@dataclass(frozen=True, slots=True)
class SemaphorePlace:
    """A semaphore.

    Attributes:
        name: of a POSIX one, with its slash; empty for a System V one.
        key, index: of a System V one.
    """

    name: str = ""
    key: int = 0
    index: int = 0

    def __str__(self) -> str:
        return self.name or f"0x{self.key:x}:{self.index}"


@dataclass(frozen=True, slots=True)
class ShmOptions:
    """A ``shm:`` binding's options, with every default filled in; offsets are from the segment's start.

    Attributes:
        length: of the region; 0 for all from its offset on.
    """

    length: int = 0
    length_offset: int | None = None
    generation_offset: int | None = None
    futex_offset: int | None = None
    semaphore: SemaphorePlace | None = None
    free: SemaphorePlace | None = None
    poll_ms: int = 100


def _parse_key(text: str) -> int | None:
    match = _KEY.match(text)
    if match is None:
        return None
    key = int(match[1], 16) if match[1] else int(match[2])
    return key if 0 < key <= KEY_MAX else None


def _check_name(what: str, name: str, example: str) -> None:
    if utf8_bytes(name, "a name") - 1 > NAME_BYTES_MAX - len("sem."):
        raise InvalidArgument(f"{what}: the name has more than {NAME_BYTES_MAX - len('sem.')} bytes")
    if "/" in name[1:] or "\0" in name or name in ("/", "/.", "/.."):
        raise InvalidArgument(f"{what}: a name is a slash and no other", hint=f"as in {example}")


def parse_shm(url: str, place: str) -> ShmPlace:
    """Take a ``shm:`` binding's place apart.

    Args:
        url: for the message.
        place: a POSIX segment's name (``/frame``) or a System V segment's key (``0x1234``, ``4660``); then,
            where the region does not begin with the segment, ``@`` and its offset in bytes.

    Raises:
        InvalidArgument: it is neither, or the offset is too large.
    """
    match = _OFFSET.match(place)
    name, offset = (match[1], int(match[2])) if match else (place, 0)
    if offset > OFFSET_MAX:
        raise InvalidArgument(f"{shown(url)}: the offset is more than {OFFSET_MAX}")
    if name.startswith("/"):
        _check_name(shown(url), name, _EXAMPLE)
        return ShmPlace(name=name, offset=offset)
    key = _parse_key(name)
    if key is None:
        raise InvalidArgument(
            f"{shown(url)} names no segment", hint=f"as in {_EXAMPLE}, {_EXAMPLE}@4096 and shm:0x1234"
        )
    return ShmPlace(key=key, offset=offset)


def parse_semaphore(option: str, text: str) -> SemaphorePlace:
    """Read a semaphore: ``/name``, or ``KEY:INDEX`` of a System V set (``:0`` may be left out).

    Raises:
        InvalidArgument: it is none.
    """
    if text.startswith("/"):
        _check_name(f"option {option}", text, f"{option}=/frame-ready")
        return SemaphorePlace(name=text)
    name, _, index = text.partition(":")
    key = _parse_key(name)
    if key is None or not (index or "0").isdecimal() or not int(index or "0") <= 0xFFFF:
        raise InvalidArgument(
            f"option {option} cannot be {shown(text)}",
            hint=f"as in {option}=/frame-ready and {option}=0x1234:0",
        )
    return SemaphorePlace(key=key, index=int(index or "0"))


def _check_place(url: str, place: str) -> None:
    parse_shm(url, place)


def _key_of(place: str) -> tuple[str, ...]:
    parsed = parse_shm("", place)
    return (parsed.name or str(parsed.key), str(parsed.offset))


def _check_together(checked: Mapping[str, str], direction: str) -> None:
    for name in ("semaphore", "free"):
        if name in checked:
            parse_semaphore(name, checked[name])
    for name in ("length_offset", "generation_offset", "futex_offset"):
        if int(checked.get(name, "0")) % WORD_BYTES:
            raise InvalidArgument(f"option {name} is a multiple of {WORD_BYTES}: a word lies there")
    tellers = [name for name in ("semaphore", "futex_offset") if name in checked]
    if direction == "in" and len(tellers) > 1:
        raise InvalidArgument("inward one thing tells of a change: semaphore or futex_offset, not both")
    if "poll_ms" in checked and (tellers or direction == "out"):
        raise InvalidArgument("option poll_ms is for direction in without semaphore and futex_offset")
    if "free" in checked and direction == "in" and "semaphore" not in checked:
        raise InvalidArgument("inward, option free needs option semaphore")


def _read(value: Mapping[str, str]) -> ShmOptions:
    def number(name: str) -> int | None:
        return int(value[name]) if name in value else None

    def semaphore(name: str) -> SemaphorePlace | None:
        return parse_semaphore(name, value[name]) if name in value else None

    return ShmOptions(
        length=number("length") or 0,
        length_offset=number("length_offset"),
        generation_offset=number("generation_offset"),
        futex_offset=number("futex_offset"),
        semaphore=semaphore("semaphore"),
        free=semaphore("free"),
        poll_ms=int(value["poll_ms"]),
    )


SHM: Final = Scheme(
    name="shm",
    example=_EXAMPLE,
    options=(
        Option(
            "length", "integer", None, "Bytes of the region; else it reaches to the segment's end.",
            minimum=1, maximum=LENGTH_MAX,
        ),
        Option(
            "length_offset", "integer", None,
            "Where in the segment a 32-bit word says how many bytes of the region are the message.",
            maximum=10**12 - 1,
        ),
        Option(
            "generation_offset", "integer", None,
            "Where a 32-bit word counts changes: odd while one is being made (a seqlock).",
            maximum=10**12 - 1,
        ),
        Option(
            "futex_offset", "integer", None,
            "Where a 32-bit word tells of a change: it is changed, and whoever sleeps on it is woken.",
            maximum=10**12 - 1,
        ),
        Option(
            "semaphore", "text", None,
            "What tells of a change: /NAME, or KEY:INDEX of System V. Taken inward, posted outward.",
            minimum=1, maximum=256,
        ),
        Option(
            "free", "text", None,
            "A semaphore that says that the region may be written. Posted inward, taken outward.",
            minimum=1, maximum=256,
        ),
        Option(
            "poll_ms", "integer", "100", "Inward, where nothing tells of a change: how often to look.",
            minimum=1, maximum=60_000,
        ),
    ),
    check_place=_check_place,
    key_of=_key_of,
    read=_read,
    directions=("in", "out"),
    direction_hint=(
        "a region carries one way: direction both would read back what it wrote",
        f"bind two regions: {_EXAMPLE} in, and {_EXAMPLE}@4096 out",
    ),
    check_together=_check_together,
)  # fmt: skip
