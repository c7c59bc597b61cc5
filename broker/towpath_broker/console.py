"""The person who typed ``towpath serve`` on a terminal: whether there is one, and what they are told.

Not here: the log, which goes to stderr and is for machines too (log.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from towpath._version import __version__
from towpath.addresses import candidates

from .gateway_keeper import GatewayKeeper


def has_terminal() -> bool:
    """Whether the process has a controlling terminal now; it loses it when the terminal hangs up, tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


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
