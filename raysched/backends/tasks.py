"""Ending tasks."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 1.0
ASKED = 10
"""How often a task is asked to end before it is left to itself: nobody waits for one for ever."""


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks, and return when they have ended, however they do. Asked for again and again: a task that
    is just being woken by `asyncio.wait_for` can miss it."""
    left = {task for task in tasks if task is not None}
    for _ in range(ASKED):
        if not left:
            return
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # looked at, so that nobody complains that it was not
