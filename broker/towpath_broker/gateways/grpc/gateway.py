"""The gateway's life: make the server, listen, serve until told to stop, end in order.

Theory of operation
    Start: services, then the port, then ``listening`` (which makes the gateway RUNNING), then health says
    SERVING. Stop: health says NOT_SERVING; the port is closed and every open call of ours ends with
    UNAVAILABLE (``Calls`` sees the same ``stopping``); what else is open (health watches, reflection) has
    ``STOP_GRACE_S``; the shared sources are closed.

    The bounds are gRPC's own, set here: connections (``connections_max``), calls (``calls_max``,
    ``calls_per_connection_max``), the size of requests, and how long a connection may be half open or leave a
    ping unanswered. A peer that breaks HTTP/2 loses its connection and nothing else happens.

Invariants
    The port is never shared with another process (``so_reuseport`` is off), so a second gateway fails instead
    of taking half of the connections.

Not here: what the services do.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from towpath.errors import Unavailable
from towpath.v1 import channels_pb2, locks_pb2, registry_pb2
from towpath_broker.gateways._common import GatewayContext
from towpath_broker.gateways.grpc.calls import Calls
from towpath_broker.gateways.grpc.channels import ChannelsService
from towpath_broker.gateways.grpc.health import HealthService
from towpath_broker.gateways.grpc.locks import LocksService
from towpath_broker.gateways.grpc.registry import RegistryService
from towpath_broker.gateways.grpc.services import add_service
from towpath_broker.gateways.grpc.settings import GrpcSettings, listen_target

STOP_GRACE_S: Final = 1.0
"""What calls that do not end by themselves have when the gateway stops."""
HANDSHAKE_TIMEOUT_MS: Final = 10_000
"""From accepting a connection to HTTP/2's first settings; one that says nothing is closed then."""
CLIENT_PING_INTERVAL_MS_MIN: Final = 5_000
"""Clients may ping this often; one that keeps doing it more often is told to go away (ENHANCE_YOUR_CALM)."""

CHANNELS: Final = channels_pb2.DESCRIPTOR.services_by_name["Channels"]
LOCKS: Final = locks_pb2.DESCRIPTOR.services_by_name["Locks"]
HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
REGISTRY: Final = registry_pb2.DESCRIPTOR.services_by_name["Registry"]


async def main(gateway: GatewayContext[GrpcSettings]) -> None:
    """Serve until ``gateway.stopping``, then end in order.

    Args:
        gateway: settings and a connected client.

    Raises:
        Unavailable: the port cannot be had.
    """
    server = make_server(gateway.settings)
    calls = Calls(gateway)
    channels = ChannelsService(gateway, calls)
    served = (CHANNELS.full_name, LOCKS.full_name, REGISTRY.full_name)
    health = HealthService(gateway, served)
    add_service(server, CHANNELS, channels)
    add_service(server, LOCKS, LocksService(gateway, calls))
    add_service(server, REGISTRY, RegistryService(gateway, calls))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((*served, HEALTH.full_name, reflection.SERVICE_NAME), server)
    endpoint = bind(server, gateway.settings.listen)
    await server.start()
    try:
        await gateway.listening({"listen": endpoint})
        await gateway.stopping.wait()
    finally:
        await server.stop(STOP_GRACE_S)
        await channels.close()


def make_server(settings: GrpcSettings) -> grpc.aio.Server:
    """Make a server with the bounds of the settings; it serves nothing yet.

    Args:
        settings: checked.
    """
    options: dict[str, int] = {
        "grpc.so_reuseport": 0,
        "grpc.max_allowed_incoming_connections": settings.connections_max,
        "grpc.max_concurrent_streams": settings.calls_per_connection_max,
        # Calls that come faster than they are begun wait; gRPC would refuse some beyond 1,000.
        "grpc.server.max_pending_requests": settings.calls_max,
        "grpc.server.max_pending_requests_hard_limit": settings.calls_max,
        "grpc.max_receive_message_length": settings.message_bytes_max,
        # What we send is as large as the channel's messages are; the client decides what it takes.
        "grpc.max_send_message_length": -1,
        "grpc.keepalive_time_ms": settings.keepalive_ms,
        "grpc.keepalive_timeout_ms": settings.keepalive_timeout_ms,
        # The one that counts: without it an unanswered ping is waited for a minute.
        "grpc.http2.ping_timeout_ms": settings.keepalive_timeout_ms,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_recv_ping_interval_without_data_ms": CLIENT_PING_INTERVAL_MS_MIN,
        "grpc.server_handshake_timeout_ms": HANDSHAKE_TIMEOUT_MS,
    }
    return grpc.aio.server(options=tuple(options.items()), maximum_concurrent_rpcs=settings.calls_max)


def bind(server: grpc.aio.Server, listen: str) -> str:
    """Open the port.

    Args:
        server: not started.
        listen: the setting, checked.

    Returns:
        What a client connects to: ``127.0.0.1:50551`` or ``unix:/path``, with the port as bound.

    Raises:
        Unavailable: another process has it, or the system does not give it.
    """
    target = listen_target(listen)
    if target.startswith("unix:") and _is_served(target.removeprefix("unix:")):
        # gRPC replaces whatever socket is at the path, also one that another process serves.
        raise _taken(target, "another process serves it")
    # A UNIX socket is made by bind(2) with the umask's mode; only our own uid may connect to it.
    umask = os.umask(0o177)
    try:
        port = server.add_insecure_port(target)
    except RuntimeError as error:
        raise _taken(target, str(error)) from None
    finally:
        os.umask(umask)
    return target if target.startswith("unix:") else f"{target.rpartition(':')[0]}:{port}"


def _taken(target: str, why: str) -> Unavailable:
    return Unavailable(
        f"cannot listen on {target}: {why}", hint="is another gateway running, or something else there?"
    )


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        # A full backlog must not make us wait; it means that somebody is there.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
