"""Tasks that run beside one another end together."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from raysched.tasks import stop, together


@pytest.mark.parametrize("turns", range(8))
def test_nothing_goes_on_that_was_stopped_just_as_it_was_woken(turns: int) -> None:
    """`asyncio.wait_for` may miss a cancellation in such a moment."""

    async def work(woken: asyncio.Event) -> None:
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(woken.wait(), 600)
            woken.clear()

    async def main() -> None:
        events = [asyncio.Event() for _ in range(3)]
        task = asyncio.create_task(together(*(work(event) for event in events)))
        for _ in range(5):
            await asyncio.sleep(0)
        events[1].set()
        for _ in range(turns):
            await asyncio.sleep(0)
        await stop(task)
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_when_one_fails_the_others_end_and_its_error_is_told() -> None:
    async def fails() -> None:
        raise ValueError("no")

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await together(asyncio.sleep(600), fails())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
