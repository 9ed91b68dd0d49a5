"""Ray inside Slurm jobs: on nodes of their own, from start to end, and beside one another."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from ordered import OrderedHands
from running import wait_until
from slurm_site import SlurmSite

from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.commands import CommandController
from raysched.core.site import NOWHERE
from raysched.core.work import Run, Seen

pytestmark = pytest.mark.ray

START_S = 130
"""How long the Ray of a job may take to start on a busy machine."""
SHAPE = {"nodes": 2, "kind": "gpu", "type": "a100", "count": 1, "cpus": 2, "memory": 2000, "ray": True}
DRIVER = """
import os, signal, sys, time
import ray

ray.init(log_to_driver=False)

@ray.remote(num_gpus=1)
class There:
    def where(self):
        return f"{os.environ['SLURMD_NODENAME']}:{os.environ['CUDA_VISIBLE_DEVICES']}"

two = [There.remote() for _ in range(2)]

def save(*_):
    print("saved by", *sorted(ray.get([one.where.remote() for one in two])), flush=True)
    sys.exit(5)

signal.signal(signal.SIGTERM, save)
print(len(ray.nodes()), "nodes", *sorted(ray.get([one.where.remote() for one in two])), flush=True)
while os.path.exists(sys.argv[1]):
    time.sleep(0.1)
sys.exit(7)
"""


@pytest.fixture
def hands(site: SlurmSite, tmp_path: Path) -> Iterator[OrderedHands]:
    """A backend on the site, whose jobs find this Ray."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])

    def make() -> SlurmBackend:
        controller = CommandController(environment=site.env)
        return SlurmBackend(tmp_path / "runs", controller, {"PATH": path, "HOME": str(tmp_path)}, tmp_path)

    made = OrderedHands(make, NOWHERE)
    yield made
    made.close()


def rays() -> set[str]:
    """The temporary folders of each Ray in a Slurm job, there or named by a process."""
    found = {str(path) for path in Path("/tmp").glob("rs-ray-*")}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.update(re.findall(r"/tmp/rs-ray-\w+", path.read_text(errors="replace")))
    return found


def told(hands: OrderedHands, run: Run, word: str) -> str:
    """The first line of a run's output that has the word in it."""

    def line() -> str | None:
        seen = hands.seen(run)
        assert seen is not None, "it was lost"
        assert seen.state in ("queued", "running"), f"{seen}: {hands.output(run).decode()}"
        return next((one for one in hands.output(run).decode().splitlines() if word in one), None)

    return wait_until(line, f"{run} says{word}", START_S)


def ended(hands: OrderedHands, run: Run) -> Seen:
    def end() -> Seen | None:
        seen = hands.seen(run)
        return seen if seen is not None and seen.state not in ("queued", "running") else None

    return wait_until(end, f"{run} has ended", START_S)


def test_jobs_with_ray_of_their_own_do_not_meet(hands: OrderedHands, tmp_path: Path) -> None:
    """Two at once on the same two nodes: each has its two GPUs and sees no other. One ends by itself, with
    its code; the other is told to end, and its Ray is there until it has saved its work. Nothing is left."""
    before = rays()
    (tmp_path / "driver.py").write_text(DRIVER)
    go_on = [tmp_path / "first", tmp_path / "second"]
    for path in go_on:
        path.touch()
    runs: list[Run] = []
    lines: list[str] = []
    for path in go_on:
        runs.append(hands.start(hands.order(f"exec python {tmp_path}/driver.py {path}", **SHAPE)))
        lines.append(told(hands, runs[-1], " nodes "))
    had = [line.partition("2 nodes ")[2].split() for line in lines]
    assert sorted(had[0] + had[1]) == ["n1:0", "n1:1", "n2:0", "n2:1"], lines
    assert [one.partition(":")[0] for one in had[0]] == ["n1", "n2"]
    go_on[0].unlink()
    assert ended(hands, runs[0]).code == 7
    hands.stop(runs[1], 200)
    end = ended(hands, runs[1])
    assert (end.code, end.reason) == (5, "stopped")
    assert f"saved by {' '.join(had[1])}" in hands.output(runs[1]).decode()
    assert rays() <= before


def test_without_ray_on_the_nodes_the_job_says_so(hands: OrderedHands) -> None:
    """Before anything else is done."""
    launch = hands.order("true", nodes=2, ray=True)
    launch = replace(launch, env=(*launch.env, ("PATH", "/usr/bin:/bin")))
    run = hands.start(launch)
    assert ended(hands, run).code == 1
    assert "there is no `ray` in the job's PATH on n" in hands.output(run).decode()
