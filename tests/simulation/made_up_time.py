"""An event loop whose time is made up: whenever nothing can happen now, it is the time of the next timer.

Hours go by in seconds, and the order of all that happens depends on nothing but the program: no thread, no
socket and no clock has a part in it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(AssertionError):
    """Nothing can happen any more, now or later."""


class _Selector(selectors.SelectSelector):
    """Waits for nothing: it lets the loop's time go by."""

    loop: MadeUpLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits for another one")
        self.loop.now += max(0.0, timeout)
        return []


class MadeUpLoop(asyncio.SelectorEventLoop):
    """`now` is its time in seconds; it begins at 0."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in made-up time, then cancel whatever is left."""
    loop = MadeUpLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        left = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
