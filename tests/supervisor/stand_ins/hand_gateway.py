"""A gateway on the real common ground (gateways/_common.py) that does what its settings say."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

from towpath.errors import InvalidConfiguration, Timeout
from towpath_broker.gateways import _common
from towpath_broker.gateways._common import GatewayContext, log, run_gateway, setting

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class HandSettings:
    act: str = setting("wait", "what to do")
    number: int = setting(1, "a number", minimum=0, maximum=9)

    def __post_init__(self) -> None:
        if self.act == "impossible":
            raise InvalidConfiguration("act: it is impossible", hint="do something else")


def hang() -> None:
    """The worst that a gateway can do: the event loop itself is stuck."""
    time.sleep(60)


async def main(context: GatewayContext[HandSettings]) -> None:
    settings = context.settings
    await context.listening({"in": f"number {settings.number}"}, "by hand")
    names = [channel.name for channel in await context.acting_for("zeromq:anonymous").channels()]
    log("hand.channels", names=",".join(names))
    if settings.act == "fail":
        raise Timeout("it took too long")
    if settings.act == "crash":
        raise RuntimeError("a bug")
    log("hand.waits")
    await context.stopping.wait()
    if settings.act == "never drain":
        await asyncio.Event().wait()
    if settings.act == "hang":
        hang()


if __name__ == "__main__":
    # The real bounds are for people. Here the first is met at once where it is to be met, and nowhere else.
    _common.STOP_SECONDS = 0.5 if "hang" in sys.argv else DEADLINE_S  # type: ignore[misc]
    _common.DRAIN_SECONDS = 0.4  # type: ignore[misc]
    run_gateway("hand", HandSettings, main)
