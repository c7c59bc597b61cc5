"""Towpath's errors: one table, from which gRPC status, errno, exit code and default hint are read.

Theory of operation
    Every outcome that a caller can expect is a :class:`TowpathError` with a :class:`Code`. A code has one
    row in ``TABLE``; its number is the one in ``protos/towpath/v1/error.proto`` and is never reused. Whatever
    carries an error (a frame, a gRPC trailer, an exit status) is derived from that row, so one failure
    looks the same from everywhere.

Invariants
    Each code of the protobuf enum has exactly one row, and each row a class (a test holds the two together).
    Unless its docstring says otherwise, an error means that nothing was changed.

Not here: bugs and host failures. They are ordinary exceptions and end the process.
"""

from __future__ import annotations

import contextlib
import errno as _errno
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, Self


class Code(IntEnum):
    """Stable error numbers; the same as ``towpath.v1.ErrorCode``."""

    INVALID_ARGUMENT = 10
    INVALID_NAME = 11
    MESSAGE_TOO_LARGE = 12
    NOT_SUPPORTED = 13
    INVALID_CONFIGURATION = 14
    CHANNEL_NOT_FOUND = 20
    BINDING_NOT_FOUND = 21
    CHANNEL_CONFLICT = 22
    CHANNEL_IN_USE = 23
    CHANNEL_UNDECLARED = 24
    BINDING_CONFLICT = 25
    SOURCE_NOT_FOUND = 26
    SUBSCRIPTION_NOT_FOUND = 27
    VERSION_CONFLICT = 28
    DELIVERY_LOST = 29
    PERMISSION_DENIED = 30
    UNAUTHENTICATED = 31
    QUOTA_EXCEEDED = 32
    LIMIT_EXCEEDED = 33
    QUEUE_FULL = 34
    STORE_FULL = 35
    SUBSCRIPTION_IN_USE = 36
    TIMEOUT = 40
    CANCELLED = 41
    UNAVAILABLE = 42
    CONNECTION_LOST = 43
    SLOW_CONSUMER = 44
    NO_SERVER = 45
    SERVER_LOST = 46
    PROTOCOL_VIOLATION = 50
    VERSION_MISMATCH = 51
    BAD_DESCRIPTOR = 52
    CORRUPT_RING = 53
    BINDING_FAILED = 60
    FRAME_TOO_LARGE = 61
    BAD_FRAME = 62
    SERVICE_FAILED = 63
    LOCK_HELD = 70
    NOT_HELD = 71
    FENCED = 72
    DEADLOCK = 73
    LOCK_ORDER = 74
    SESSION_LOST = 75
    POISONED = 76
    LOCK_CONFLICT = 77
    WAIT_REFUSED = 78
    WOUNDED = 79
    CLAIM_EXCEEDED = 80
    LOCK_REVOKED = 81
    BARRIER_BROKEN = 82
    LOCK_IN_USE = 83
    INTERNAL = 90
    STORE_DAMAGED = 91


class Family(IntEnum):
    """Whose fault an error is: it decides what is closed."""

    MISUSE = 1  # the caller's; only this call fails
    VIOLATION = 2  # a peer broke the protocol; only that peer is closed
    REFUSAL = 3  # a limit, a permission or the state of things; only this call fails
    HOST = 4  # a bug or the host's failure; the process ends


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the error table.

    Attributes:
        family: whose fault it is.
        grpc: name of the gRPC status code.
        errno: the nearest errno(3) value.
        exit_code: what the CLI exits with (sysexits(3) where it has a word; 2 for misuse; 124 for time
            out, as timeout(1)).
        retryable: whether the same call may succeed later without a change.
        hint: what to do, when the raiser has nothing better to say.
    """

    family: Family
    grpc: str
    errno: int
    exit_code: int
    retryable: bool
    hint: str


TABLE: Final[dict[Code, Row]] = {
    Code.INVALID_ARGUMENT: Row(Family.MISUSE, "INVALID_ARGUMENT", _errno.EINVAL, 2, False, ""),
    Code.INVALID_NAME: Row(
        Family.MISUSE,
        "INVALID_ARGUMENT",
        _errno.EINVAL,
        2,
        False,
        "names are 1 to 255 characters: levels of A-Z a-z 0-9 _ - joined by dots, as in plant.line1.temp",
    ),
    Code.MESSAGE_TOO_LARGE: Row(
        Family.MISUSE,
        "INVALID_ARGUMENT",
        _errno.EMSGSIZE,
        2,
        False,
        "a message may take a quarter of the ring: declare the channel with a larger ring_bytes",
    ),
    Code.NOT_SUPPORTED: Row(Family.MISUSE, "UNIMPLEMENTED", _errno.EOPNOTSUPP, 2, False, ""),
    Code.INVALID_CONFIGURATION: Row(
        Family.MISUSE, "FAILED_PRECONDITION", _errno.EINVAL, 78, False, "try: towpath serve --check-config"
    ),
    Code.CHANNEL_NOT_FOUND: Row(
        Family.REFUSAL, "NOT_FOUND", _errno.ENOENT, 66, False, "declare it first: towpath declare NAME"
    ),
    Code.BINDING_NOT_FOUND: Row(
        Family.REFUSAL, "NOT_FOUND", _errno.ENOENT, 66, False, "towpath status lists the bindings"
    ),
    Code.CHANNEL_CONFLICT: Row(
        Family.REFUSAL,
        "ALREADY_EXISTS",
        _errno.EEXIST,
        73,
        False,
        "use it as it is, or undeclare it first",
    ),
    Code.CHANNEL_IN_USE: Row(
        Family.REFUSAL,
        "FAILED_PRECONDITION",
        _errno.EBUSY,
        73,
        True,
        "wait until nobody uses it, or force it: subscribers and publishers are told",
    ),
    Code.CHANNEL_UNDECLARED: Row(
        Family.REFUSAL, "NOT_FOUND", _errno.EIDRM, 66, False, "somebody removed the channel while it was used"
    ),
    Code.BINDING_CONFLICT: Row(
        Family.REFUSAL,
        "ALREADY_EXISTS",
        _errno.EEXIST,
        73,
        False,
        "unbind the other one first: towpath unbind",
    ),
    Code.SOURCE_NOT_FOUND: Row(Family.MISUSE, "NOT_FOUND", _errno.ENOENT, 66, False, ""),
    Code.SUBSCRIPTION_NOT_FOUND: Row(Family.MISUSE, "NOT_FOUND", _errno.ENOENT, 66, False, ""),
    Code.VERSION_CONFLICT: Row(
        Family.REFUSAL,
        "ABORTED",
        _errno.ESTALE,
        75,
        True,
        "get the value again, and set it from what it is now",
    ),
    Code.DELIVERY_LOST: Row(
        Family.REFUSAL,
        "ABORTED",
        _errno.ESTALE,
        75,
        False,
        "settle sooner, extend the deadline, or declare the queue with a larger ack_ms",
    ),
    Code.PERMISSION_DENIED: Row(Family.REFUSAL, "PERMISSION_DENIED", _errno.EACCES, 77, False, ""),
    Code.UNAUTHENTICATED: Row(Family.REFUSAL, "UNAUTHENTICATED", _errno.EACCES, 77, False, ""),
    Code.QUOTA_EXCEEDED: Row(
        Family.REFUSAL,
        "RESOURCE_EXHAUSTED",
        _errno.EDQUOT,
        75,
        True,
        "close what is not needed, or raise the limit under [limits]",
    ),
    Code.LIMIT_EXCEEDED: Row(
        Family.REFUSAL, "RESOURCE_EXHAUSTED", _errno.ENOSPC, 75, True, "the limit's name is in the message"
    ),
    Code.QUEUE_FULL: Row(
        Family.REFUSAL,
        "RESOURCE_EXHAUSTED",
        _errno.EAGAIN,
        75,
        True,
        "wait until consumers have settled some, or declare the queue with a larger capacity",
    ),
    Code.STORE_FULL: Row(
        Family.REFUSAL,
        "RESOURCE_EXHAUSTED",
        _errno.ENOSPC,
        75,
        True,
        "make room on the disk of the state directory",
    ),
    Code.SUBSCRIPTION_IN_USE: Row(
        Family.REFUSAL,
        "FAILED_PRECONDITION",
        _errno.EBUSY,
        73,
        True,
        "end the other one, or take its place: take_over=True, --take-over",
    ),
    Code.TIMEOUT: Row(Family.REFUSAL, "DEADLINE_EXCEEDED", _errno.ETIMEDOUT, 124, True, ""),
    Code.CANCELLED: Row(Family.REFUSAL, "CANCELLED", _errno.ECANCELED, 130, True, ""),
    Code.UNAVAILABLE: Row(
        Family.REFUSAL,
        "UNAVAILABLE",
        _errno.ECONNREFUSED,
        69,
        True,
        "is the daemon running? start it with: towpath serve",
    ),
    Code.CONNECTION_LOST: Row(Family.REFUSAL, "UNAVAILABLE", _errno.ECONNRESET, 69, True, ""),
    Code.SLOW_CONSUMER: Row(
        Family.REFUSAL, "RESOURCE_EXHAUSTED", _errno.ENOBUFS, 75, True, "read faster, or in larger batches"
    ),
    Code.NO_SERVER: Row(
        Family.REFUSAL, "UNAVAILABLE", _errno.EHOSTDOWN, 69, True, "start one: towpath answer NAME -- CMD"
    ),
    Code.SERVER_LOST: Row(
        Family.REFUSAL,
        "UNAVAILABLE",
        _errno.ECONNRESET,
        69,
        True,
        "it may or may not have been carried out; calls that are idempotent are tried again by themselves",
    ),
    Code.PROTOCOL_VIOLATION: Row(Family.VIOLATION, "INTERNAL", _errno.EPROTO, 76, False, ""),
    Code.VERSION_MISMATCH: Row(
        Family.VIOLATION,
        "FAILED_PRECONDITION",
        _errno.EPROTONOSUPPORT,
        76,
        False,
        "client and daemon are too far apart: upgrade the older",
    ),
    Code.BAD_DESCRIPTOR: Row(Family.VIOLATION, "INVALID_ARGUMENT", _errno.EBADF, 76, False, ""),
    Code.CORRUPT_RING: Row(
        Family.VIOLATION, "DATA_LOSS", _errno.EBADMSG, 76, False, "the publisher broke its ring; others go on"
    ),
    Code.BINDING_FAILED: Row(
        Family.REFUSAL,
        "FAILED_PRECONDITION",
        _errno.EIO,
        74,
        False,
        "towpath status shows the binding's last error",
    ),
    Code.FRAME_TOO_LARGE: Row(
        Family.REFUSAL,
        "INVALID_ARGUMENT",
        _errno.EMSGSIZE,
        65,
        False,
        "raise frame_bytes_max, or check the framing",
    ),
    Code.BAD_FRAME: Row(Family.REFUSAL, "INVALID_ARGUMENT", _errno.EBADMSG, 65, False, "check the framing"),
    Code.SERVICE_FAILED: Row(Family.REFUSAL, "FAILED_PRECONDITION", _errno.EREMOTEIO, 74, False, ""),
    Code.LOCK_HELD: Row(Family.REFUSAL, "ABORTED", _errno.EAGAIN, 75, True, "wait for it, with a timeout"),
    Code.NOT_HELD: Row(Family.MISUSE, "FAILED_PRECONDITION", _errno.EPERM, 2, False, ""),
    Code.FENCED: Row(
        Family.REFUSAL,
        "ABORTED",
        _errno.ESTALE,
        75,
        False,
        "the lock was lost meanwhile, and others may have it: acquire it again and begin anew",
    ),
    Code.DEADLOCK: Row(
        Family.REFUSAL, "ABORTED", _errno.EDEADLK, 75, True, "release what is held and begin anew"
    ),
    Code.LOCK_ORDER: Row(
        Family.MISUSE,
        "FAILED_PRECONDITION",
        _errno.EDEADLK,
        2,
        False,
        "acquire locks by rising rank, or all of them at once",
    ),
    Code.SESSION_LOST: Row(
        Family.REFUSAL,
        "ABORTED",
        _errno.EOWNERDEAD,
        75,
        False,
        "open a session and begin anew: all that it held is released",
    ),
    Code.POISONED: Row(
        Family.REFUSAL,
        "FAILED_PRECONDITION",
        _errno.EOWNERDEAD,
        75,
        False,
        "see that the value is in order, and say that it is recovered",
    ),
    Code.LOCK_CONFLICT: Row(
        Family.REFUSAL, "ALREADY_EXISTS", _errno.EEXIST, 73, False, "use it as it is, or another name"
    ),
    Code.WAIT_REFUSED: Row(
        Family.REFUSAL,
        "ABORTED",
        _errno.EDEADLK,
        75,
        True,
        "release what is held and begin anew, in the same session",
    ),
    Code.WOUNDED: Row(
        Family.REFUSAL,
        "ABORTED",
        _errno.EDEADLK,
        75,
        True,
        "release all that is held in this lock space and begin anew",
    ),
    Code.CLAIM_EXCEEDED: Row(
        Family.MISUSE,
        "FAILED_PRECONDITION",
        _errno.EINVAL,
        2,
        False,
        "declare the most that will ever be needed before acquiring",
    ),
    Code.LOCK_REVOKED: Row(Family.REFUSAL, "ABORTED", _errno.EOWNERDEAD, 75, False, ""),
    Code.BARRIER_BROKEN: Row(Family.REFUSAL, "ABORTED", _errno.EPIPE, 75, True, "arrive again, all of you"),
    Code.LOCK_IN_USE: Row(
        Family.REFUSAL,
        "FAILED_PRECONDITION",
        _errno.EBUSY,
        73,
        True,
        "wait until nobody holds, or waits for, a lock there",
    ),
    Code.INTERNAL: Row(
        Family.HOST, "INTERNAL", _errno.EIO, 70, False, "this is a bug in Towpath: please report it"
    ),
    Code.STORE_DAMAGED: Row(
        Family.HOST, "DATA_LOSS", _errno.EUCLEAN, 74, False, "see what is left: towpath store check"
    ),
}


class TowpathError(Exception):
    """An expected outcome that is not success.

    Attributes:
        code: which row of the table.
        message: one sentence, naming the thing.
        hint: what to do about it; the table's when none was given.
        retryable: whether the same call may succeed later without a change.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool | None = None) -> None:
        row = TABLE[self.code]
        self.message = message
        self.hint = row.hint if hint is None else hint
        self.retryable = row.retryable if retryable is None else retryable
        super().__init__(message)

    @property
    def row(self) -> Row:
        """The table's line for this error."""
        return TABLE[self.code]

    def again(self) -> Self:
        """The same error, to be raised once more: without the frames that the first raising led through,
        which would keep alive what they hold.
        """
        return type(self)(self.message, hint=self.hint, retryable=self.retryable)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (error_from_code, (int(self.code), self.message, self.hint, self.retryable))


class InvalidArgument(TowpathError, ValueError):
    """An argument has a value that it cannot have."""

    code = Code.INVALID_ARGUMENT


class InvalidName(TowpathError, ValueError):
    """A channel's name, or a pattern, is not well formed."""

    code = Code.INVALID_NAME


class MessageTooLarge(TowpathError, ValueError):
    """A message is larger than a quarter of the ring; nothing of it was written."""

    code = Code.MESSAGE_TOO_LARGE


class NotSupported(TowpathError):
    """What was asked for is not built, or not on this carrier."""

    code = Code.NOT_SUPPORTED


class InvalidConfiguration(TowpathError):
    """The configuration cannot be used; says where."""

    code = Code.INVALID_CONFIGURATION


class ChannelNotFound(TowpathError, LookupError):
    """No channel has this name."""

    code = Code.CHANNEL_NOT_FOUND


class BindingNotFound(TowpathError, LookupError):
    """No such binding."""

    code = Code.BINDING_NOT_FOUND


class ChannelConflict(TowpathError):
    """The channel is declared with other options."""

    code = Code.CHANNEL_CONFLICT


class ChannelInUse(TowpathError):
    """The channel cannot be undeclared while it is used, or holds messages."""

    code = Code.CHANNEL_IN_USE


class ChannelUndeclared(TowpathError):
    """The channel was undeclared while this publisher or subscriber used it."""

    code = Code.CHANNEL_UNDECLARED


class BindingConflict(TowpathError):
    """Another binding has this place already, with other options."""

    code = Code.BINDING_CONFLICT


class SourceNotFound(TowpathError, LookupError):
    """The session has no such source."""

    code = Code.SOURCE_NOT_FOUND


class SubscriptionNotFound(TowpathError, LookupError):
    """The session has no such reader."""

    code = Code.SUBSCRIPTION_NOT_FOUND


class VersionConflict(TowpathError):
    """The value has another version than the one stated; nothing was changed."""

    code = Code.VERSION_CONFLICT


class DeliveryLost(TowpathError):
    """A delivery is no longer this consumer's: its deadline passed, and others may have the message."""

    code = Code.DELIVERY_LOST


class PermissionDenied(TowpathError, PermissionError):
    """The principal may not do this."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(TowpathError):
    """The peer did not say, or could not prove, who it is."""

    code = Code.UNAUTHENTICATED


class QuotaExceeded(TowpathError):
    """The principal has as many of something as it may have."""

    code = Code.QUOTA_EXCEEDED


class LimitExceeded(TowpathError):
    """A bound that holds for everyone was reached."""

    code = Code.LIMIT_EXCEEDED


class QueueFull(TowpathError):
    """The queue has as many messages, or bytes, as it may have, and its overflow is to refuse."""

    code = Code.QUEUE_FULL


class StoreFull(TowpathError):
    """There is no room on the disk, or the store has reached its bound; nothing of the call was kept."""

    code = Code.STORE_FULL


class SubscriptionInUse(TowpathError):
    """Another subscription goes by this name, or has taken this one's place."""

    code = Code.SUBSCRIPTION_IN_USE


class Timeout(TowpathError, TimeoutError):
    """The time given was not enough."""

    code = Code.TIMEOUT


class Cancelled(TowpathError):
    """The call was cancelled."""

    code = Code.CANCELLED


class Unavailable(TowpathError, ConnectionError):
    """The daemon cannot be reached."""

    code = Code.UNAVAILABLE


class ConnectionLost(TowpathError, ConnectionError):
    """The connection broke before the answer came: the call may or may not have been carried out."""

    code = Code.CONNECTION_LOST


class SlowConsumer(TowpathError):
    """The peer did not read what was sent to it, and was cut off."""

    code = Code.SLOW_CONSUMER


class NoServer(TowpathError):
    """Nobody serves the service."""

    code = Code.NO_SERVER


class ServerLost(TowpathError, ConnectionError):
    """The server that worked on the call is gone: it may or may not have been carried out."""

    code = Code.SERVER_LOST


class ProtocolViolation(TowpathError):
    """A peer sent what the protocol does not allow; its connection is closed."""

    code = Code.PROTOCOL_VIOLATION


class VersionMismatch(TowpathError):
    """Client and daemon have no protocol version in common."""

    code = Code.VERSION_MISMATCH


class BadDescriptor(TowpathError):
    """A descriptor is not what it should be: wrong seals, size, mode or header."""

    code = Code.BAD_DESCRIPTOR


class CorruptRing(TowpathError):
    """A publisher's ring holds what no honest writer writes; that source is dropped."""

    code = Code.CORRUPT_RING


class BindingFailed(TowpathError):
    """The mechanism behind a binding refused."""

    code = Code.BINDING_FAILED


class FrameTooLarge(TowpathError):
    """A frame in a byte stream is longer than the limit; it was skipped and counted."""

    code = Code.FRAME_TOO_LARGE


class BadFrame(TowpathError):
    """A byte stream does not follow its framing."""

    code = Code.BAD_FRAME


class ServiceFailed(TowpathError):
    """The server answered the call with an error of its own."""

    code = Code.SERVICE_FAILED


class LockHeld(TowpathError):
    """Others have the lock, or wait for it, and the request was not to wait."""

    code = Code.LOCK_HELD
    blocker: Any = None
    """The :class:`towpath.locks.model.Grant` that is in the way, where one is."""


class NotHeld(TowpathError):
    """The request holds no lock, or not in the mode that is needed."""

    code = Code.NOT_HELD


class Fenced(TowpathError):
    """The token is not that of a grant that counts now; nothing was changed."""

    code = Code.FENCED


class Deadlock(TowpathError):
    """Waiting would have closed a cycle, and this request is the one that was given up."""

    code = Code.DEADLOCK
    cycle: tuple[Any, ...] = ()
    """The whole of it: a :class:`towpath.locks.model.DeadlockMember` each, first the one that is told."""


class LockOrder(TowpathError):
    """In this lock space locks are taken by rising rank, and a later one is held already."""

    code = Code.LOCK_ORDER
    blocker: Any = None
    """The :class:`towpath.locks.model.Grant` that is in the way, where one is."""


class SessionLost(TowpathError):
    """The lock session is gone, and with it all that it held."""

    code = Code.SESSION_LOST


class Poisoned(TowpathError):
    """A holder ended without releasing the lock, and nobody has said since that its value is in order."""

    code = Code.POISONED


class LockConflict(TowpathError):
    """The lock, or barrier, is of another kind or size."""

    code = Code.LOCK_CONFLICT


class WaitRefused(TowpathError):
    """In this lock space only an older owner may wait, and an older one has the lock."""

    code = Code.WAIT_REFUSED
    blocker: Any = None
    """The :class:`towpath.locks.model.Grant` that is in the way, where one is."""


class Wounded(TowpathError):
    """In this lock space an older owner wants what this one holds."""

    code = Code.WOUNDED


class ClaimExceeded(TowpathError):
    """The owner asks for more of a resource than it claimed."""

    code = Code.CLAIM_EXCEEDED


class LockRevoked(TowpathError):
    """An operator took the lock away."""

    code = Code.LOCK_REVOKED


class BarrierBroken(TowpathError):
    """One that had arrived at the barrier left before it opened."""

    code = Code.BARRIER_BROKEN


class LockInUse(TowpathError):
    """The lock space cannot be changed while its locks are used."""

    code = Code.LOCK_IN_USE


class InternalError(TowpathError):
    """A bug in Towpath, told by the other side."""

    code = Code.INTERNAL


class StoreDamaged(TowpathError):
    """The store holds what was never written to it."""

    code = Code.STORE_DAMAGED


def _all_subclasses(cls: type[TowpathError]) -> list[type[TowpathError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _all_subclasses(child))]


CLASSES: Final[dict[Code, type[TowpathError]]] = {
    cls.code: cls for cls in _all_subclasses(TowpathError) if cls is not TowpathError
}


def error_from_code(
    code: int, message: str, hint: str | None = None, retryable: bool | None = None
) -> TowpathError:
    """Make the error that a number stands for.

    Args:
        code: a number of ``towpath.v1.ErrorCode``; one that this version does not know becomes
            :class:`InternalError`.
        message: one sentence.
        hint: None for the table's.
        retryable: None for the table's.

    Returns:
        An instance of the class of that code, not raised.
    """
    try:
        cls = CLASSES[Code(code)]
    except ValueError:
        return InternalError(f"{message} [unknown error code {code}]", hint=hint, retryable=retryable)
    return cls(message, hint=hint, retryable=retryable)


_LIMITS: Final = {
    _errno.EMFILE: "this process is at its limit of open files: close what is not needed, or raise ulimit -n",
    _errno.ENFILE: "the host is at its limit of open files: fs.file-max",
    _errno.ENOMEM: "the host's memory, or the process's share of it, is used up",
    _errno.ENOSPC: "the host's memory for shared files is used up",
}


@contextlib.contextmanager
def host_limits(what: str) -> Iterator[None]:
    """Tell what the host refused as a documented error.

    Raises:
        LimitExceeded: there are as many descriptors, or is as much memory in use, as there may be.
    """
    try:
        yield
    except MemoryError:
        raise LimitExceeded(f"there is no memory for {what}", hint="the host's memory is used up") from None
    except OSError as error:
        if error.errno not in _LIMITS:
            raise
        raise LimitExceeded(f"{what}: {error.strerror}", hint=_LIMITS[error.errno]) from None
