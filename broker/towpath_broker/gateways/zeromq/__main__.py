"""``python -m towpath_broker.gateways.zeromq``: run the gateway, by the supervisor or by hand."""

from __future__ import annotations

from towpath_broker.gateways._common import run_gateway
from towpath_broker.gateways.zeromq.gateway import serve
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings

if __name__ == "__main__":
    run_gateway("zeromq", ZeroMQSettings, serve)
