"""Many simulations, on all cores, until so many events have happened."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice

from tests.simulation.simulation import Result, simulate

CORES = os.cpu_count() or 1


def simulations(first: int, events: int) -> Iterator[Result]:
    """The results of the seeds from `first` on, in order, until there were so many events in all."""
    seeds = count(first)
    # Spawned: a process that is forked has whatever the one before was amid.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, mp_context=context) as pool:
        running = [pool.submit(simulate, seed) for seed in islice(seeds, 2 * CORES)]
        try:
            while events > 0:
                running.append(pool.submit(simulate, next(seeds)))
                result = running.pop(0).result()
                events -= result.events
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def story(result: Result) -> str:
    """A broken promise, what led to it, and how to see all of it."""
    return "\n".join(
        (
            f"seed {result.seed}: {result.problem}",
            *result.last,
            f"the whole of it: python -m tests.simulation.simulation {result.seed}",
        )
    )
