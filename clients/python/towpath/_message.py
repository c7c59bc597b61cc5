"""``Message``: from the C extension where there is one, and from here otherwise (a purely remote client).
Both look the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath import model

if TYPE_CHECKING:
    from collections.abc import Callable


def _decode_headers(raw: bytes) -> model.Headers:
    from towpath.convert import decode_headers

    return decode_headers(raw)


class PurePythonMessage:
    """One received message; immutable, and bytes-like from Python 3.12 on (the extension's is so on any).

    Attributes:
        payload: the bytes that were published.
        seq: the message's number within its source, contiguous from 1.
        source: the writer's presence on the channel; (source, seq) is unique for ever.
        time_ns: publish time, nanoseconds since the epoch.
        channel: the channel's name.
        missed: how many of this source were lost just before it (overflow = drop); 0 normally.
        origin_source, origin_seq: who published it first, and its seq there, on a channel that the core
            orders; 0 and 0 elsewhere.
        headers_raw: serialized ``towpath.v1.Headers``; empty when there are none.
        headers: the same, decoded when first asked for.
    """

    __slots__ = (
        "_headers",
        "channel",
        "headers_raw",
        "missed",
        "origin_seq",
        "origin_source",
        "payload",
        "seq",
        "source",
        "time_ns",
    )

    payload: bytes
    seq: int
    source: int
    time_ns: int
    channel: str
    headers_raw: bytes
    missed: int
    origin_source: int
    origin_seq: int
    _headers: model.Headers | None

    def __init__(
        self,
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
    ) -> None:
        put: Callable[[object, str, object], None] = object.__setattr__
        put(self, "payload", payload)
        put(self, "seq", seq)
        put(self, "source", source)
        put(self, "time_ns", time_ns)
        put(self, "channel", channel)
        put(self, "headers_raw", headers_raw)
        put(self, "missed", missed)
        put(self, "origin_source", origin_source)
        put(self, "origin_seq", origin_seq)
        put(self, "_headers", None)

    @property
    def headers(self) -> model.Headers:
        if self._headers is None:
            object.__setattr__(self, "_headers", _decode_headers(self.headers_raw))
        assert self._headers is not None
        return self._headers

    def behind(self, nbytes: int, /) -> PurePythonMessage:
        """The same message without the first bytes of ``headers_raw``: what stands behind an envelope."""
        return PurePythonMessage(
            self.payload,
            seq=self.seq,
            source=self.source,
            time_ns=self.time_ns,
            channel=self.channel,
            headers_raw=self.headers_raw[nbytes:],
            missed=self.missed,
            origin_source=self.origin_source,
            origin_seq=self.origin_seq,
        )

    def __buffer__(self, flags: int, /) -> memoryview:
        return memoryview(self.payload)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a message is immutable: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a message is immutable: {name}")

    def _key(self) -> tuple[object, ...]:
        return (
            (self.source, self.seq, self.payload, self.time_ns, self.channel, self.headers_raw),
            (self.missed, self.origin_source, self.origin_seq),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PurePythonMessage):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        lost = f" after {self.missed} lost" if self.missed else ""
        what = f"{self.channel} #{self.seq} of source {self.source}{lost}"
        return f"<Message {what}, {len(self.payload)} bytes>"


if TYPE_CHECKING:
    from towpath._ring import Message as Message
else:
    try:
        from towpath._ring import Message, set_headers_decoder
    except ImportError:
        Message = PurePythonMessage
    else:
        set_headers_decoder(_decode_headers, model.NO_HEADERS)
