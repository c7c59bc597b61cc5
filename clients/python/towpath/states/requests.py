"""What is asked about a state's value, as calls; and what watching one knows. Sans-I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from towpath import convert, model, wire
from towpath._value import Value
from towpath.calls import Call
from towpath.errors import InvalidArgument, MessageTooLarge, TowpathError
from towpath.locks.model import Fence
from towpath.names import check_name
from towpath.v1 import values_pb2
from towpath.waiting import Buffer

VALUE_BYTES_MAX: Final = wire.REQUEST_BYTES_MAX - 4096
UPDATE_ATTEMPTS: Final = 64
"""How often ``update`` tries again when somebody else was quicker."""
UPDATE_PAUSE_FIRST_S: Final = 0.0005
UPDATE_PAUSE_MAX_S: Final = 0.05


def update_pause_s(attempt: int) -> float:
    """How long ``update`` waits before it tries again: anything up to a bound that doubles with each attempt.
    Those who were in each other's way once would be again, were the pause the same for all.

    Args:
        attempt: how often it has tried, 1 or more.

    Returns:
        Seconds, 0 to ``UPDATE_PAUSE_MAX_S``.
    """
    return random.uniform(0, min(UPDATE_PAUSE_FIRST_S * 2 ** min(attempt - 1, 16), UPDATE_PAUSE_MAX_S))


def value_from_proto(value: values_pb2.Value) -> Value:
    """A value as programs see it."""
    return Value(
        value.payload,
        version=value.version,
        changed_at_ns=value.changed_at_ns,
        headers_raw=value.headers.SerializeToString() if value.HasField("headers") else b"",
        is_set=value.is_set,
    )


def get(name: str) -> Call[Value]:
    """Ask for the value."""
    return Call(
        "get_value_request",
        values_pb2.GetValueRequest(channel=check_name(name)),
        "get_value_response",
        lambda response: value_from_proto(response.value),
    )


def put(
    name: str,
    payload: Buffer,
    *,
    if_version: int | None,
    headers: model.Headers | None,
    fence: Fence | None = None,
) -> Call[int]:
    """Set it; the answer is the version.

    Raises:
        MessageTooLarge: it does not fit a request.
    """
    request = values_pb2.SetValueRequest(channel=check_name(name), payload=bytes(payload))
    _state_version(request, "if_version", if_version)
    if headers is not None:
        request.headers.CopyFrom(convert.headers_to_proto(headers))
    if fence is not None:
        request.fence.lock, request.fence.token = fence
    if request.ByteSize() > VALUE_BYTES_MAX:
        raise MessageTooLarge(
            f"a value of {len(request.payload)} bytes; {VALUE_BYTES_MAX} travel in a request",
            hint="keep large things elsewhere, and their names here",
        )
    return Call("set_value_request", request, "set_value_response", lambda response: int(response.version))


def delete(name: str, *, if_version: int | None, fence: Fence | None = None) -> Call[int]:
    """Delete it; the answer is the version."""
    request = values_pb2.DeleteValueRequest(channel=check_name(name))
    _state_version(request, "if_version", if_version)
    if fence is not None:
        request.fence.lock, request.fence.token = fence
    return Call(
        "delete_value_request", request, "delete_value_response", lambda response: int(response.version)
    )


def attach(name: str) -> Call[int]:
    """Ask for the page: the answer says how large a value it takes, and brings its descriptor."""
    return Call(
        "attach_value_request",
        values_pb2.AttachValueRequest(channel=check_name(name)),
        "attach_value_response",
        lambda response: int(response.value_bytes_max),
    )


def _state_version(request: Any, field: str, version: int | None) -> None:
    if version is None:
        return
    try:
        setattr(request, field, version)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{version!r} is no version: it is a number from 0") from None


class WatchState:
    """One watch of a value, over the connections that it sees.

    Theory of operation
        Each connection's stream begins with the value unless it has the version that is known already, so
        nothing is told twice and the newest is never missed. Only the newest waits for the program.

    Args:
        name: the state's.
        after_version: the version that is known; None: tell the value as it is.
        wake: called when there is news.
    """

    def __init__(self, name: str, after_version: int | None, wake: Callable[[], None]) -> None:
        self.name = check_name(name)
        self._known = after_version
        self._wake = wake
        self._newest: Value | None = None
        self.why_ended: TowpathError | None = None
        self.request()  # a version that is none is refused at once

    def request(self) -> Call[Value]:
        """The stream to ask for now."""
        request = values_pb2.WatchValueRequest(channel=self.name)
        known = self._known if self._newest is None else self._newest.version
        _state_version(request, "after_version", known)
        return Call(
            "watch_value_request",
            request,
            "watch_value_response",
            lambda response: value_from_proto(response.value),
        )

    def take(self) -> Value | None:
        """The newest value that was not taken, if there is one."""
        value, self._newest = self._newest, None
        if value is not None:
            self._known = value.version
        return value

    # What it follows (towpath.asking.Listener).

    def came(self, value: Value) -> None:
        """The value has changed."""
        known = self._known if self._newest is None else self._newest.version
        if known is None or value.version > known:
            self._newest = value
            self._wake()

    def broke(self, error: TowpathError) -> None:
        """The stream is asked for again on the next connection."""

    def ended(self, error: TowpathError) -> None:
        """Nothing more will come."""
        if self.why_ended is None:
            self.why_ended = error
        self._wake()


def quicker(name: str) -> str:
    """Why ``update`` gave up."""
    return f"the value of {name!r} was changed by others each time, {UPDATE_ATTEMPTS} times"
