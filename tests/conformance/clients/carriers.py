"""The carriers that the suite runs over, and what some do differently, each with its reason.

Theory of operation
    Every case runs over every carrier, with both clients. Where a carrier cannot do what shared memory does,
    the case asks for the deviation by name and asserts what happens instead; it is never left out.
    GUARANTEES.md prints this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.support.daemon import DaemonHandle


@dataclass(frozen=True)
class Deviation:
    """What a carrier does otherwise.

    Attributes:
        carriers: which ones.
        what: for people: what happens.
        why: for people: the reason.
    """

    carriers: tuple[str, ...]
    what: str
    why: str


DEVIATIONS: Final = {
    "shared source": Deviation(
        ("zmq",),
        "the publishers of one client on one channel share one source, which stays until the client leaves",
        "a publish is a call of its own there, and no call says which of the client's publishers it is of",
    ),
    "a source when first used": Deviation(
        ("grpc", "zmq"),
        "a publisher has no source, and does not count as one, before its first message is acknowledged",
        "the gateway makes the source when the first message comes",
    ),
    "windows": Deviation(
        ("grpc", "zmq"),
        "publishers are held up by a subscriber that does not read only when the windows on its way are "
        "full; a Timeout says that some messages may still be published",
        "whoever sends over a network must send ahead; what is on its way cannot be called back",
    ),
    "origins": Deviation(
        ("grpc", "zmq"),
        "`origin` and `exclude_origin` are refused with NOT_SUPPORTED",
        "the contract of the gateways has no such field",
    ),
    "drained": Deviation(
        ("grpc", "zmq"),
        "`wait_drained` is refused with NOT_SUPPORTED",
        "a publisher behind a gateway does not see who reads the gateway's ring",
    ),
    "no bindings": Deviation(
        ("grpc", "zmq"),
        "binding is refused with PERMISSION_DENIED",
        "a binding acts with the daemon's rights, which nobody has from afar",
    ),
    "message bytes": Deviation(
        ("grpc", "zmq"),
        "a message has at most 4,190,208 bytes by gRPC and 16,773,120 by ZeroMQ, even where the ring would "
        "take more; of a queue or a durable topic 1,044,480",
        "the gateways bound a request: `[grpc] message_bytes_max`, `[zeromq] message_bytes_max`; what is "
        "stored they pass on in a request to the core",
    ),
    "leases": Deviation(
        ("grpc", "zmq"),
        "a lock session has a lease (10 s unless the client says otherwise): what it holds outlives a broken "
        "connection by that, and its holder's death too; it is shown by the peer's address, not by a pid",
        "nothing tells the daemon of a process elsewhere that has died",
    ),
    "no operators": Deviation(
        ("grpc", "zmq"),
        "taking a lock away, and defining a lock space, is refused with PERMISSION_DENIED",
        "peers are not authenticated: nobody from afar is an administrator",
    ),
    "no session": Deviation(
        ("grpc", "zmq"),
        "`session` is 0; `principal` is the gateway's for all its peers, and empty by gRPC",
        "the session is the gateway's",
    ),
}


@dataclass(frozen=True)
class Carrier:
    """One way to the daemon.

    Attributes:
        name: as tests are named by it.
        url: where it finds a daemon.
    """

    name: str
    url: Callable[[DaemonHandle], str]

    def deviates(self, name: str) -> bool:
        """Whether this carrier has the deviation; only those of the table can be asked for."""
        return self.name in DEVIATIONS[name].carriers


def _host_and_port(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://")


CARRIERS: Final = (
    Carrier("local", lambda daemon: f"unix:{daemon.socket}"),
    Carrier("grpc", lambda daemon: f"grpc://{daemon.endpoint('grpc', 'listen')}"),
    Carrier("zmq", lambda daemon: f"zmq://{_host_and_port(daemon.endpoint('zeromq', 'rpc'))}"),
)
SHELLS: Final = ("sync", "aio")
