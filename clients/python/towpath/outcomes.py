"""What a call comes to, where that is not an answer: one wording for both clients and every carrier."""

from __future__ import annotations

from typing import TypeVar

from towpath.calls import RECORD_BYTES
from towpath.errors import (
    ConnectionLost,
    InvalidArgument,
    MessageTooLarge,
    Timeout,
    TowpathError,
    Unavailable,
)

T = TypeVar("T")


def no_answer() -> Timeout:
    """A call was sent, and not answered in time."""
    return Timeout(
        "the daemon did not answer in time",
        hint="it is busy or stopped: its log may tell; the call may still be carried out",
    )


def outcome(answer: T | TowpathError | None) -> T:
    """What a call was answered.

    Args:
        answer: None: nothing came in time.

    Raises:
        Timeout: nothing came in time.
        TowpathError: what was answered, where that is an error.
    """
    if answer is None:
        raise no_answer()
    if isinstance(answer, TowpathError):
        raise answer
    return answer


def silent(*, is_connected: bool, last: TowpathError | None = None) -> Unavailable:
    """There is no session, and the time to wait for one is over; ``last`` is why the one before has ended."""
    if last is not None and not isinstance(last, ConnectionLost):
        return Unavailable(f"there is no connection to the daemon: {last.message}", hint=last.hint)
    if is_connected:
        return Unavailable(
            "the daemon has taken the connection, and does not answer",
            hint="it is stopped, busy, or starting: look at its log",
        )
    return Unavailable("the connection to the daemon was lost, and nobody listens any more")


def not_connected() -> ConnectionLost:
    """What is said at once, and not waited for, while there is no connection."""
    return ConnectionLost(
        "there is no connection to the daemon at the moment", hint="it is made again by itself"
    )


def daemon_left() -> ConnectionLost:
    """The daemon closed a connection without a word."""
    return ConnectionLost(
        "the daemon closed the connection",
        hint="it ended or restarts: clients connect again by themselves, and its log says why",
    )


def forked() -> ConnectionLost:
    """The client is used in a child of the process that it belongs to."""
    return ConnectionLost(
        "this client belongs to the process that forked", hint="connect again in the child: towpath.connect()"
    )


def ring_full(channel: str) -> Timeout:
    """What a publisher gets that waited in vain."""
    return Timeout(
        f"a subscriber of {channel} does not read, and its ring is full",
        hint="towpath status shows the channel's subscribers",
    )


def partly(error: Timeout, done: int, count: int) -> Timeout:
    """The same for a batch: says how much of it was published."""
    return Timeout(f"{error.message}; {done} of {count} were published", hint=error.hint)


def not_stored(channel: str) -> Timeout:
    return Timeout(f"what was published on {channel} is not known to be on disk yet")


def no_place(channel: str) -> InvalidArgument:
    return InvalidArgument(
        f"this subscription to {channel!r} has no place to be saved", hint="subscribe(..., place=NAME)"
    )


def too_large(size: int, maximum: int, ring_bytes: int, told: str = "") -> MessageTooLarge:
    """A message of ``size`` bytes cannot be published.

    Args:
        maximum: the bound that it exceeds.
        ring_bytes: the channel's; a larger one helps only where it makes the bound.
        told: more for people.
    """
    error = MessageTooLarge(f"a message of {size} bytes; at most {maximum} are allowed{told}")
    if maximum < ring_bytes // 4 - RECORD_BYTES:
        error.hint = (
            "no ring_bytes makes this larger: keep large things elsewhere, and publish where they are"
        )
    return error
