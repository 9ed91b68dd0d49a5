"""The long proofs, one after the other: `make torture`, or `python tests/torture.py --seed 7 --only crashes`.

A seed tells what is done, so that a failure can be had again; without one it is another each time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tests.backends.container_kills import VICTIMS, kills  # noqa: E402
from tests.crash import outside  # noqa: E402
from tests.fake_nvml.build import compile_fake  # noqa: E402
from tests.gpu.streams import errors, stream  # noqa: E402
from tests.podman import podman  # noqa: E402
from tests.simulation.shards import simulations, story  # noqa: E402

CORES = os.cpu_count() or 1
CRASHES = 10_000
PIECE = 500
"""Crashes in a process of their own, with a seed of their own."""
EXAMPLES = 3_000
EVENTS = 1_000_000
KILLS = 400
STEPS = 10_000
FAULTS = 500
JOBS = 200


def crashes(seed: str, count: int) -> str:
    """A ledger with its backends, killed so many times."""
    pieces = [f"{seed}-{number}" for number in range(-(-count // PIECE))]
    told: Counter[str] = Counter()
    with ThreadPoolExecutor(CORES) as pool:
        for piece in pool.map(lambda piece: outside.stories(piece, PIECE), pieces):
            told.update({name: value for name, value in piece.items() if name != "seed"})
    kinds = ("step", "moment", "write", "power", "broken disk")
    ends = ", ".join(f"{told[kind]} {kind}" for kind in kinds)
    return (
        f"{told['crashes']} crashes ({ends}) in {told['stories']} stories: {told['submissions']} "
        f"submissions, {told['leases']} leases and {told['starts']} runs, none lost and none twice"
    )


def starts(seed: str, _: int) -> str:
    """The start of a run, cut short at every line."""
    told = outside.starts(seed, 0)
    return f"{told['crashes']} starts and stops of runs cut short, no command ran twice"


def model(seed: str, _: int) -> str:
    """The core beside its model."""
    number = str(random.Random(seed).getrandbits(32))
    command = [sys.executable, "-m", "pytest", "-q", "tests/core/test_model.py", "--timeout=0"]
    done = subprocess.run(
        [*command, f"--hypothesis-seed={number}"],
        cwd=ROOT,
        env=os.environ | {"MODEL_EXAMPLES": str(EXAMPLES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return f"{EXAMPLES} random lives of the core agree with the model"


def events(seed: str, _: int) -> str:
    """All of it in made-up time, amid everything that can go wrong."""
    first = random.Random(seed).getrandbits(32)
    happened = seeds = 0
    for result in simulations(first, EVENTS):
        assert not result.problem, story(result)
        happened, seeds = happened + result.events, seeds + 1
    return f"{happened} events in {seeds} simulations from seed {first} on: every promise was kept"


def gpus(seed: str, _: int) -> str:
    """Leases of every kind on GPUs that a fake NVML has."""
    with TemporaryDirectory() as folder:
        library = compile_fake(Path(folder))
        done = stream(library, Path(folder), seed, STEPS)
        assert done.returncode == 0, done.stderr[-5000:]
        failing = errors(library, Path(folder), "all")
    assert failing.returncode == 0, failing.stderr[-5000:]
    told, tried = json.loads(done.stdout), json.loads(failing.stdout)
    assert not tried["wrong"], "\n".join(tried["wrong"][:10])
    return (
        f"{STEPS} steps with {told['cuts']} cuts: after each the GPUs were as the ledger thought; "
        f"{len(tried['calls'])} calls failed with {tried['codes']} codes, and nobody lost anything"
    )


def containers(seed: str, _: int) -> str:
    """Runs in containers of which one process is killed at a random moment."""
    with podman() as made, TemporaryDirectory() as folder:
        told = kills(made, Path(folder), seed, KILLS)
    ends = ", ".join(f"{told[victim]} {victim}" for victim in VICTIMS)
    return f"{KILLS} runs in containers ({ends} killed): none began twice, nothing was left of any"


def hosts(seed: str, _: int) -> str:
    """Jobs on hosts behind SSH, amid everything that can go wrong there; and many on many of them."""
    said: list[str] = []
    for script, *options in (("storm.py", "--faults", f"{FAULTS}"), ("crowd.py", "--hosts", "100")):
        command = [sys.executable, f"tests/backends/over_ssh/{script}", *options, "--seed", seed]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr[-5000:]
        said.append(done.stdout.splitlines()[-1])
    return "; ".join(said)


def slurm(seed: str, _: int) -> str:
    """Jobs at a real Slurm whose daemons are killed at random moments; each way in which it ends a job;
    what it does by its clock; and all that a backend has to do, by slurmrestd."""
    proofs = "tests/slurm_proofs.py"
    said: list[str] = []
    for command in (
        [proofs, "faults", f"{JOBS}"],
        [proofs, "ends"],
        [proofs, "timed"],
        ["-m", "pytest", "-q", "tests/backends/on_slurm/rest_conformance.py"],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"SEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        said.append(done.stdout)
    faults, ends, timed, rest = (each.splitlines() for each in said)
    return f"{faults[0]}; {len(ends)} ends told; {len(timed)} things in time; slurmrestd: {rest[-1]}"


def kubelet(_: str, __: int) -> str:
    """Jobs and Ray jobs through a whole raysched on a real kubelet."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "tests/system/test_kubelet.py"],
        cwd=ROOT,
        env=os.environ | {"RAYSCHED_KUBELET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    lines = done.stdout.splitlines()
    return "; ".join(line for line in lines if line.startswith("SKIPPED") or line is lines[-1])


def mutants(_: str, __: int) -> str:
    """One broken rule after the other."""
    done = subprocess.run([sys.executable, "tests/mutants/run.py"], cwd=ROOT, check=False)
    assert done.returncode == 0, "a mutant survives, or the tests fail without any"
    return "every mutant was noticed"


PROOFS: dict[str, Callable[[str, int], str]] = {
    "crashes": crashes,
    "starts": starts,
    "model": model,
    "events": events,
    "gpus": gpus,
    "containers": containers,
    "hosts": hosts,
    "slurm": slurm,
    "kubelet": kubelet,
    "mutants": mutants,
}


def main() -> int:
    """0: all hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default=f"{random.SystemRandom().getrandbits(32)}")
    parser.add_argument("--crashes", type=int, default=CRASHES)
    parser.add_argument("--only", choices=sorted(PROOFS), action="append")
    asked = parser.parse_args()
    print(f"seed {asked.seed}; the same again: make torture SEED={asked.seed}", flush=True)
    failed = False
    for name, proof in PROOFS.items():
        if asked.only and name not in asked.only:
            continue
        began = time.monotonic()
        try:
            said = proof(asked.seed, asked.crashes)
        except AssertionError as wrong:
            said, failed = f"FAILED: {wrong}", True
        print(f"{name:10} {time.monotonic() - began:7.0f} s  {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
