"""The rules of ``rpc``: what a peer's frames ask for, and what may be open at once. Sans-I/O.

Theory of operation
    A peer is a ZeroMQ identity. Each part of its messages is one ``towpath.v1.Frame``; a REQ socket puts an
    empty part in front, and gets one in front of each answer. :meth:`RpcProtocol.receive` turns parts into
    actions: send this frame, begin this call, give this subscription more credit, end these calls. Whoever
    carries the actions out reports each call's end with :meth:`RpcProtocol.finished`.

    What a frame may be is one table, ``BODIES``, by the name of its body::

        HELLO      hello                          answered by welcome; optional, it only settles the version
        UNARY      registry calls, publish,       one response or one error
                   what is passed on
        STREAM     subscribe_request, watch,      responses until ``end`` or ``error``
                   streams that are passed on
        WAIT       requests for locks             one that it waits, perhaps, and the last; or one error
        CANCEL     cancel                         ends that call; an unknown id may just have ended
        DOOR_ONLY  descriptors and reports        NOT_SUPPORTED: they belong to the UNIX socket
        ANSWER     responses, notices, error      PROTOCOL_VIOLATION: they go the other way

Invariants
    A peer is remembered only while it has a call open: garbage leaves nothing behind.
    Each peer has at most ``rpc_calls_per_peer_max`` unary calls, ``rpc_streams_per_peer_max`` streams and
    ``rpc_waits_per_peer_max`` requests for locks open, all peers together ``rpc_calls_max``.
    An id names at most one open call of a peer. An error for a call ends it.
    Credit never falls below zero: :meth:`Call.spend` asserts it.

Not here: sockets, tasks, the registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from google.protobuf.message import DecodeError

from towpath.convert import error_to_proto
from towpath.errors import (
    InvalidArgument,
    LimitExceeded,
    NotSupported,
    PermissionDenied,
    ProtocolViolation,
    TowpathError,
    VersionMismatch,
)
from towpath.names import check_pattern
from towpath.v1.frame_pb2 import Frame, Welcome
from towpath.wire import VERSION
from towpath_broker.gateways import _locks
from towpath_broker.gateways._forwarding import CALLS, STREAMS
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings

PRINCIPAL: Final = "zeromq:anonymous"
"""For whom peers act until they are authenticated."""

FRAMES_PER_MESSAGE_MAX: Final = 256


class Role(Enum):
    """What a body is to this endpoint; see the module's docstring."""

    HELLO = auto()
    UNARY = auto()
    STREAM = auto()
    WAIT = auto()
    CANCEL = auto()
    DOOR_ONLY = auto()
    ANSWER = auto()


REGISTRY: Final = (
    "declare_channel",
    "undeclare_channel",
    "get_channel",
    "list_channels",
    "create_binding",
    "delete_binding",
    "get_binding",
    "list_bindings",
    "get_status",
)
"""The registry's unary calls, without ``_request`` and ``_response``."""

_DOOR: Final = (
    "allocate_ids",
    "attach_source",
    "detach_source",
    "attach_reader",
    "detach_reader",
    "detach_stalled",
    "fetch_readers",
    "release_slot",
    "report_bindings",
    "report_broken_source",
    "report_gateway",
    "attach_value",
    "read_stored",
    "delegate_lock",
    "open_lock_lane",
)
_LOCK_CALLS: Final = (*_locks.CALLS, *_locks.PLAIN)
_LOCK_STREAMS: Final = (_locks.KEEP, _locks.WATCH)
_SERVICES: Final = ("call", "serve")
_EXCHANGES: Final = ("serve_request", f"{_locks.KEEP}_request")
"""Calls that any number of requests belong to."""
_NOTICES: Final = (
    "doorbell_added",
    "source_added",
    "source_gone",
    "source_detached",
    "source_excluded",
    "reader_added",
    "reader_gone",
    "subscription_ended",
    "publication_ended",
    "publication_held",
)

BODIES: Final[dict[str, Role]] = {
    "hello": Role.HELLO,
    "cancel": Role.CANCEL,
    "publish_request": Role.UNARY,
    "subscribe_request": Role.STREAM,
    "watch_request": Role.STREAM,
    **{f"{name}_request": Role.UNARY for name in REGISTRY},
    **{f"{name}_request": Role.UNARY for name in CALLS},
    **{f"{name}_request": Role.STREAM for name in STREAMS},
    **{f"{name}_request": Role.UNARY for name in _LOCK_CALLS},
    **{f"{name}_request": Role.STREAM for name in (*_SERVICES, *_LOCK_STREAMS)},
    **{f"{name}_request": Role.WAIT for name in _locks.WAITS},
    **{f"{name}_request": Role.DOOR_ONLY for name in _DOOR},
    **{
        f"{name}_response": Role.ANSWER
        for name in (
            *REGISTRY,
            *CALLS,
            *STREAMS,
            *_DOOR,
            *_SERVICES,
            *_LOCK_CALLS,
            *_LOCK_STREAMS,
            *_locks.WAITS,
            "publish",
            "subscribe",
            "watch",
        )
    },
    **dict.fromkeys((*_NOTICES, "error", "end", "welcome"), Role.ANSWER),
}


class Call:
    """One open call of one peer.

    Attributes:
        address: the parts in front of each answer: the identity and, for a REQ, an empty part.
        id: the peer's number for it.
        body: the request's name in ``Frame``.
        request: the frame that opened it.
        credit: of a subscription: how many more messages its peer will take; of a call to a service: bytes.
    """

    __slots__ = ("address", "body", "credit", "id", "request", "role")

    def __init__(self, address: tuple[bytes, ...], frame: Frame, body: str, role: Role) -> None:
        self.address = address
        self.id = frame.id
        self.body = body
        self.role = role
        self.request = frame
        self.credit = 0

    @property
    def peer(self) -> bytes:
        """The identity of the peer whose call it is."""
        return self.address[0]

    def spend(self, count: int) -> None:
        """Take so many messages off the credit."""
        assert 0 <= count <= self.credit
        self.credit -= count


@dataclass(frozen=True, slots=True)
class Send:
    """Send this frame, if that is possible at once."""

    address: tuple[bytes, ...]
    frame: Frame


@dataclass(frozen=True, slots=True)
class Begin:
    """Carry this call out, and report its end."""

    call: Call


@dataclass(frozen=True, slots=True)
class Credited:
    """This subscription has more credit than before."""

    call: Call


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop carrying this call out; it is finished already, and nothing more is sent for it. ``is_cut``: not
    because its peer said so, but because that is gone, or we are about to be."""

    call: Call
    is_cut: bool


@dataclass(frozen=True, slots=True)
class More:
    """A later frame of this call."""

    call: Call
    frame: Frame


Action = Send | Begin | Credited | More | Stop


class _Peer:
    """A peer with open calls. ``connection`` tells one connection from its successor under the same
    identity."""

    __slots__ = ("calls", "connection", "streams", "waits")

    def __init__(self, connection: int) -> None:
        self.connection = connection
        self.calls: dict[int, Call] = {}
        self.streams = 0
        self.waits = 0


class RpcProtocol:
    """All peers of the endpoint.

    Args:
        settings: the bounds.
        software: for people, in the welcome.
    """

    def __init__(self, settings: ZeroMQSettings, software: str) -> None:
        self._settings = settings
        self._software = software
        self._peers: dict[bytes, _Peer] = {}
        self._open = 0
        self.violations = 0

    @property
    def open_calls(self) -> int:
        """How many calls are open over all peers."""
        return self._open

    @property
    def peers(self) -> int:
        """How many peers have calls open."""
        return len(self._peers)

    def connection_of(self, call: Call) -> int:
        """The connection that an open call came by; -1 when that is not known."""
        peer = self._peers.get(call.peer)
        return -1 if peer is None else peer.connection

    def receive(self, parts: Sequence[bytes], connection: int = -1) -> list[Action]:
        """Take one message.

        Args:
            parts: the identity, perhaps an empty part, then frames.
            connection: which connection it came by; -1 when that is not known.
        """
        identity = parts[0]
        has_delimiter = len(parts) > 1 and not parts[1]
        address = (identity, b"") if has_delimiter else (identity,)
        frames = parts[len(address) :]
        actions: list[Action] = []
        known = self._peers.get(identity)
        if known is not None and known.connection != connection:
            actions += self.vanished(identity)
        if not 1 <= len(frames) <= FRAMES_PER_MESSAGE_MAX:
            error = ProtocolViolation(
                f"a message of {len(frames)} frames; 1 to {FRAMES_PER_MESSAGE_MAX} are allowed"
            )
            return [*actions, self._violation(address, 0, error)]
        for raw in frames:
            try:
                frame = Frame.FromString(raw)
            except DecodeError:
                error = ProtocolViolation(
                    "what arrived is not a Frame", hint="each part is a serialized towpath.v1.Frame"
                )
                actions.append(self._violation(address, 0, error))
                break
            actions += self._take(address, frame, connection)
        return actions

    def finished(self, call: Call) -> bool:
        """A call was answered to its end; return whether it was still open."""
        peer = self._peers.get(call.peer)
        if peer is None or peer.calls.get(call.id) is not call:
            return False
        del peer.calls[call.id]
        peer.streams -= call.role is Role.STREAM
        peer.waits -= call.role is Role.WAIT
        self._open -= 1
        if not peer.calls:
            del self._peers[call.peer]
        return True

    def vanished(self, identity: bytes) -> list[Action]:
        """A peer is gone, and with it whatever it had open."""
        peer = self._peers.get(identity)
        return [] if peer is None else self._stop(list(peer.calls.values()), is_cut=True)

    def disconnected(self, connection: int) -> list[Action]:
        """A connection ended: so did the peers that it carried."""
        gone = [identity for identity, peer in self._peers.items() if peer.connection == connection]
        return [action for identity in gone for action in self.vanished(identity)]

    def stop_all(self) -> list[Action]:
        """End every call; the gateway stops."""
        calls = [call for peer in self._peers.values() for call in peer.calls.values()]
        return self._stop(calls, is_cut=True)

    # ---- one frame ----

    def _take(self, address: tuple[bytes, ...], frame: Frame, connection: int) -> list[Action]:
        body = frame.WhichOneof("body")
        role = BODIES.get(body) if body is not None else None
        if role is None or role is Role.ANSWER:
            what = f"{body} is an answer" if role else "a frame without a body that is known"
            return [self._violation(address, frame.id, ProtocolViolation(what))]
        if frame.id == 0:
            return [self._violation(address, 0, ProtocolViolation(f"{body} needs an id above 0"))]
        if role is Role.CANCEL:
            return self._cancel(address, frame.id)
        try:
            self._check_frame(frame, role, body or "")
            existing = self._find(address[0], frame.id)
            if existing is not None:
                return self._credit(existing, frame)
            if role is Role.HELLO:
                return [Send(address, self._welcome(frame))]
            return [self._begin(address, frame, body or "", role, connection)]
        except ProtocolViolation as error:
            return [*self._stop_one(address[0], frame.id), self._violation(address, frame.id, error)]
        except TowpathError as error:
            return [*self._stop_one(address[0], frame.id), Send(address, error_frame(frame.id, error))]

    def _check_frame(self, frame: Frame, role: Role, body: str) -> None:
        if frame.descriptors:
            raise ProtocolViolation("descriptors cannot travel by ZeroMQ")
        if frame.principal:
            raise PermissionDenied(
                "a principal is stated by gateways of the daemon only", hint="leave Frame.principal empty"
            )
        if role is Role.DOOR_ONLY:
            raise NotSupported(
                f"{body} exists on the UNIX socket only", hint="use publish_request and subscribe_request"
            )

    def _begin(
        self, address: tuple[bytes, ...], frame: Frame, body: str, role: Role, connection: int
    ) -> Begin:
        peer = self._peers.get(address[0])
        streams, waits = (peer.streams, peer.waits) if peer is not None else (0, 0)
        unary = len(peer.calls) - streams - waits if peer is not None else 0
        if role is Role.WAIT and waits >= self._settings.rpc_waits_per_peer_max:
            raise LimitExceeded(f"{waits} requests for locks wait (rpc_waits_per_peer_max)")
        if role is Role.STREAM and streams >= self._settings.rpc_streams_per_peer_max:
            raise LimitExceeded(
                f"{streams} subscriptions, consumers and watches are open (rpc_streams_per_peer_max)"
            )
        if role is Role.UNARY and unary >= self._settings.rpc_calls_per_peer_max:
            raise LimitExceeded(f"{unary} calls are open (rpc_calls_per_peer_max)")
        if self._open >= self._settings.rpc_calls_max:
            raise LimitExceeded("too many calls are open over all peers (rpc_calls_max)")
        call = Call(address, frame, body, role)
        if body == "subscribe_request":
            check_pattern(frame.subscribe_request.channel)
            call.credit = frame.subscribe_request.credit or self._settings.rpc_window
        elif body == "call_request":
            call.credit = frame.call_request.window
        if peer is None:
            peer = self._peers[address[0]] = _Peer(connection)
        peer.calls[call.id] = call
        peer.streams += role is Role.STREAM
        peer.waits += role is Role.WAIT
        self._open += 1
        return Begin(call)

    def _credit(self, call: Call, frame: Frame) -> list[Action]:
        """A frame for an open call: more credit for a subscription, or what a service's ends have to say."""
        if call.body in _EXCHANGES and frame.WhichOneof("body") == call.body:
            return [More(call, frame)]
        if call.body == "call_request" and frame.WhichOneof("body") == "call_request":
            call.credit += frame.call_request.window
            return [Credited(call)]
        if call.body != "subscribe_request" or frame.WhichOneof("body") != "subscribe_request":
            raise ProtocolViolation(f"the id {call.id} is in use by a {call.body}")
        if frame.subscribe_request.channel not in ("", call.request.subscribe_request.channel):
            raise InvalidArgument(
                f"the subscription {call.id} is of {call.request.subscribe_request.channel}",
                hint="another channel needs another id",
            )
        call.credit += frame.subscribe_request.credit
        return [Credited(call)]

    def _cancel(self, address: tuple[bytes, ...], call_id: int) -> list[Action]:
        """End a call, and confirm it with ``end``; of an id that is not open too, so that a REQ peer is
        never left waiting."""
        end = Frame(id=call_id)
        end.end.SetInParent()
        return [*self._stop_one(address[0], call_id), Send(address, end)]

    def _welcome(self, frame: Frame) -> Frame:
        hello = frame.hello
        if not hello.version_min <= VERSION <= hello.version_max:
            raise VersionMismatch(
                f"the peer speaks versions {hello.version_min} to {hello.version_max}, the daemon {VERSION}"
            )
        return Frame(
            id=frame.id, welcome=Welcome(version=VERSION, software=self._software, principal=PRINCIPAL)
        )

    # ---- helpers ----

    def _find(self, identity: bytes, call_id: int) -> Call | None:
        peer = self._peers.get(identity)
        return peer.calls.get(call_id) if peer is not None else None

    def _stop_one(self, identity: bytes, call_id: int) -> list[Action]:
        call = self._find(identity, call_id)
        return self._stop([call]) if call is not None else []

    def _stop(self, calls: Iterable[Call], *, is_cut: bool = False) -> list[Action]:
        return [Stop(call, is_cut) for call in calls if self.finished(call)]

    def _violation(self, address: tuple[bytes, ...], call_id: int, error: ProtocolViolation) -> Send:
        self.violations += 1
        return Send(address, error_frame(call_id, error))


def error_frame(call_id: int, error: TowpathError) -> Frame:
    """Return the frame that ends a call with an error; id 0 when it is not known which call."""
    return Frame(id=call_id, error=error_to_proto(error))
