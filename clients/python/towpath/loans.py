"""Loans: payloads that are made where their readers look at them.

Theory of operation
    ``publisher.loan(nbytes)`` gives a buffer to fill in place; ``loan.publish()`` publishes it, and it is the
    program's no more. With a ring of the publisher's own the buffer lies in its shared memory, and nothing is
    copied: subscribers get a read-only memoryview of that very memory (clients/c/towpath_ring_loan.h).
    Elsewhere (queues, from afar) it is ordinary memory and is copied when it is published: the same code
    works everywhere.

    A loan cannot be published or released while somebody has a buffer of it (a numpy array, a memoryview),
    who could go on writing to what others read: that is a ``BufferError``, and changes nothing. So a view of
    it is dead once it is published.

Not here: the shared memory (``towpath._ring``), waiting for it (``sync.messages``, ``aio.messages``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeGuard, TypeVar

from towpath import model
from towpath.errors import InvalidArgument, LimitExceeded, MessageTooLarge, Timeout

if TYPE_CHECKING:
    from typing import Self

    from towpath import _ring

    SharedLoan = _ring.Loan
else:
    try:
        from towpath._ring import Loan as SharedLoan
    except ImportError:

        class SharedLoan:
            """There is no shared memory here, and nothing of this kind."""

            __slots__ = ()


LOAN_BYTES: Final = 1 << 28
"""How much one publisher can have loaned, or published and still read by somebody, at a time. It is address
space until it is used: a publisher that does not loan has no memory for it.
"""

HELD_MAX: Final = 1024
"""How many loaned messages one subscription holds at a time; what comes beyond it is copied."""

HELD_LIMIT: Final = 1 << 16

PLACE_BYTES: Final = 16
"""What a loaned payload takes in the ring, beside its headers."""

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class Publishes(Protocol[P_co]):
    """A publisher, as its loans see it."""

    def publish_loan(
        self,
        loan: Any,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> P_co:
        """See :meth:`towpath.Publisher.publish_loan`."""


class Loan(Protocol[P_co]):
    """A buffer to fill and publish: ``loan[:5] = b"hello"``, ``memoryview(loan)``,
    ``numpy.frombuffer(loan, dtype)``. What it holds at first is not defined: zeros, or an earlier message of
    this publisher. As a context manager, or when it is collected, it is released unless it was published.
    """

    @property
    def nbytes(self) -> int:
        """How many bytes it has, published or not."""

    def publish(
        self,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> P_co:
        """Publish it; see :meth:`towpath.Publisher.publish_loan`."""

    def release(self) -> None:
        """Give it back unpublished; nobody will see what was written to it. More than once is fine.

        Raises:
            BufferError: somebody has a buffer of it.
        """

    def __len__(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class HeapLoan(bytearray, Generic[P]):
    """A loan where there is no ring to loan from: copied when it is published."""

    def __init__(self, nbytes: int, publisher: Publishes[P]) -> None:
        super().__init__(nbytes)
        self.publisher = publisher
        self.nbytes = nbytes
        self.is_out = True

    def check_publishable(self) -> None:
        """Raises BufferError: it was published or released, or somebody has a buffer of it."""
        if not self.is_out:
            raise BufferError("the loan was published, or given back")
        self.append(0)  # a bytearray that somebody has a buffer of cannot grow
        del self[-1:]

    def end(self) -> None:
        """It was published, or given back: it has no bytes any more."""
        self.is_out = False
        self.clear()

    def publish(
        self,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> P:
        """See :meth:`Loan.publish`."""
        return self.publisher.publish_loan(
            self, headers=headers, headers_raw=headers_raw, timeout=timeout, confirm=confirm
        )

    def release(self) -> None:
        """See :meth:`Loan.release`."""
        if self.is_out:
            self.check_publishable()
            self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def check_held_max(held_max: int) -> None:
    """Refuse a bound that no control page has.

    Raises:
        InvalidArgument: it is not from 0 to 65,536.
    """
    if not 0 <= held_max <= HELD_LIMIT:
        raise InvalidArgument(f"held_max cannot be {held_max}", hint=f"it is from 0 to {HELD_LIMIT}")


def check_size(nbytes: int, maximum: int) -> None:
    """Refuse a loan that could not be published.

    Raises:
        InvalidArgument, MessageTooLarge.
    """
    if nbytes < 0:
        raise InvalidArgument(f"a loan of {nbytes} bytes", hint="a loan has 0 bytes or more")
    if nbytes > maximum:
        raise too_large(nbytes, maximum)


def data_of(loan: object, publisher: object) -> HeapLoan[Any]:
    """A loan of ordinary memory, which this publisher may publish.

    Raises:
        BufferError: it was published or released, or somebody has a buffer of it.
        InvalidArgument: it is no loan of this publisher's.
    """
    if not isinstance(loan, HeapLoan) or loan.publisher is not publisher:
        raise not_ours()
    loan.check_publishable()
    return loan


@contextmanager
def lent(loan: Any, outer: Publishes[Any], inner: Publishes[Any]) -> Iterator[None]:
    """What was loaned through a publisher that wraps another is that other's meanwhile.

    Raises:
        InvalidArgument: it was not loaned there.
    """
    if not isinstance(loan, SharedLoan | HeapLoan) or loan.publisher is not outer:
        raise not_ours()
    loan.publisher = inner
    try:
        yield
    finally:
        loan.publisher = outer


def not_ours() -> InvalidArgument:
    """What is given to ``publish_loan`` and is nothing of this publisher's."""
    return InvalidArgument("that is no loan of this publisher", hint="publish what its own loan() gave")


def is_loan(data: object) -> TypeGuard[Loan[Any]]:
    """Whether that is something loaned, and not any bytes-like object."""
    return isinstance(data, SharedLoan | HeapLoan)


def heap_loan(nbytes: int, publisher: Publishes[P], message_bytes_max: int) -> HeapLoan[P]:
    """A loan of ordinary memory.

    Raises:
        InvalidArgument, MessageTooLarge: there can be no such message.
    """
    check_size(nbytes, message_bytes_max)
    return HeapLoan(nbytes, publisher)


def too_large(nbytes: int, maximum: int) -> MessageTooLarge:
    """What a program gets that wants to loan more than can be published."""
    return MessageTooLarge(f"a loan of {nbytes} bytes; at most {maximum} are allowed")


def in_use(channel: str) -> LimitExceeded:
    """What a publisher gets that waiting for subscribers would not help."""
    return LimitExceeded(
        f"of {channel} nothing can be loaned: all of the {LOAN_BYTES >> 20} MiB, or too many pieces, are out",
        hint="publish or release loans; where overflow is drop, subscribers must let go of messages",
    )


def waited(channel: str) -> Timeout:
    """What a publisher gets that waited for a loan in vain."""
    return Timeout(
        f"subscribers of {channel} have not read, or still hold, what was published",
        hint="a subscriber that keeps messages keeps their memory: copy with bytes(message.payload), let go",
    )
