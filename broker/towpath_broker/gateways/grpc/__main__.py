"""``python -m towpath_broker.gateways.grpc``: the gateway's process."""

from __future__ import annotations

import os

from towpath_broker.gateways._common import GatewayContext, run_gateway
from towpath_broker.gateways.grpc.settings import GrpcSettings


async def _main(gateway: GatewayContext[GrpcSettings]) -> None:
    # gRPC reads these when it is loaded. Its own log has a line for each peer that talks nonsense, which
    # peers could use to fill ours; and this process never forks.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from towpath_broker.gateways.grpc.gateway import main

    await main(gateway)


if __name__ == "__main__":
    run_gateway("grpc", GrpcSettings, _main)
