"""Whatever goes wrong, and in whatever order: every promise is kept, and all comes to its end. `make torture`
does the same for 1,000,000 events."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.shards import story
from tests.simulation.simulation import simulate

ROOT = Path(__file__).parents[2]
FIXED = (6, 7, 202, 248, 2881770405)
"""A few that are always the same. In the last one a copy of a refused submission comes late, and is done."""


@pytest.mark.parametrize("seed", FIXED)
def test_whatever_goes_wrong_every_promise_is_kept_and_all_comes_to_its_end(seed: int) -> None:
    """No GPU has more on it than it can hold, no run starts twice, and every job that was acknowledged ends
    once, as it really did."""
    result = simulate(seed)
    assert not result.problem, story(result)
    assert result.events > 300


def test_the_same_holds_for_a_seed_that_nobody_has_tried() -> None:
    result = simulate(random.SystemRandom().getrandbits(32))
    assert not result.problem, story(result)


def test_a_seed_replays_exactly_in_any_process() -> None:
    """Event by event; not even the order of sets, which Python shuffles, has a part in it."""
    here = simulate(3)
    hashes = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    assert last_line("3", hashes) == f"seed 3: {here.events} events, digest {here.digest}"


def last_line(seed: str, hashes: str) -> str:
    """What the command tells of a seed in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.simulation", seed],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hashes},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-2]
