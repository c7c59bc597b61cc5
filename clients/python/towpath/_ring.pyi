"""Towpath's shared-memory ring (clients/c/towpath_ring.h) for Python.

A ``Writer`` owns a ring, a ``Reader`` owns a control page; each side maps the other's memory read-only,
from descriptors that a third party (the core) carries between them. The header says how it works and why it
is safe.

All objects may be used from several threads. A sleep (``wait_room``, ``receive``) releases the GIL; a
second thread that would sleep in the same object gets ``RuntimeError``; ``notify`` and ``close`` from
another thread end the sleep.

Every method raises ``ValueError`` after ``close()``, and ``RuntimeError`` in a forked child: handles belong
to the process that made them. ``TypeError`` and ``ValueError`` for arguments of the wrong type or range;
``OSError`` where a system call fails (too many descriptors, out of memory, a descriptor that is not open).
Except where said, state is unchanged by an error. Identities (``source``, ``reader``) and generations are 0
to 2**64 - 1.

Not here: who may map what, how long to wait for a slow reader (the core), headers' meaning
(``towpath.convert``).
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeVar, final, overload

from typing_extensions import Buffer

from towpath.model import Headers

Start = Literal["tail", "start", "history"] | bool
"""Where a reader begins in a ring: with what is published from now on; at position 0, for a source that is
new; or at the writer's ``history``-th last message, as far as the ring still holds it. True and False stand
for "start" and "tail"."""

READ_TO: int
"""Given to ``Writer.wait_room`` and ``arm_room`` instead of the bytes of a message."""

class RingError(Exception):
    """A descriptor, what lies in it, or its place breaks the rules of the ring; the message says which."""

class MessageTooLarge(ValueError):
    """Headers and payload together exceed ``message_bytes_max``; nothing was published."""

@final
class Message:
    """One received message; immutable, hashable, equal by value, and bytes-like: ``socket.send(message)`` and
    ``file.writelines(messages)`` take its payload.

    ``headers`` is decoded when first asked for, by what ``set_headers_decoder`` was given (before:
    ``RuntimeError``).
    """

    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def payload(self) -> bytes:
        """What was published. Of a loaned message, from a ``Reader`` that holds (``held_max``): a read-only
        memoryview of the publisher's memory, which stays as it is for as long as it, or anything made of it,
        is there. (Typed as ``bytes``, which it can do most of; ``bytes(payload)`` copies it.)
        """

    @property
    def seq(self) -> int: ...
    @property
    def source(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def channel(self) -> str: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def headers_raw(self) -> bytes: ...
    @property
    def missed(self) -> int:
        """How many messages of this source were lost just before this one (overflow = drop); 0 normally."""

    @property
    def origin_source(self) -> int:
        """Who published it first, on a channel that the core orders; 0 elsewhere."""

    @property
    def origin_seq(self) -> int:
        """Its seq there; 0 elsewhere."""

    def behind(self, nbytes: int, /) -> Message:
        """The same message without the first bytes of ``headers_raw``: what stands behind an envelope."""

    def __new__(
        cls,
        payload: bytes,
        *,
        seq: int,
        source: int,
        time_ns: int,
        channel: str,
        headers_raw: bytes = b"",
        missed: int = 0,
        origin_source: int = 0,
        origin_seq: int = 0,
    ) -> Message: ...

class LoansOut(ValueError):
    """All of the slab is loaned out, or (overflow = drop) held by readers: waiting for them cannot help."""

@final
class Loan:
    """A piece of a writer's slab: a writable buffer (``memoryview``, ``numpy.frombuffer``), page-aligned.
    What it holds at first is an earlier message of this writer, or zeros.

    Published or released it has no bytes any more: ``BufferError``. It cannot be either while somebody has a
    buffer of it. One that is collected is released. A view of it must not be touched in a forked child.
    """

    publisher: Any
    """Whose ``publish_loan`` its ``publish`` is. AttributeError: it was loaned without."""

    def publish(
        self,
        *,
        headers: Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> Any:
        """Publish it, and return its seq, where ``publisher`` is a QuickPublisher of this ring and nothing
        stands against it. All else goes to ``publisher.publish_loan`` of these arguments.

        Raises:
            ValueError: it has no publisher.
        """

    @property
    def nbytes(self) -> int: ...
    @property
    def is_out(self) -> bool:
        """Whether it was neither published nor released."""

    def release(self) -> None:
        """Give it back unpublished; what was written to it is zeroed. More than once is fine.

        Raises:
            BufferError: somebody has a buffer of it.
        """

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: int, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> memoryview: ...
    @overload
    def __setitem__(self, key: int, value: int, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer, /) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

T = TypeVar("T")

@final
class Writer:
    """The one writer of a ring.

    Readers are told apart by generation: when the core bumps this channel's cell, publishing answers -1
    until the caller has attached the new readers and called ``install``.
    """

    def __new__(
        cls,
        source: int,
        ring_bytes: int,
        *,
        overflow: Literal["block", "drop"] = "block",
        history: int = 0,
        slab_bytes: int = 0,
    ) -> Writer:
        """Make a ring.

        Args:
            source: the identity that readers will see.
            ring_bytes: bytes of data, a power of two from 4096 to 2**30. Only touched pages are paid for.
            overflow: when the ring is full, wait for the slowest reader; or overwrite the oldest messages,
                of which readers learn exactly how many they missed.
            history: how many messages a late reader may ask for, 0 to 65536.
            slab_bytes: how much can be loaned at a time: a multiple of 4096 up to 2**32, or 0. Only touched
                pages are paid for.
        """

    @classmethod
    def recover(cls, fd: int, /) -> Writer:
        """Go on writing a ring whose process has died: seq, history and readers' messages as they were.

        Attach its readers again, and install, before publishing; until then nothing is overwritten that the
        dead writer had not given up. Only one process may do this, and only when the old one is dead.

        Args:
            fd: descriptor from ``keep``; stays the caller's, may be closed afterwards.

        Raises:
            RingError: the descriptor is not such a one; the ring was closed, or holds no run of records.
        """

    def keep(self) -> int:
        """Give a new descriptor of the ring that is open for writing too, for ``recover`` by who goes on when
        this process has died. Only for somebody who is trusted like this process; the caller owns it."""

    def last_origin(self) -> tuple[int, int] | None:
        """Origin (source, seq) of the newest message; None when it has none. After ``recover``, before
        publishing anything: tell it to ``Reader.pass_over``."""

    @property
    def source(self) -> int: ...
    @property
    def capacity(self) -> int:
        """Bytes of data the ring holds (``ring_bytes``)."""

    @property
    def message_bytes_max(self) -> int:
        """The most bytes that headers and payload may have together: a quarter of the ring less 32."""

    @property
    def overflow(self) -> Literal["block", "drop"]: ...
    @property
    def history(self) -> int: ...
    @property
    def tail(self) -> int:
        """Bytes ever published, record headers and padding included."""

    @property
    def last_seq(self) -> int:
        """seq of the newest message; 0 before the first."""

    @property
    def generation(self) -> int:
        """The generation installed; -1 when there is none (no table yet, or a new one)."""

    @property
    def readers_changed(self) -> bool:
        """True when a batch was published while a new reader was coming, until ``install``.

        Such a reader gets the message, but if it waits by doorbell (``Reader.arm``) it is rung only when
        attached: so do that now rather than at the next publish. Sleeping ``receive`` calls have been woken
        in any case.
        """

    def share(self) -> int:
        """Give a new O_RDONLY descriptor of the ring; the caller owns it."""

    def set_generation_table(self, fd: int, index: int) -> None:
        """Watch cell ``index`` of the core's table. May be called again with another table.

        Publishing answers -1 from now on, until ``install``. Without a table it never does.

        Args:
            fd: descriptor from ``GenerationTable.share``; stays the caller's, may be closed afterwards.
            index: the channel's cell.

        Raises:
            RingError: the descriptor is not such a table, or has no such cell.
        """

    def attach(self, reader: int, control_fd: int, slot: int, doorbell_fd: int, start: Start) -> None:
        """From now on, wait for this reader (overflow = block) and wake it. A reader attached before is
        replaced.

        Args:
            reader: its identity; must be the one in its control page.
            control_fd: descriptor from ``Reader.share``; stays the caller's, may be closed afterwards.
            slot: where in the page its cursor for this source is.
            doorbell_fd: a UNIX socket to ring when it waits by doorbell, or -1; duplicated, stays the
                caller's.
            start: where it begins; what ``Reader.add`` was or will be told.

        Raises:
            RingError: a descriptor is not what it must be; the slot is outside the page; "start" although
                the start of the ring is overwritten (overflow = block); 4096 readers are attached.
        """

    def detach(self, reader: int, /) -> bool:
        """Wait for this reader no more; False when it was not attached. Ends or refreshes a sleeping
        ``wait_room``.

        The reader may be alive, even stopped in the middle of a copy: it never takes a torn message for a
        whole one. Reading on it finds itself overrun, and lists the source in ``Reader.take_detached``
        (overflow = drop: it is lapped, like any other).
        """

    def part(self, reader: int, /) -> bool:
        """The same of one that was too slow, but lives: loaned messages that it holds stay as they are, until
        it lets go of them, or is detached."""

    def readers(self) -> list[int]:
        """The readers attached, violators included; in no particular order."""

    def violators(self) -> list[int]:
        """Attached readers whose cursor was impossible: they are neither waited for nor woken. Detach
        them."""

    def load(self, reader: int, /) -> int:
        """How busy a reader says it is (``Reader.set_load``): 0 or more; -1 while it does not read yet: what
        is published now may lie before the place where it begins; -2 when it has left, or is not attached.
        O(readers)."""

    def slowest_reader(self) -> int | None:
        """The reader furthest behind; None when none is attached that counts. O(readers)."""

    def stalled_reader(self, stall_ns: int, /) -> int | None:
        """The reader that has held the ring full for ``stall_ns`` without moving its cursor; or None.

        Time counts from the first ``wait_room`` or ``arm_room`` that found no room because of that reader,
        and by at most a second between two looks (these two, or this), so that a publisher which was itself
        stopped blames nobody. A long ``wait_room`` looks often enough by itself. O(readers).
        """

    def drained(self) -> bool:
        """Whether every attached reader that counts has taken everything published. O(readers)."""

    def install(self, generation: int, /) -> None:
        """All readers of this generation are attached."""

    def try_publish(self, payload: Buffer, headers: bytes | None = None) -> int:
        """Publish one message, without waiting.

        Args:
            payload: any contiguous bytes-like object; copied.
            headers: serialized headers, or None.

        Returns:
            Its seq (above 0); 0 when the ring is full; -1 when the generation changed. In the last two
            cases nothing was published: ``wait_room``, or attach and ``install``, then call again.

        Raises:
            MessageTooLarge: nothing was published.
        """

    def try_publish_from(
        self, payload: Buffer, headers: bytes | None, origin_source: int, origin_seq: int
    ) -> int:
        """``try_publish`` on behalf of somebody else: the message says who published it first.

        Args:
            origin_source: above 0. origin_seq: its number there.
        """

    def try_publish_many(
        self,
        payloads: Sequence[Buffer],
        start: int = 0,
        headers: Sequence[bytes | None] | bytes | None = None,
    ) -> int:
        """Publish ``payloads[start:]`` as far as there is room, in batches of at most 256 messages and an
        eighth of the ring.

        Args:
            payloads: bytes-like objects.
            start: index of the first to publish, 0 to ``len(payloads)``.
            headers: for all of them, or one for each (same indices as ``payloads``).

        Returns:
            How many were published; their seqs end at ``last_seq``. 0 when the ring is full (or ``start``
            is at the end); -1 when the generation changed and none was published.

        Raises:
            MessageTooLarge, TypeError, ValueError: about ``payloads[start]``; nothing was published. A bad
            message further
                on ends the call before it, and raises when it comes first.
        """

    def try_loan(self, nbytes: int, publisher: object = ...) -> Loan | int:
        """Give a piece of the slab to fill.

        Args:
            nbytes: 0 to ``slab_bytes``, and less than 2**32.
            publisher: the loan's.

        Returns:
            The loan; 0 when what was published is in the way, unread or held; -1 when the generation changed.
            With overflow = drop the oldest unheld messages are given up for it instead.

        Raises:
            LoansOut: waiting for readers cannot help. At most 1024 are out or published at a time.
            MessageTooLarge: it is larger than the slab.
            RingError: the writer has no slab.
        """

    def try_publish_loan(self, loan: Loan, headers: bytes | None = None) -> int:
        """Publish what was loaned. Returns as ``try_publish``; unless it was published, the loan stays as it
        is.

        Raises:
            BufferError: it was published or released, or somebody has a buffer of it.
            ValueError: it is another writer's.
            MessageTooLarge: the headers are.
        """

    def wait_loan(self, nbytes: int, timeout_ns: int) -> int:
        """Wait until ``nbytes`` can be loaned. Returns and raises as ``wait_room`` and ``try_loan``."""

    def arm_loan(self, nbytes: int, /) -> bool:
        """Have the doorbells that readers were given rung when something is released: as ``arm_room``. A
        reader that this writer was parted from does not ring."""

    def disarm_loan(self) -> None:
        """No doorbell for that wanted any more. A ``wait_loan`` disarms too."""

    @property
    def slab_bytes(self) -> int: ...
    def wait_room(self, nbytes: int, timeout_ns: int) -> int:
        """Wait until a message of ``nbytes`` (headers and payload) fits. A sleep ends only when an eighth
        of the ring more than that is free, or all of it.

        Args:
            nbytes: at most ``message_bytes_max``; or ``READ_TO`` and a position (of ``tail``), to wait until
                all that is before it was read by every reader that counts.
            timeout_ns: 0 does not wait, less than 0 waits for ever.

        Returns:
            1 when it fits; 0 after the timeout, ``notify()`` or ``close()``; -1 when the generation changed.

        Raises:
            MessageTooLarge: it can never fit.
            RuntimeError: another thread is waiting in this writer.
        """

    def arm_room(self, nbytes: int, /) -> bool:
        """Have the doorbells that readers were given for this source (``Reader.add``) rung when a message of
        ``nbytes`` may fit: before an event loop waits. Without spinning.

        Each reader rings once, when its cursor passes what is needed; after a ring, publish, or arm again.
        News of readers (generations) do not ring: they come from the core.

        Returns:
            False when it is armed; True when there is room, or the generation changed (then it is not armed).

        Raises:
            MessageTooLarge: it can never fit.
            RuntimeError: another thread is waiting in this writer.
        """

    def disarm_room(self) -> None:
        """No doorbell for room wanted any more. A ``wait_room`` disarms too."""

    def notify(self) -> None:
        """Make a ``wait_room`` of another thread return 0; when there is none, the next one that would
        sleep."""

    def close(self) -> None:
        """Mark the ring closed, wake its readers, release everything. Idempotent.

        Readers drain it and then list it in ``take_drained``. An object collected without ``close()`` does
        the same.
        """

class QuickPublisher:
    """A base of publishers: publishes single messages, and loans, without a line of Python, where it can."""

    def _set_writer(self, writer: Writer, loan_bytes_max: int = 0, /) -> None:
        """Publish here from now on, and loan so much at most; until then all goes to ``_publish`` and
        ``_loan``.
        """

    def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan:
        """Have a piece of the slab, after a short wait if need be. With a timeout, and where it is not to be
        had just like that, it is for ``_loan`` of these arguments.
        """

    def publish(
        self,
        data: Buffer,
        *,
        headers: Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Put ``bytes`` alone into the ring, then call ``_meet_readers()`` if there are new ones. Anything
        else, and whatever the ring does not just take, goes to ``_publish`` of these arguments.
        """

class QuickSubscription:
    """A base of subscriptions: receives single messages without a line of Python, where it can."""

    def _set_reader(self, reader: Reader, buffer: deque[Message], /) -> None:
        """Receive from here from now on, after what is in the buffer; until then all goes to ``_receive``."""

    def _take_one(self) -> Message | None:
        """The same without waiting, and without asking Python: None where there is none, or, if the reader is
        plain no more, where there is more to look for.
        """

    def receive(self, timeout: float | None = None) -> Message:
        """Return the next message of the buffer, or of the reader while that is plain; what does not fit in
        one, up to RECEIVE_COUNT and RECEIVE_BYTES, goes into the buffer. Waits without a timeout only. All
        else goes to ``_receive`` of these arguments.
        """

@final
class Reader:
    """The reader of one subscription, of any number of rings."""

    def __new__(cls, reader: int, slots: int = 255, *, held_max: int = 0) -> Reader:
        """Make a control page.

        Args:
            reader: the subscription's identity.
            slots: sources it can read at a time, 1 to 4096.
            held_max: how many loaned messages it may hold at a time, 0 to 65536: their payloads are views of
                the publisher's memory, others copies.
        """

    is_plain: bool
    """For ``QuickSubscription``: nothing but messages has come since this was set. ``add``, ``remove``,
    ``finish``, ``revive`` and ``notify`` set it to False, and so does whatever a visit finds; False at
    first."""

    @property
    def held(self) -> int:
        """How many loaned messages somebody looks at now."""

    @property
    def loans_copied(self) -> int:
        """Loaned messages that were copied because ``held_max`` were held."""

    @classmethod
    def recover(cls, fd: int, /) -> Reader:
        """Go on with the control page of a reader whose process has died. ``add`` its sources again, each at
        its slot, with "cursor". Only one process may do this, and only when the old one is dead.

        Args:
            fd: descriptor from ``keep``; stays the caller's, may be closed afterwards.

        Raises:
            RingError: the descriptor is not such a one.
        """

    def keep(self) -> int:
        """Give a new descriptor of the control page that is open for writing too, for ``recover``; see
        ``Writer.keep``."""

    @property
    def reader(self) -> int: ...
    @property
    def lost(self) -> int:
        """The sum of ``missed`` over all messages given so far: how many were lost to overflow = drop."""

    @property
    def pending_bytes(self) -> int:
        """Bytes published and not received yet, over all sources, record headers included. O(sources)."""

    def set_load(self, load: int, /) -> None:
        """Tell the writers how busy this reader is, for those that choose between readers: 0 to 2**64 - 1."""

    def share(self) -> int:
        """Give a new O_RDONLY descriptor of the control page; the caller owns it."""

    def add(
        self,
        ring_fd: int,
        slot: int,
        source: int,
        channel: str,
        start: Start | Literal["cursor"],
        doorbell_fd: int = -1,
        announced: int | None = None,
    ) -> None:
        """Read this ring too; a sleeping ``receive`` takes it up.

        Only after the core has bumped the channel's generation for this reader: then nothing published
        later is missed.

        Args:
            ring_fd: descriptor from ``Writer.share``; stays the caller's, may be closed afterwards.
            slot: the slot of this control page that the core assigned.
            source: the ring's source; must be the one in its header.
            channel: given to each message.
            start: where to begin. "history" of a ring that keeps none is "tail". "cursor", after
                ``recover``: where this slot's cursor is.
            doorbell_fd: a UNIX socket to ring when its writer waits for room by doorbell
                (``Writer.arm_room``), or -1; duplicated, stays the caller's.
            announced: what the core found as the ring's tail when it had announced this reader: "tail"
                begins there, unless that cannot be or is overwritten. None: it begins at the tail as it is
                now.

        Raises:
            RingError: a descriptor is not what it must be; the slot is outside the page or taken; the source
                is being read already; "start" although the start of the ring is overwritten (overflow =
                block; with drop, the messages missed are counted instead); "cursor" although the slot has
                none of this source.
        """

    def pass_over(self, source: int, seq: int) -> bool:
        """``pump`` is to pass over this source's messages up to ``seq``: a pump that died had published them.
        Kept in the control page while the source has its slot. False when no slot is this source's."""

    def exclude(self, origin_source: int, /) -> None:
        """Pass over messages that this source published first (``Message.origin_source``).

        Raises:
            ValueError: 1024 are passed over already.
        """

    def set_doorbell(self, source: int, doorbell_fd: int) -> None:
        """Ring this from now on when the source's writer waits for room by doorbell (see ``add``); at once,
        if it waits now. A source that is not known is ignored.

        Args:
            doorbell_fd: a UNIX socket, duplicated; -1 for none.

        Raises:
            RingError: it is no UNIX socket; the one before stays.
        """

    def finish(self, source: int, /) -> None:
        """The source's writer is gone: read on to its tail as it is now, then list it in ``take_drained``.
        What a writer that was ended publishes after this is not received. Unknown sources are ignored.

        A writer that closed its ring has the same effect by itself.
        """

    def revive(self, source: int, /) -> bool:
        """Undo ``finish``: its writer is there. False when it is not known, or was read to its end
        already."""

    def expect(self, source: int, seq: int) -> None:
        """The source was read before, and let go of too early, when ``seq`` came next: what it published from
        there to where it is read now counts as missed. Ignored when it is not known, or not so far."""

    def remove(self, source: int, /) -> None:
        """Let go of a source, read to its end or not; its slot may be assigned again. Unknown sources are
        ignored."""

    def sources(self) -> list[int]:
        """The sources being read; drained, violated and detached ones until they are removed."""

    def take_drained(self) -> list[int]:
        """Sources whose writer is gone and which were received to the end; each is listed once. ``remove``
        them."""

    def take_detached(self) -> list[int]:
        """Sources whose writer waits for this reader no more (it stalled) and has overwritten what it had
        not read; each is listed once. Nothing more is read from them: ``remove`` them."""

    def take_violations(self) -> list[tuple[int, str]]:
        """Sources whose ring breaks the rules, and which rule; each is listed once. Nothing more is read
        from them."""

    def receive(self, count_max: int, bytes_max: int, timeout_ns: int) -> list[Message]:
        """Give the next messages, from all sources in turn, each source's in order.

        Args:
            count_max: the most messages, from 1; above 1024 counts as 1024. bytes_max: the most bytes of
            headers and payloads, from 1; one message is given even if it exceeds this; of a loaned message
            that is held a 512th of its payload counts. timeout_ns: 0 does not wait, less than 0 waits for
            ever. A wait begins with a short adaptive spin, GIL released.

        Returns:
            The messages. Empty after the timeout, after ``notify()`` or ``close()``, and when
            ``take_drained``, ``take_detached`` or ``take_violations`` has something new.

        Raises:
            RuntimeError: another thread is waiting in this reader.
        """

    def hand_on(self, taker: object, /) -> None:
        """Hand messages to C code, in a thread of its own; waits for them as ``receive`` does.

        Returns when the taker left a message, or has something to be looked after; after ``notify()``; and
        when ``take_drained``, ``take_detached`` or ``take_violations`` has something new.

        Args:
            taker: a capsule as in ``_ring_taker.h``.

        Raises:
            RuntimeError: another thread is waiting in this reader.
            ValueError: the reader was closed.
        """

    def notify(self) -> None:
        """Make a waiting ``receive`` or ``hand_on`` of another thread return; when there is none, the next
        one that would wait."""

    def arm(self) -> bool:
        """Have the doorbell rung, once, at the next message: before an event loop waits. Without spinning.

        Returns:
            False when it is armed; True when there is something to receive or to take already (then it is
            not armed).

        Raises:
            RuntimeError: another thread is waiting in this reader.
        """

    def disarm(self) -> None:
        """No doorbell wanted any more. A waiting ``receive`` disarms too."""

    def close(self) -> None:
        """Let go of all sources and release everything. Idempotent."""

@final
class Value:
    """What a state channel held at one moment; immutable, hashable, equal by value."""

    @property
    def payload(self) -> bytes:
        """What was set; empty when there is nothing."""

    @property
    def version(self) -> int:
        """Grows by one with each set and each delete; 0: nothing was ever set."""

    @property
    def is_set(self) -> bool:
        """False: nothing was ever set, or it was deleted."""

    @property
    def changed_at_ns(self) -> int:
        """When it was set or deleted, nanoseconds since the epoch."""

    @property
    def headers_raw(self) -> bytes: ...
    @property
    def headers(self) -> Headers: ...
    def __new__(
        cls,
        payload: bytes,
        *,
        version: int,
        changed_at_ns: int,
        headers_raw: bytes = b"",
        is_set: bool = True,
    ) -> Value: ...

@final
class ValueWriter:
    """The one writer of a value page (clients/c/towpath_value.h)."""

    def __new__(cls, value_bytes_max: int) -> ValueWriter:
        """Make a page for values of at most so many bytes, headers included, 1 to 2**28. It shows version
        0.
        """

    def share(self) -> int:
        """Give a new O_RDONLY descriptor of the page; the caller owns it."""

    def write(self, version: int, changed_at_ns: int, headers_raw: bytes, payload: bytes | None, /) -> None:
        """Show a value; None: there is none. Nobody is waited for. What does not fit is shown as being
        elsewhere.
        """

    def withdraw(self) -> None:
        """Show that the value is elsewhere: everybody asks from now on."""

    def close(self) -> None:
        """Release the page; those who mapped it keep it. Idempotent."""

@final
class ValueReader:
    """A reader of a value page. Reading makes no system call, waits for nobody, and never gives a torn
    value.
    """

    def __new__(cls, fd: int) -> ValueReader:
        """Map a page.

        Args:
            fd: descriptor from ``ValueWriter.share``; stays the caller's, may be closed afterwards.

        Raises:
            RingError: it is not such a page.
        """

    def get(self) -> Value | Literal[False] | None:
        """The value; None when there is none; False when the core must be asked: it is larger than the page
        takes, or the page changes faster than it can be copied."""

    def look(self) -> Value | Literal[False]:
        """The same, but a ``Value`` that is not set when there is none."""

    def close(self) -> None:
        """Let go of the page. Idempotent."""

@final
class GenerationTable:
    """The core's side of generations: one cell per channel, all 0 at first."""

    def __new__(cls, cells: int) -> GenerationTable:
        """Make a table of 1 to 65536 cells."""

    def share(self) -> int:
        """Give a new O_RDONLY descriptor of the table; the caller owns it."""

    def get(self, index: int, /) -> int:
        """The generation in a cell.

        Raises:
            IndexError: there is no such cell.
        """

    def bump(self, index: int, /) -> int:
        """Count a cell up by one and wake the writers that sleep on this channel; gives the new generation.

        Raises:
            IndexError: there is no such cell.
        """

    def close(self) -> None:
        """Release the table; those who mapped it keep their mapping. Idempotent."""

def pump(reader: Reader, writer: Writer, count_max: int = 256, bytes_max: int = 1 << 20) -> int:
    """Move messages from a reader's sources, in turn, to a writer's ring, without waiting.

    They keep headers and time, and have the source and seq that they came from as their origin. Messages of a
    source are published before its cursor is moved past them, and those before any of the next source: so
    after a crash at most those of the newest message's origin are in both, and ``pump`` passes over them as
    long as that message is the newest. (Who publishes another one before that source is back says
    ``Reader.pass_over`` first.) A message too large for the writer's ring is its source's violation.

    Args:
        count_max: the most messages. bytes_max: about the most bytes of headers and payloads.

    Returns:
        How many were moved; 0 when there is nothing; and when none was moved because of it, -1 for a full
        ring of the writer, -2 for a generation that changed. What was not moved stays where it is.
    """

class Packed(NamedTuple):
    """A parcel that was made: a run of messages in one piece, as it is stored.

    The seq of its first message is not in it; that of the others is so much more.

    Attributes:
        message_count: how many messages. content_bytes: of their payloads and headers. headers_bytes: of
            their headers alone.
        first_time_ns, last_time_ns: the earliest and the latest time of a message.
        taken: by source, the seqs of the first and the last message taken from it; empty after ``pack``.
    """

    data: bytes
    message_count: int
    content_bytes: int
    headers_bytes: int
    first_time_ns: int
    last_time_ns: int
    taken: dict[int, tuple[int, int]]

def take(reader: Reader, count_max: int, bytes_max: int, message_bytes_max: int) -> Packed | None:
    """Copy messages out of a reader's sources, in turn, into a parcel, without waiting; their source and seq
    become their origin. The next ``take`` goes on behind them, but their writers see the cursors where they
    are until ``release``. What ``Reader.pass_over`` said is left out.

    Args:
        count_max: the most messages. bytes_max: about the most bytes of the parcel; one message is taken even
            if it exceeds this. message_bytes_max: a message with more headers and payload than this is its
            source's violation.

    Returns:
        The parcel; None when there is nothing.
    """

def release(reader: Reader, /) -> None:
    """What was taken is safe: move the cursors that the writers see past it."""

def unread_from(writer: Writer, /) -> int:
    """Where the attached reader stands that is furthest behind; the tail when there is none. O(readers)."""

def next_seq(reader: Reader, source: int) -> int:
    """The seq that a reader expects next of a source; 0: it is not known, or the source is not read."""

def seed(reader: Reader, slot: int, source: int, position: int) -> None:
    """Have a reader's page say that a source was read up to a position (of ``unread_from``), so that ``add``
    with "cursor" goes on there: for a source that another page had, which is gone.

    Raises:
        RingError: the slot is outside the page, or in use; the position cannot be one.
    """

def begin_at(writer: Writer, first_seq: int) -> None:
    """Have the seqs of a new ring begin with this instead of 1.

    Raises:
        ValueError: it is 0; or the ring is not new: something was published, or a reader attached.
    """

def show(writer: Writer, data: bytes, first_seq: int, at: int = 0) -> int:
    """Write a parcel's messages into a ring, with their own time and origin, without waiting.

    Args:
        first_seq: of its first message; the ring's next seq must be that of the first message written.
        at: what an earlier call returned for this parcel; 0 at first.

    Returns:
        How far it came; ``len(data)`` when all is written, less when the ring is full (never with overflow =
        drop) or the generation changed.

    Raises:
        RingError: that is no parcel, or it is damaged, or the seqs do not meet.
        MessageTooLarge: a message does not fit this ring; those before it are written.
    """

def pack(
    payloads: Sequence[bytes],
    headers: Sequence[bytes | None],
    time_ns: int,
    times_ns: Sequence[int] = ...,
    origins: Sequence[tuple[int, int]] = ...,
) -> Packed:
    """Make a parcel of messages in columns; each column but the first is empty or has an item per payload.

    Args:
        time_ns: of all messages, unless ``times_ns`` has one for each.
        origins: source and seq of each; source 0: none.
    """

def crc32c(data: Buffer, /) -> int:
    """CRC-32C (Castagnoli) of some bytes."""

@final
class Parcel:
    """A parcel that was checked whole, and how far its messages were handed out."""

    def __new__(
        cls, data: bytes, first_seq: int, channel: str = "", source: int = 0, missed: int = 0
    ) -> Parcel:
        """Check a parcel.

        Args:
            first_seq: of its first message, from 1. channel, source: given to each message. missed: given to
                the first that is handed out.

        Raises:
            RingError: that is no parcel, or it is damaged.
        """

    @property
    def first_seq(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def next_seq(self) -> int:
        """Of the message that ``receive`` gives next; ``end_seq`` after the last."""

    @property
    def offset(self) -> int:
        """Where in the parcel that message begins: what ``show`` takes as ``at``."""

    @property
    def end_seq(self) -> int:
        """What follows the seq of its last message."""

    def receive(self, count_max: int, bytes_max: int) -> list[Message]:
        """Give the next messages; bounds as of ``Reader.receive``. Empty at the end."""

    def skip_to(self, seq: int, /) -> None:
        """Leave out the messages before this one."""

    def unpack(self) -> tuple[list[bytes], list[bytes], list[int], list[tuple[int, int]]]:
        """Give all of it in columns: payloads, headers (empty: none), times, origins ((0, 0): none)."""

def set_headers_decoder(decoder: Callable[[bytes], Headers], empty: Headers, /) -> None:
    """Set what ``Message.headers`` calls with ``headers_raw`` (never empty), and what it gives when there
    are none."""

def check_ring(fd: int, /) -> tuple[int, int]:
    """Check a ring's descriptor (access mode, seals, size, header) without mapping it.

    Returns:
        (source, capacity in bytes).

    Raises:
        RingError: it must not be mapped; the message says why.
    """

def check_control(fd: int, /) -> tuple[int, int]:
    """Check a control page's descriptor in the same way.

    Returns:
        (reader, slots).

    Raises:
        RingError: it must not be mapped; the message says why.
    """

# ---- lock pages (clients/c/towpath_lock.h) ----

LOCK_OK: int
LOCK_HELD: int
LOCK_SHUT: int
LOCK_SPENT: int
LOCK_CLOSED: int
LOCK_LOST: int
LOCK_FULL: int
LOCK_OVER: int
LOCK_ASK: int
LOCK_MEMBERS: int
LOCK_SLOTS: int
LOCK_READERS: int
LOCK_CORE: int
LOCK_FIRST_MEMBER: int
LOCK_TOKENS: int

class LockPage:
    """A lock page: a new one, or (``fd``) one that was handed over, which is checked and mapped.

    Raises:
        RingError: the descriptor is not one of a lock page, open for writing.
        OSError: there is no memory, or no descriptor.
    """

    def __init__(self, fd: int = -1, identity: int = 0) -> None: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def identity(self) -> int: ...
    def close(self) -> None:
        """Nothing is taken in it any more; what waits in it may go on to."""

    def share(self) -> int:
        """Return a new descriptor, open for writing; the caller's."""

    def admit(self, member: int, session: int, owner: int, /) -> None:
        """The core's: give a member's number to an owner."""

    def dismiss(self, member: int, is_gone: bool, /) -> None:
        """The core's: a member counts no more; ``is_gone``: nor is there its process."""

    def member(self, member: int, /) -> tuple[int, int, int]:
        """Return a member's state (0 unused, 1 open, 2 closed), session and owner."""

    def open(self, slot: int, base: int, is_busy: bool, is_shared: bool = False, /) -> None:
        """The core's: give a lock out; its tokens are those after ``base``. ``is_busy``: the core has it
        still (``is_shared``: shared), until ``hand_over``."""

    def look(self, slot: int, /) -> tuple[bool, int, int, int, int]:
        """Return whether a lock is open, its owner, tokens used, base, and since when it is held (ns)."""

    def shut(self, slot: int, /) -> tuple[bool, int, int, int, int]:
        """The core's: take a lock back. Returns what it was, as ``look``."""

    def readers(self, slot: int, /) -> list[tuple[int, int, int]]:
        """Return who has a lock shared: member, its token's number in the range, since when (ns)."""

    def take_waiters(self, slot: int, /) -> list[tuple[int, int, int]]:
        """The core's, after ``shut``: who waits, in turn: member, request, and for how long yet (ms; -1)."""

    def hand_over(self, slot: int, /) -> bool:
        """The core's: give up what it has since ``open``. False: it has not."""

    def wake(self, member: int, /) -> None:
        """Have a member look again, if it waits."""

    def names(self, slot: int, member: int, /) -> bool:
        """Whether a lock's word, queue or readers name a member."""

    def held(self) -> list[tuple[int, bool]]:
        """Return the tokens of what this process's members have, and whether the core has taken it back."""

    def add(self, member: int, /) -> LockMember:
        """Make a member's number usable in this process."""

class LockMember:
    @property
    def number(self) -> int: ...
    @property
    def held(self) -> int:
        """How many locks it has in the page."""

    def use(self) -> None:
        """The calling thread is this member, from now on."""

class LockBase:
    """A lock that may be in a page. A subclass has ``_acquire_slow``, called with the arguments of
    ``acquire`` when it is not to be had in the page at once; ``_enter_slow(guard or None)``;
    ``_exit_slow``."""

    @property
    def page(self) -> LockPage | None: ...
    def acquire(self, *args: Any, **kwargs: Any) -> Any: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...
    def set_page(self, page: LockPage | None, slot: int, guard: type, context: object, /) -> None:
        """It is in a page from now on, or (None) is not; and the type of its guards, and what they have. The
        context's ``deny(token)`` is called when the core may think that this process holds by a token."""

    def try_page(self, is_shared: bool, /) -> tuple[int, Any]:
        """Take it in the page if it is free: LOCK_OK and a guard, or why not and None."""

    def wait_page(self, request: int, deadline_ns: int, /) -> tuple[int, Any]:
        """Wait for it in the page, until a time of CLOCK_MONOTONIC (2**64 - 1: for ever)."""

def lock_own_acquire(type: type[T], /) -> type[T]:
    """A decorator for subclasses of LockBase: the interpreter calls their ``acquire`` directly, which it does
    only with a type's very own methods."""

def lock_guard_type(base: type[T], /) -> type[T]:
    """Make the type of the guards of what was taken in a page, from a class that has the rest of them, and
    two slots (which stay empty). It has ``_release_slow``, called when it is not given back in the page, and
    ``page_result`` says why; and ``_exit_slow``.

    The type adds::

        page_lock, page_context: Any
        page_hold: Any
            What ``set_hold`` was given; None.
        page_result, page_slot, page_token: int
        def set_hold(self, hold: object) -> None
        def release(self) -> None
        def leave_page(self) -> bool
            It is not the page's affair any more. Returns whether it was.
        page_is_shared: bool
        def since_ns(self) -> int
        def look(self) -> tuple[bool, bool, bool]
            Whether it is in the page, whether it is held there, whether the core has taken it back.

    Raises:
        TypeError: the class is not like that.
    """

# ---- lock lanes: clients/c/towpath_lane.h

LANE_CELLS: int
LANE_ASKED_MAX: int

class LaneClient:
    """A client's end of a lock lane: one that was handed over, which is checked and mapped.

    Args:
        fd: stays the caller's.

    Raises:
        RingError: the descriptor is not one of a lane, open for writing.
        OSError: there is no memory, or no descriptor.
    """

    def __init__(self, fd: int) -> None: ...
    def ask(self, number: int, frames: int, asked: bytes, /) -> tuple[int, int] | bool:
        """Ask for a lock, and wait for the answer, asleep if it takes long; any number of threads at a time.

        Args:
            number: the request's.
            frames: how many frames were sent by the socket before.
            asked: an AcquireRequest without session and number.

        Returns:
            Token and time (ns since the epoch) of the grant. True: it is to be asked for by the socket with
            the same number, be it that the daemon said so, or nothing was heard. False: nothing was said,
            since the daemon does not look here just now, or the request is too long.
        """

    def give_back(self, number: int, frames: int, /) -> bool:
        """Give back what a request has; False: it must be said by the socket (again, perhaps)."""

    def close(self) -> None:
        """Nobody looks there any more; who waits is told True."""

class LaneCore:
    """The core's end of a new one.

    Raises:
        OSError: there is no memory, or no descriptor.
    """

    def __init__(self) -> None: ...
    def share(self) -> int:
        """Return a descriptor for the client, open for writing; the caller's. Once.

        Raises:
            ValueError: it was shared already.
        """

    def take(self, frames: int, /) -> tuple[int, int, bytes | None] | None:
        """Take what was said next, by who had sent so many frames before, at most: its position, the number
        of its request, and what is asked; None there: it is given back. None: there is nothing.

        Raises:
            RingError: no client says that.
        """

    def granted(self, position: int, token: int, since_ns: int, /) -> None:
        """Answer what was asked there; each is answered once."""

    def elsewhere(self, position: int, /) -> None:
        """Answer that it is to be asked for by the socket."""

    @property
    def has_news(self) -> bool:
        """Whether something was said since it was looked for."""

    def attend(self) -> None:
        """From now on the core looks there by itself."""

    def rest(self) -> bool:
        """It is about to sleep; True: it must not, something was said just now."""

def lanes_look(lanes: tuple[LaneCore, ...], epoll: int, span_ns: int, /) -> int:
    """Look into up to 64 lanes, for a time. Returns 1: something was said in one; -1: the epoll has an event;
    0: neither."""
