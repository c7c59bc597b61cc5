"""The service grpc.health.v1.Health: whether calls would reach the daemon just now.

Theory of operation
    SERVING while the gateway is connected to the daemon and is not stopping, for the server as a whole
    (``""``) and for each service by its full name. Check looks at that moment. A Watch looks again
    ``WATCH_INTERVAL_S`` after it looked last, so a timer runs only while somebody watches.

    The servicer of grpcio-health-checking is not used: it tells its watchers under a lock, so one watcher
    that does not read would stop every later change of the status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from towpath_broker.gateways._common import GatewayContext
from towpath_broker.gateways.grpc.settings import GrpcSettings

WATCH_INTERVAL_S: Final = 0.25

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Status: TypeAlias = int
"""A number of ``HealthCheckResponse.ServingStatus``."""


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers health checks.

    Args:
        gateway: whose connection and stopping decide.
        services: full names of the services served.
    """

    def __init__(self, gateway: GatewayContext[GrpcSettings], services: Collection[str]) -> None:
        self._gateway = gateway
        self._services = frozenset(("", *services))

    def status(self, service: str) -> Status:
        """Return a service's status now; SERVICE_UNKNOWN for a name that is not served."""
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._gateway.client.is_connected and not self._gateway.stopping.is_set():
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Tell a service's status; NOT_FOUND for a name that is not served, as the protocol has it."""
        status = self.status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service of this name is served here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Tell a service's status and each change of it until the peer ends the call or we stop."""
        told: Status | None = None
        while True:
            is_last = self._gateway.stopping.is_set()
            status = self.status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if is_last:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
            try:
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._gateway.stopping.wait()
            except TimeoutError:
                continue
