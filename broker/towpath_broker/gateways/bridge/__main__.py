"""``python -m towpath_broker.gateways.bridge``: the bridge as a process."""

from __future__ import annotations

import asyncio
import os

from towpath.aio.client import LocalAsyncClient
from towpath_broker.gateways._common import CONTROL_ENVIRONMENT, GatewayContext, run_gateway
from towpath_broker.gateways.bridge.bridge import Bridge
from towpath_broker.gateways.bridge.joining.joins import Joins
from towpath_broker.gateways.bridge.keeping import KEEPS_ENVIRONMENT, Keeping
from towpath_broker.gateways.bridge.settings import BridgeSettings
from towpath_broker.gateways.bridge.tasks import cancel, raise_first_error


async def main(context: GatewayContext[BridgeSettings]) -> None:
    """Carry until told to stop, then drain."""
    keeps = os.environ.get(KEEPS_ENVIRONMENT)
    control = int(os.environ[CONTROL_ENVIRONMENT]) if keeps else -1
    keeping = Keeping(control, is_restart_possible=keeps == "restart")
    try:
        await context.listening({})
        assert isinstance(context.client, LocalAsyncClient)  # it is on the daemon's host
        joining = asyncio.create_task(Joins(context.client, keeping).run(), name="joined locks")
        joining.add_done_callback(lambda _: context.stopping.set())  # a bug: we are started again
        try:
            await Bridge(context.client, keeping).run(context.stopping)
        finally:
            await cancel(joining)
        raise_first_error(joining)
    finally:
        keeping.close()


if __name__ == "__main__":
    run_gateway("bridge", BridgeSettings, main)
