"""A lock that owns its data: what one grant of it brings, and what is written back. Sans-I/O.

Theory of operation
    After Rust's ``Mutex<T>``: one gets at the value only by a guard. The value comes with the grant, as
    bytes; it is decoded when it is first looked at. When an exclusive guard is released, what the value has
    become is encoded, and written before the release if that is other than it was: so a value that is
    changed in place (a list that was appended to) is written, too. The daemon writes it on behalf of the
    grant: one that has been superseded, however little its holder knows of that, writes nothing.

    Writing and releasing are two requests, of which only the first is waited for. If the connection breaks
    the first is asked again on the next; that writes the same on behalf of the same grant, and does no harm.

    A holder that dies inside leaves the lock *poisoned*. The next one has the value that was last written
    (``committed``), and does not get at ``value`` before it has said ``recover()``.

Invariants
    A block that is left by an exception writes nothing, and does not poison: the value is as it was last
    written.

Not here: waiting (``guarded_blocking``, ``guarded_aio``), the rules (``towpath_broker.core.locks.guarded``).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

from towpath.calls import Call
from towpath.codecs import BYTES, Codec, codec_of
from towpath.errors import Poisoned, TowpathError, VersionConflict
from towpath.locks import model, requests
from towpath.locks.guards import GrantBase
from towpath.locks.holds import Hold
from towpath.locks.model import Mode
from towpath.locks.pending import Pending
from towpath.locks.requests import Standing, Wanted, make
from towpath.names import check_name
from towpath.v1 import locks_pb2

T = TypeVar("T")

_NOTHING: Final = object()
NOT_STATED: Final = object()


class Terms(NamedTuple, Generic[T]):
    """What is agreed about a guarded value.

    Attributes:
        initial: the value as long as none was written, encoded; None: it is None then.
        is_durable: whether a write waits until it is on disk.
    """

    name: str
    codec: Codec[T]
    initial: bytes | None
    is_durable: bool

    def acquiring(self, owner: int, timeout: float | None, mode: Mode) -> partial[Call[Standing]]:
        """The request to make, of a session's id and a number.

        Raises:
            InvalidArgument: it cannot be asked.
        """
        wanted = [Wanted(self.name, mode)]
        call = requests.acquire(owner, wanted, timeout_s=timeout, is_guarded=True)
        return partial(requests.addressed, call)


def terms(name: str, codec: Codec[T] | type[T], initial: T | object, *, is_durable: bool) -> Terms[T]:
    """Agree about a guarded value.

    Args:
        initial: ``NOT_STATED``: empty bytes, or None for any other codec.

    Raises:
        InvalidName. InvalidArgument, NotSupported: of the codec.
    """
    check_name(name, "a lock's name")
    made = codec_of(codec)
    if initial is NOT_STATED:
        return Terms(name, made, b"" if made is BYTES else None, is_durable)
    return Terms(name, made, made.encode(cast("T", initial)), is_durable)


def write(session: int, number: int, *, value: bytes, is_durable: bool, is_recovered: bool) -> Call[Standing]:
    """Write the value on behalf of a grant; over when it is answered."""
    request = make(
        locks_pb2.WriteGuardedRequest,
        session=session,
        request=number,
        value=value,
        is_durable=is_durable,
        is_recovered=is_recovered,
    )
    return Call(
        "write_guarded_request",
        request,
        "write_guarded_response",
        lambda _: Standing(True),
        is_last=lambda standing: standing.is_over,
    )


def recovered(session: int, number: int) -> Call[Standing]:
    """Give back a lock to which no value was ever written, and say that it is in order."""
    request = locks_pb2.ReleaseRequest(session=session, request=number, is_recovered=True)
    return Call(
        "release_request",
        request,
        "release_response",
        lambda _: Standing(True),
        is_last=lambda standing: standing.is_over,
    )


class Valued(GrantBase, Generic[T]):
    """A guard that brings its lock's value."""

    def __init__(self, terms: Terms[T], hold: Hold) -> None:
        super().__init__(hold)
        self._terms = terms
        self._told = hold.grants[0].value or model.Value(b"", False, 0, False)
        self._payload = self._told.payload if self._told.is_set else terms.initial
        self._value: T | Any = _NOTHING
        self._is_poisoned = self._told.is_poisoned

    @property
    def is_set(self) -> bool:
        """Whether a value was ever written; else it is the initial one."""
        return self._told.is_set

    @property
    def is_poisoned(self) -> bool:
        """Whether a holder ended in the middle, and nobody has said ``recover`` since."""
        return self._is_poisoned

    @property
    def written_by(self) -> int:
        """The token of the grant by which the value was written; 0: none was."""
        return self._told.written_by

    @property
    def committed(self) -> T:
        """The value as it was last written, whether or not the lock is poisoned. Each time another object.

        Raises:
            InvalidArgument: the codec does not understand it.
        """
        if self._payload is None:
            return cast("T", None)
        return self._terms.codec.decode(self._payload)

    @property
    def value(self) -> T:
        """The value. With ``write()`` it may be assigned, or changed in place.

        Raises:
            Poisoned: a holder ended in the middle: say ``recover()`` first, or look at ``committed``.
            InvalidArgument: the codec does not understand it.
            NotHeld, LockRevoked, SessionLost: the guard is not valid any more.
        """
        self._check_usable()
        if self._value is _NOTHING:
            self._value = self.committed
        value: T = self._value
        return value

    def _check_usable(self) -> None:
        self.check()
        if self._is_poisoned:
            raise Poisoned(
                f"a holder of {self.name!r} ended inside, after the last value was written",
                hint="look at guard.committed; in write(), say guard.recover() to go on from there",
            )


class WriteGuardBase(Valued[T]):
    """An exclusive guard: what becomes of the value is written when it is released."""

    def __init__(self, terms: Terms[T], hold: Hold) -> None:
        super().__init__(terms, hold)
        self._is_released = False

    @property
    def value(self) -> T:
        """As :attr:`Valued.value`."""
        return super().value

    @value.setter
    def value(self, value: T) -> None:
        self._check_usable()
        self._value = value

    def recover(self) -> T:
        """Say that the value is in order as it was last written, or will be when it is written next: the lock
        is not poisoned any more once this guard has been released. Returns the value."""
        self._is_poisoned = False
        return self.value

    def abandon(self) -> None:
        """Give the lock back, and write nothing. Does not wait. Errors as for
        :meth:`towpath.Guard.release`."""
        self._is_released = True
        self._hold.session.release(self._hold)

    def _changed(self) -> bytes | None:
        """What is to be written now; None: nothing is.

        Raises:
            InvalidArgument: the codec cannot encode it.
            NotHeld, LockRevoked, SessionLost.
        """
        self.check()
        if self._value is _NOTHING or (self._value is None and self._payload is None):
            return self._payload if self._is_recovered else None
        payload = self._terms.codec.encode(self._value)
        return payload if self._is_recovered or payload != self._payload else None

    @property
    def _is_recovered(self) -> bool:
        return self._told.is_poisoned and not self._is_poisoned

    def _writing(self, payload: bytes) -> partial[Call[Standing]]:
        """The request that writes it, of a session's id and a number."""
        return partial(
            write, value=payload, is_durable=self._terms.is_durable, is_recovered=not self._is_poisoned
        )

    def _written(self, payload: bytes, pending: Pending) -> None:
        """It was answered.

        Raises:
            TowpathError: it was not written.
        """
        if isinstance(pending.outcome, TowpathError):
            raise pending.outcome
        self._payload = payload
        self._told = model.Value(payload, True, self.token, False)

    def _recovered(self, pending: Pending) -> None:
        """It was answered, and the lock is given back.

        Raises:
            TowpathError: it was lost.
        """
        self._is_released = True
        if isinstance(pending.outcome, TowpathError):
            raise pending.outcome
        self._hold.session.let_go(self._hold)


def check_written_by(guard: Valued[T], written_by: int) -> None:
    """Do nothing if the value is still the one that was written by a grant.

    Raises:
        VersionConflict: it is not.
    """
    if guard.written_by != written_by:
        raise VersionConflict(
            f"the value of {guard.name!r} was written by token {guard.written_by}, not {written_by}"
        )
