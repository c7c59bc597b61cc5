"""Codecs: how a value becomes bytes, and bytes a value.

A codec is anything with the two methods of :class:`Codec`. Three come with the library: ``BYTES``, ``JSON``,
and, for any type that msgspec knows (a ``msgspec.Struct``, a dataclass, ``list[int]``), ``codec_of(TYPE)``,
which writes JSON and checks what it reads (extra ``msgspec``).

Invariants
    What cannot be encoded or decoded is an ``InvalidArgument`` that says why; nothing else is raised.
"""

from __future__ import annotations

from typing import Any, Final, Generic, Protocol, TypeVar, cast

from towpath.errors import InvalidArgument, NotSupported

T = TypeVar("T")


class Codec(Protocol[T]):
    """How values of one type become bytes."""

    def encode(self, value: T, /) -> bytes:
        """Return the value as bytes. Raises InvalidArgument: it cannot be."""

    def decode(self, payload: bytes, /) -> T:
        """Return the value that the bytes are. Raises InvalidArgument: they are none."""


class _Bytes:
    def encode(self, value: bytes, /) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise InvalidArgument(f"a {type(value).__name__} is not bytes", hint="state a codec")
        return bytes(value)

    def decode(self, payload: bytes, /) -> bytes:
        return payload


class _Json:
    """``json`` is imported where it is needed: every ``towpath pub`` would wait for it."""

    def encode(self, value: Any, /) -> bytes:
        import json

        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"the value cannot be written as JSON: {error}", hint="") from None

    def decode(self, payload: bytes, /) -> Any:
        import json

        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the value is no JSON: {error}", hint="is this its codec?") from None


class _Msgspec(Generic[T]):
    def __init__(self, kind: type[T]) -> None:
        try:
            import msgspec
        except ImportError:
            raise NotSupported(
                "a codec for a type needs msgspec", hint="pip install 'towpath[msgspec]'"
            ) from None
        self._problems = (msgspec.MsgspecError, TypeError, ValueError, RecursionError)
        try:
            self._decoder = msgspec.json.Decoder(kind)
        except TypeError as error:
            raise InvalidArgument(f"msgspec does not know the type: {error}", hint="") from None
        self._encoder = msgspec.json.Encoder()

    def encode(self, value: T, /) -> bytes:
        try:
            payload = self._encoder.encode(value)
            self._decoder.decode(payload)  # what nobody could read again is not written
        except self._problems as error:
            raise InvalidArgument(f"the value is not of its type: {error}", hint="") from None
        return payload

    def decode(self, payload: bytes, /) -> T:
        try:
            return self._decoder.decode(payload)
        except self._problems as error:
            raise InvalidArgument(
                f"the value is not of its type: {error}", hint="is this its codec?"
            ) from None


BYTES: Final[Codec[bytes]] = _Bytes()
JSON: Final[Codec[Any]] = _Json()


def codec_of(what: Codec[T] | type[T]) -> Codec[T]:
    """Return a codec: the one that is given, or the one for a type.

    Raises:
        NotSupported: msgspec is not installed. InvalidArgument: it does not know the type.
    """
    if not isinstance(what, type) and hasattr(what, "encode") and hasattr(what, "decode"):
        return what
    if what is bytes:
        return cast("Codec[T]", BYTES)
    return _Msgspec(cast("type[T]", what))
