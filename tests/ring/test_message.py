"""``_ring.Message``: a value, immutable, with headers decoded when asked for."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from towpath._message import PurePythonMessage
from towpath._ring import (
    Message,
    set_headers_decoder,
)
from towpath.model import NO_HEADERS, Headers


class TestMessage:
    def test_the_pure_python_one_is_the_same(self) -> None:
        fields: dict[str, Any] = {
            "seq": 3, "source": 7, "time_ns": 11, "channel": "a.b", "headers_raw": b"h",
            "missed": 4, "origin_source": 5, "origin_seq": 6,
        }  # fmt: skip
        for left_out in ((), ("missed",), ("missed", "origin_source", "origin_seq"), ("headers_raw",)):
            kept = {name: value for name, value in fields.items() if name not in left_out}
            in_c, pure = Message(b"hello", **kept), PurePythonMessage(b"hello", **kept)
            assert repr(in_c) == repr(pure)
            for name in ("payload", *fields):
                assert getattr(in_c, name) == getattr(pure, name)
            assert pure == PurePythonMessage(b"hello", **kept)
            assert pure != PurePythonMessage(b"hello", **{**kept, "missed": 9})

    def make(self, **changes: Any) -> Message:
        fields: dict[str, Any] = {
            "payload": b"hello", "seq": 3, "source": 7, "time_ns": 11, "channel": "a.b", "headers_raw": b"h",
        }  # fmt: skip
        fields.update(changes)
        return Message(fields.pop("payload"), **fields)

    def test_holds_what_it_was_given(self) -> None:
        message = self.make(seq=2**64 - 1, source=0, time_ns=2**63)
        assert (message.payload, message.seq, message.source) == (b"hello", 2**64 - 1, 0)
        assert (message.time_ns, message.channel, message.headers_raw) == (2**63, "a.b", b"h")
        assert Message(b"", seq=1, source=1, time_ns=1, channel="c").headers_raw == b""
        assert (message.missed, message.origin_source, message.origin_seq) == (0, 0, 0)
        message = self.make(missed=4, origin_source=2**64 - 1, origin_seq=6)
        assert (message.missed, message.origin_source, message.origin_seq) == (4, 2**64 - 1, 6)
        assert repr(self.make()) == "<Message a.b #3 of source 7, 5 bytes>"
        assert repr(message) == "<Message a.b #3 of source 7 after 4 lost, 5 bytes>"

    def test_is_bytes_like_and_its_payload_outlives_it(self) -> None:
        message = self.make()
        view = memoryview(message)
        assert view.readonly
        del message
        others = [self.make(payload=b"other") for _ in range(3)]  # would take the place of a payload set free
        assert (bytes(view), b"".join(others)) == (b"hello", b"otherotherother")
        if sys.version_info >= (3, 12):
            fields: dict[str, Any] = {"seq": 3, "source": 7, "time_ns": 11, "channel": "a.b"}
            assert bytes(PurePythonMessage(b"hello", **fields)) == b"hello"

    def test_is_equal_by_value(self) -> None:
        assert self.make() == self.make()
        assert hash(self.make()) == hash(self.make())
        assert self.make(channel="".join(["a", ".b"])) == self.make()
        for field, other in {
            "payload": b"hellp", "seq": 4, "source": 8, "time_ns": 12, "channel": "a.c", "headers_raw": b"",
            "missed": 1, "origin_source": 1, "origin_seq": 1,
        }.items():  # fmt: skip
            assert self.make(**{field: other}) != self.make()
        assert self.make() != object()
        assert len({self.make(seq=seq) for seq in (1, 1, 2)}) == 2

    def test_is_immutable(self) -> None:
        message: Any = self.make()
        names = (
            "payload",
            "seq",
            "source",
            "time_ns",
            "channel",
            "headers",
            "headers_raw",
            "missed",
            "other",
        )
        for name in names:
            with pytest.raises(AttributeError):
                setattr(message, name, 1)
            with pytest.raises(AttributeError):
                delattr(message, name)
        with pytest.raises(TypeError):
            Message.payload = b""  # type: ignore[method-assign, assignment]

    @pytest.mark.parametrize(
        "changes",
        [{"payload": "text"}, {"seq": "1"}, {"source": None}, {"channel": b"a"}, {"headers_raw": "h"}],
        ids=str,
    )
    def test_refuses_wrong_types(self, changes: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            self.make(**changes)
        with pytest.raises(ValueError, match="from 0 to 18446744073709551615"):
            self.make(seq=-1)

    def test_decodes_headers_once(self) -> None:
        calls: list[bytes] = []

        def decode(raw: bytes) -> Headers:
            calls.append(raw)
            return Headers(key=raw)

        from towpath import _message

        try:
            set_headers_decoder(decode, NO_HEADERS)
            message = self.make()
            assert calls == []
            assert message.headers is message.headers
            assert message.headers == Headers(key=b"h")
            assert self.make(headers_raw=b"").headers is NO_HEADERS
            assert calls == [b"h"]
            set_headers_decoder(lambda raw: Headers(priority=raw[9]), NO_HEADERS)
            with pytest.raises(IndexError):
                _ = self.make().headers
        finally:
            set_headers_decoder(_message._decode_headers, NO_HEADERS)
        with pytest.raises(TypeError):
            set_headers_decoder(None, NO_HEADERS)  # type: ignore[arg-type]
