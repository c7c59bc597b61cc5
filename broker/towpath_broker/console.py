"""What a person who typed ``towpath serve`` on a terminal is told once the daemon is ready.

Not here: the log, which goes to stderr and is for machines too (log.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from towpath._version import __version__
from towpath.addresses import candidates

from .gateway_keeper import GatewayKeeper


def summary(address: str, keepers: Iterable[GatewayKeeper]) -> str:
    """Return the page: where the daemon can be reached, and what to try next.

    Args:
        address: of the door's socket.
        keepers: of the gateways, in the order to show.
    """
    lines = [f"Towpath {__version__} runs in the foreground; Ctrl-C stops it.", f"  socket   {address}"]
    lines += [f"  {keeper.name:<8} {_describe(keeper)}" for keeper in keepers]
    lines.append("Try, in another terminal:")
    if address not in candidates():
        lines.append(f"  export TOWPATH_SOCKET={address}")
    lines += [
        "  towpath declare hello",
        "  towpath sub hello &",
        "  towpath pub hello 'it works'",
        "  towpath status",
    ]
    return "\n".join(lines)


def _describe(keeper: GatewayKeeper) -> str:
    if keeper.state != "running":
        return f"{keeper.state.replace('_', ' ')}: {keeper.detail}"
    where = "  ".join(f"{name} {address}" for name, address in keeper.endpoints.items())
    return where or keeper.detail or "running"
