"""``python -m towpath_broker.gateways.bridge``: the bridge as a process."""

from __future__ import annotations

from towpath_broker.gateways._common import GatewayContext, run_gateway
from towpath_broker.gateways.bridge.bridge import Bridge
from towpath_broker.gateways.bridge.settings import BridgeSettings


async def main(context: GatewayContext[BridgeSettings]) -> None:
    """Carry until told to stop, then drain."""
    await context.listening({})
    await Bridge(context.client).run(context.stopping)


if __name__ == "__main__":
    run_gateway("bridge", BridgeSettings, main)
