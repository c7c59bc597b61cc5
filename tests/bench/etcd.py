"""etcd v3's lock, as a program in Python has it: by gRPC, on a server that keeps its log on disk.

Theory of operation
    The service ``v3lockpb.Lock`` of the server: ``Lock`` answers when the lock is had, with a key that
    ``Unlock`` gives back; both are in the log, synced, before they are answered. The lock belongs to a lease,
    as it must where a holder may die. Of the protocol's messages four fields are needed: they are written and
    read here, so that no code is generated from etcd's files.

Source: https://etcd.io/docs/v3.4/dev-guide/api_concurrency_reference_v3/
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import grpc

from tests.bench.site import program

_Call = Callable[..., bytes]
LEASE_S: Final = 600
ANSWER_S: Final = 60
NAME: Final = b"bench.lock"


def has_etcd() -> bool:
    """Whether it can be measured here."""
    return program("etcd") is not None


@contextlib.contextmanager
def etcd_lock(port: int) -> Iterator[Callable[[], object]]:
    """What takes and gives back a lock, within a lease."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grant: _Call = channel.unary_unary("/etcdserverpb.Lease/LeaseGrant")
        lock: _Call = channel.unary_unary("/v3lockpb.Lock/Lock")
        unlock: _Call = channel.unary_unary("/v3lockpb.Lock/Unlock")
        lease = _second(grant(b"\x08" + _varint(LEASE_S), timeout=ANSWER_S, wait_for_ready=True))
        assert isinstance(lease, int)
        wanted = b"\x0a" + _varint(len(NAME)) + NAME + b"\x10" + _varint(lease)

        def pair() -> None:
            key = _second(lock(wanted, timeout=ANSWER_S))
            assert isinstance(key, bytes)
            unlock(b"\x0a" + _varint(len(key)) + key, timeout=ANSWER_S)

        yield pair


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*written, number))


def _second(message: bytes) -> int | bytes:
    """The field 2 of a message: a number or bytes."""
    at = 0
    while at < len(message):
        field, kind = message[at] >> 3, message[at] & 7
        number, at = _read_varint(message, at + 1)
        if kind == 2:
            number, at, value = 0, at + number, message[at : at + number]
        if field == 2:
            return value if kind == 2 else number
    raise ValueError("it has no field 2")


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
        if message[at - 1] < 0x80:
            return number, at
