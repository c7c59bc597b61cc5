"""One line for one message: when, where, who, how old, how large, and as much of it as fits. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from towpath.cli.report import timestamp
from towpath.cli.text import byte_size, clipped, one_line
from towpath.errors import TowpathError
from towpath.model import NO_HEADERS

if TYPE_CHECKING:
    from towpath.cli.report import MessageLike

PREVIEW_CHARS_MIN: Final = 16
_TIME: Final = slice(11, 26)


def preview_line(message: MessageLike, now_ns: int, *, width: int, form: str) -> bytes:
    """Write the line.

    Args:
        message: its payload and headers may hold anything.
        now_ns: nanoseconds since the epoch, from which the age is told.
        width: columns of the line; the preview gets what the rest leaves, and 16 at least.
        form: ``text``, ``hex``, ``none`` for no preview, or ``auto``: text where the payload is text, and hex
            elsewhere.

    Returns:
        The line with its newline, and nothing in it that would drive a terminal.
    """
    head = (
        f"{timestamp(message.time_ns)[_TIME]} {message.channel} {message.source}#{message.seq}"
        f" {_age(now_ns - message.time_ns)} {byte_size(len(message.payload))}"
    )
    headers = _headers(message)
    line = f"{head}{headers and f' [{headers}]'}"
    if form != "none":
        room = max(width - len(line) - 1, PREVIEW_CHARS_MIN)
        line = f"{line} {preview(message.payload, room, form)}"
    return line.encode() + b"\n"


def preview(payload: bytes, width: int, form: str) -> str:
    """Show the beginning of a payload in at most ``width`` columns; ``…`` says that there is more."""
    # No character has more than 4 bytes, so no more of the payload is looked at.
    part = payload[: 4 * width]
    if form != "hex":
        text = _text(part, is_whole=len(part) == len(payload))
        if text is not None:
            return clipped(one_line(text), width)
        if form == "text":
            return clipped(one_line(part.decode("utf-8", "backslashreplace")), width)
    return clipped(part.hex(" "), width)


def _text(part: bytes, *, is_whole: bool) -> str | None:
    """The text that bytes are; None when they are none. A cut may go through the last character."""
    for cut in range(1 if is_whole else 4):
        try:
            text = part[: len(part) - cut].decode()
        except UnicodeDecodeError:
            continue
        return text if "\0" not in text else None
    return None


def _age(age_ns: int) -> str:
    """How long ago it was published; clocks of two hosts may disagree, so it can be less than nothing."""
    for unit, length in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if abs(age_ns) >= length:
            return f"{age_ns / length:.1f}{unit}"
    return f"{age_ns}ns"


def _headers(message: MessageLike) -> str:
    try:
        headers = message.headers
    except TowpathError:
        return "headers that cannot be read"
    if headers == NO_HEADERS:
        return ""
    named = {
        "type": headers.content_type,
        "key": headers.key.decode("utf-8", "backslashreplace"),
        "priority": str(headers.priority) if headers.priority else "",
        "reply": headers.reply_to,
        "origin": headers.origin,
        "trace": headers.traceparent,
        **headers.user,
    }
    return one_line(" ".join(f"{name}={value}" for name, value in named.items() if value))
