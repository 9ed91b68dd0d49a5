"""Decorated calls against plain Ray tasks with the same num_gpus, in one run.

    python benchmarks/decorator.py                 # on a cluster of its own with simulated GPUs
    python benchmarks/decorator.py --works 0,10 --repeats 5 --json

Plain tasks keep their workers (max_calls is large). Both kinds take turns, each time through all cells; a
cell is a way of calling and a length of work, which sleeps as a program does that waits for its GPU. The
figures are medians over the repeats, and their ratio (above 1: decorated calls are faster).

Two more figures: with 1,000 calls submitted at once where 8 fit, how much of the 8 shares was busy until the
end; and how long `.remote()` takes when no GPU is free.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODES: dict[str, int] = {"one at a time": 1, "16 in flight": 16, "1000 at once": 1000}
SLOTS = 16
BUSY_SLOTS = 8
GPUS = 4
SETTLE_S = 3.0
"""A pause after many processes were started."""
CELL_S = 1.5
"""About how long a cell takes for calls that do work."""


@contextmanager
def cluster(gpus: int) -> Iterator[None]:
    """A raysched of this run alone, with simulated GPUs."""
    folder = Path(tempfile.mkdtemp(prefix="rsb-", dir="/tmp"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "raysched.yaml").write_text(f"gateway: {{port: {port}}}\n", encoding="utf-8")
    os.environ.update(
        RAYSCHED_HOME=str(folder / "home"),
        RAYSCHED_CONFIG=str(folder / "raysched.yaml"),
        RAY_TMPDIR=str(folder),
        RAY_AUTH_MODE="token",
    )
    for name in ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE", "CUDA_VISIBLE_DEVICES"):
        os.environ.pop(name, None)
    raysched = str(Path(sys.executable).with_name("raysched"))
    try:
        subprocess.run([raysched, "up", "--simulate", f"{gpus}xA100-80GB"], check=True, stdout=sys.stderr)
        yield
    finally:
        subprocess.run([raysched, "down", "--cancel"], check=False, stdout=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)


Call = Callable[[], Any]


def calls_for(mode: str, work_ms: float) -> int:
    """How many calls a cell makes."""
    if mode == "1000 at once":
        return 1000
    running = MODES[mode]
    return min(300 * running, max(10 * running, int(CELL_S * running * 1000 / max(work_ms, 1))))


def rate(call: Call, mode: str, calls: int) -> float:
    """Calls a second."""
    import ray

    start = time.perf_counter()
    if mode == "1000 at once":
        ray.get([call() for _ in range(calls)])
    else:
        running = [call() for _ in range(min(MODES[mode], calls))]
        for _ in range(calls - len(running)):
            done, running = ray.wait(running)
            ray.get(done)
            running.append(call())
        ray.get(running)
    return calls / (time.perf_counter() - start)


def nap(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


def warm(call: Callable[[float], Any]) -> None:
    """Have as many workers as fit."""
    import ray

    for _ in range(3):
        ray.get([call(0.1) for _ in range(3 * SLOTS)])


def wait_free() -> None:
    """Wait until raysched holds nothing in Ray any more, so that plain tasks have all GPUs."""
    import ray

    while ray.available_resources().get("GPU", 0) < GPUS:
        time.sleep(0.2)


def compare(works: list[float], modes: list[str], repeats: int) -> list[dict[str, Any]]:
    """The rates of both kinds in all cells."""
    import ray

    import raysched

    share = GPUS / SLOTS
    plain = ray.remote(max_calls=1_000_000)(nap).options(num_gpus=share, num_cpus=0)
    decorated = raysched.remote(gpu_fraction=share)(nap)
    cells = [(mode, work) for mode in modes for work in works]
    seen: dict[tuple[str, float, str], list[float]] = {}
    for repeat in range(repeats):
        for kind, function in (("plain", plain), ("decorated", decorated)):
            wait_free()
            warm(function.remote)
            time.sleep(SETTLE_S)
            for mode, work in cells:
                warm(function.remote)
                seconds = work / 1000
                found = rate(lambda f=function, s=seconds: f.remote(s), mode, calls_for(mode, work))
                seen.setdefault((mode, work, kind), []).append(found)
        print(f"repeat {repeat + 1} of {repeats} done", file=sys.stderr)
    return [_row(mode, work, seen) for mode, work in cells]


def _row(mode: str, work: float, seen: dict[tuple[str, float, str], list[float]]) -> dict[str, Any]:
    plain, decorated = seen[mode, work, "plain"], seen[mode, work, "decorated"]
    return {
        "mode": mode,
        "work_ms": work,
        "plain_per_s": statistics.median(plain),
        "decorated_per_s": statistics.median(decorated),
        "ratio": statistics.median(decorated) / statistics.median(plain),
        "runs": {"plain": plain, "decorated": decorated},
    }


def busy_shares(calls: int, work_ms: float) -> dict[str, Any]:
    """How busy the shares are from the first call's start to the last one's end, the cold start included in
    neither. `idle_at_end_ms` is how long the first share to run out of calls was idle."""
    import ray

    import raysched

    @raysched.remote(gpu_fraction=GPUS / BUSY_SLOTS)
    def work(seconds: float) -> tuple[str, float, float]:
        start = time.time()
        time.sleep(seconds)
        return os.environ["RAYSCHED_LEASE"], start, time.time()

    wait_free()
    for _ in range(3):
        ray.get([work.remote(0.1) for _ in range(3 * BUSY_SLOTS)])
    ray.get([work.remote(work_ms / 1000) for _ in range(10 * BUSY_SLOTS)])
    found = ray.get([work.remote(work_ms / 1000) for _ in range(calls)])
    start, end = min(s for _, s, _ in found), max(e for _, _, e in found)
    last: dict[str, float] = {}
    for lease, _, ended in found:
        last[lease] = max(ended, last.get(lease, 0))
    return {
        "calls": calls,
        "work_ms": work_ms,
        "shares": len(last),
        "busy": sum(e - s for _, s, e in found) / (len(last) * (end - start)),
        "idle_at_end_ms": 1000 * (end - min(last.values())),
    }


def latency(calls: int) -> dict[str, Any]:
    """How long `.remote()` takes while another lease holds every GPU."""
    import ray

    import raysched

    waiting = raysched.remote(gpu_fraction=GPUS / SLOTS)(nap)
    wait_free()
    with raysched.lease(gpus=GPUS):
        took: list[float] = []
        refs: list[Any] = []
        for _ in range(calls):
            start = time.perf_counter()
            refs.append(waiting.remote(0))
            took.append(1000 * (time.perf_counter() - start))
    ray.get(refs)
    took.sort()
    return {
        "calls": calls,
        "median_ms": statistics.median(took),
        "p99_ms": took[int(0.99 * len(took))],
        "max_ms": took[-1],
    }


def show(result: dict[str, Any]) -> None:
    """The figures as text."""
    print(f"{'way of calling':15} {'work':>7} {'plain/s':>9} {'decorated/s':>12} {'ratio':>6}")
    for row in result["cells"]:
        print(
            f"{row['mode']:15} {row['work_ms']:>4g} ms {row['plain_per_s']:9.0f} "
            f"{row['decorated_per_s']:12.0f} {row['ratio']:6.2f}"
        )
    busy, late = result["busy"], result["latency"]
    print(
        f"\n{busy['calls']} calls of {busy['work_ms']:g} ms at once: {busy['shares']} shares "
        f"{busy['busy']:.1%} busy, the first one done {busy['idle_at_end_ms']:.0f} ms before the end"
    )
    print(
        f".remote() with no GPU free: median {late['median_ms']:.2f} ms, "
        f"99 % within {late['p99_ms']:.2f} ms, at most {late['max_ms']:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--works", default="0,1,10,100", help="milliseconds of work, with commas")
    parser.add_argument("--modes", default=",".join(MODES), help="ways of calling, with commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1000, help="calls for the two further figures")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with cluster(GPUS):
        from raysched.python.connection import connect

        connect()
        works = [float(work) for work in args.works.split(",")]
        result = {
            "cells": compare(works, args.modes.split(","), args.repeats),
            "busy": busy_shares(args.calls, 20),
            "latency": latency(args.calls),
        }
    print(json.dumps(result, indent=1)) if args.json else show(result)


if __name__ == "__main__":
    main()
