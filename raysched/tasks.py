"""Tasks that run beside one another, and ending them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

AGAIN_S = 1.0
ASKED = 10
"""How often a task is asked to end before it is left to itself: nobody waits for one for ever."""


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks, and return when they have ended, however they do. Asked for again and again: a task that
    is just being woken by `asyncio.wait_for` can miss it. Who is cancelled here ends them first."""
    left = {task for task in tasks if task is not None}
    cancelled: asyncio.CancelledError | None = None
    for _ in range(ASKED):
        if not left:
            break
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left, timeout=AGAIN_S)
        except asyncio.CancelledError as error:
            cancelled = error
        for task in [task for task in left if task.done()]:
            left.discard(task)
            if not task.cancelled():
                task.exception()  # looked at, so that nobody complains that it was not
    if cancelled is not None:
        raise cancelled


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Run all of them until one ends, or until cancelled; none goes on afterwards. (`asyncio.gather` returns
    when the first was cancelled, and one that has missed that would go on for ever.) Raises what the one
    that ended did."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(task for task in tasks if task.done())
    finally:
        await stop(*tasks)
    first.result()
