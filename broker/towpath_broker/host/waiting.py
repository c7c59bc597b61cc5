"""Waiting with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def within(seconds: float, work: Awaitable[object]) -> bool:
    """Await something for at most so long; return whether it was done in time."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
