"""Tasks that live and end together, and what they wait for.

``asyncio.TaskGroup`` would do but for its ExceptionGroups: here one binding's error is one error, with one
row in the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended; how they ended is left in them."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def raise_first_error(*tasks: asyncio.Task[Any]) -> None:
    """Raise the error of the first task that has one; the tasks are done."""
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Await all; the first error cancels the others and is raised when they have ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await cancel(*(task for task in tasks if not task.done()))
    raise_first_error(*tasks)


def put(event: asyncio.Event, value: bool) -> None:
    """Set an event, or clear it."""
    if value:
        event.set()
    else:
        event.clear()
