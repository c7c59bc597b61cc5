"""What a publish request may hold, on every carrier."""

from __future__ import annotations

import pytest

from towpath.convert import HEADERS_BYTES_MAX, PAYLOADS_MAX, checked_publish
from towpath.errors import InvalidArgument
from towpath.v1.channels_pb2 import PublishRequest
from towpath.v1.message_pb2 import Headers


def test_payloads_without_headers_have_no_headers_column() -> None:
    assert checked_publish(PublishRequest(payloads=[b"one", b""])) == ([b"one", b""], None)


def test_headers_come_out_serialized_and_empty_ones_as_nothing() -> None:
    headers = Headers(content_type="text/plain", user={"a": "b"})
    payloads, column = checked_publish(
        PublishRequest(payloads=[b"one", b"two"], headers=[headers, Headers()])
    )
    assert payloads == [b"one", b"two"]
    assert column is not None
    assert Headers.FromString(column[0]) == headers
    assert column[1] == b""


@pytest.mark.parametrize(
    ("payloads", "headers", "what"),
    [
        (0, [], "0 payloads"),
        (PAYLOADS_MAX + 1, [], "10001 payloads"),
        (2, [Headers()], "2 payloads and 1 headers"),
        (1, [Headers(), Headers()], "1 payloads and 2 headers"),
        (2, [Headers(), Headers(priority=32)], "message 1: priority 32"),
        (1, [Headers(user={str(number): "" for number in range(65)})], "65 user headers"),
        (1, [Headers(user={"": ""})], "user header ''"),
        (1, [Headers(user={"x" * 129: ""})], "user header 'xxx"),
        (1, [Headers(key=b"x" * HEADERS_BYTES_MAX)], "message 0: the headers take"),
        (1, [Headers(message_id="x" * 129)], "id is longer than 128 bytes"),
    ],
)
def test_a_request_out_of_bounds_is_refused(payloads: int, headers: list[Headers], what: str) -> None:
    with pytest.raises(InvalidArgument, match=what):
        checked_publish(PublishRequest(payloads=[b""] * payloads, headers=headers))


def test_the_largest_request_is_accepted() -> None:
    payloads, column = checked_publish(
        PublishRequest(payloads=[b""] * PAYLOADS_MAX, headers=[Headers(priority=31)] * PAYLOADS_MAX)
    )
    assert len(payloads) == PAYLOADS_MAX
    assert column is not None and len(column) == PAYLOADS_MAX
