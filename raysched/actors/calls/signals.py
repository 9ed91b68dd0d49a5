"""Futures that somebody else may have settled already."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


def settle(future: asyncio.Future[T] | None, result: T) -> None:
    """Give a future its result; silent for none, or one that is done or cancelled."""
    if future is not None and not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[T], error: Exception) -> None:
    """Give a future its exception; silent for one that is done or cancelled."""
    if not future.done():
        future.set_exception(error)


async def until(future: asyncio.Future[None], seconds: float) -> None:
    """Wait for a future, at most so long; it is done afterwards. Unlike `asyncio.wait_for` it goes on in the
    very next turn of the loop, before whatever is set off later."""
    timer = asyncio.get_running_loop().call_later(seconds, settle, future, None)
    try:
        await future
    finally:
        timer.cancel()
