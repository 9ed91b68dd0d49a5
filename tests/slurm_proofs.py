"""Arrays and faults on a real Slurm, as `slurm_site.py` starts it; too long for the suite.

python tests/slurm_proofs.py array [COUNT]     an array by raysched's backend, and by bare sbatch
python tests/slurm_proofs.py submit [COUNT]    an array submitted to a whole raysched, and by bare sbatch
python tests/slurm_proofs.py ends              each way in which Slurm ends a job, as it is told (root)
python tests/slurm_proofs.py timed             what Slurm does by its clock, through a whole raysched
python tests/slurm_proofs.py faults [COUNT]    so many jobs; slurmctld and slurmd are killed at random
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from running import System, wait_until
from slurm_site import NODES, SlurmSite

from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.commands import CommandController
from raysched.backends.slurm.script import Defaults
from raysched.core.site import NOWHERE, Demand
from raysched.core.work import Launch, Order, Run, Seen

CPU = Demand("", "", 0, 1, False, 10_000, 0, 0)
COMMAND = "sleep 1; exit $((RAYSCHED_ARRAY_INDEX % 7))"
LONG_S = 45.0
"""A controller that is away for longer than it takes to give up a job that it no longer knows."""
LIMIT_S = 900.0
"""How long nothing may end."""


def launches(group: str, count: int, entrypoint: str, attempt: int = 1) -> list[Launch]:
    """The elements of an array."""
    return [
        Launch(
            Run(f"{group}.{index}", attempt, 0),
            f"{group}.{index}.{attempt}",
            NOWHERE,
            f"sweep[{index}]",
            entrypoint,
            (("RAYSCHED_ARRAY_INDEX", str(index)), ("RAYSCHED_RUN", f"{group}.{index}.{attempt}.0")),
            None,
            order=Order(CPU),
        )
        for index in range(count)
    ]


async def until_ended(backend: SlurmBackend, wanted: list[Launch]) -> dict[Run, Seen]:
    """How each run ended. What is not seen is started, as the reconciler does."""
    starting: dict[Run, asyncio.Task[None]] = {}
    deadline = time.monotonic() + LIMIT_S
    while True:
        seen = {each.run: each for each in await backend.observe()}
        for launch in wanted:
            task = starting.get(launch.run)
            if launch.run not in seen and (task is None or task.done()):
                starting[launch.run] = asyncio.create_task(backend.start(launch))
        ended = {run: one for run, one in seen.items() if one.state not in ("queued", "running")}
        if len(ended) == len(wanted):
            return ended
        assert time.monotonic() < deadline, Counter(one.state for one in seen.values())
        await backend.changed(5.0)


def array(site: SlurmSite, folder: Path, count: int) -> None:
    """Time an array both ways."""
    controller, plain = CommandController(environment=site.env), Defaults(python="/usr/bin/python3")
    backend = SlurmBackend(folder, controller, dict(os.environ), folder, defaults=plain)
    start = time.monotonic()
    ended = asyncio.run(until_ended(backend, launches("arr", count, COMMAND)))
    ours = time.monotonic() - start
    codes = {int(run.job.partition(".")[2]): one.code for run, one in ended.items()}
    assert codes == {index: index % 7 for index in range(count)}
    told(site, folder, count, ours)


def submit(site: SlurmSite, folder: Path, count: int) -> None:
    """Time an array that is submitted to a running raysched, from the submission to the last known end."""
    system = with_site(site, folder, "python: /usr/bin/python3")
    try:
        system.up()
        client = system.client()
        wait_until(lambda: "n3" in nodes(system), "the site is there")
        resources = {"gpus": 0, "cpus": 1}
        spec = {"name": "sweep", "entrypoint": COMMAND, "working_dir": None, "backend": "slurm"}
        start = time.monotonic()
        first = client.submit([{**spec, "array": count, "resources": resources}], [None])[0]
        group = first["group"]
        while any(not job["ended"] for job in client.job(group)):
            time.sleep(1)
        ours = time.monotonic() - start
        codes = {job["index"]: job["exit_code"] for job in client.job(group)}
        assert codes == {index: index % 7 for index in range(count)}
        arrays = {line.split("_")[0] for line in site.jobs("%i %j") if group in line}
        print(f"{len(arrays)} array(s) in Slurm")
    finally:
        system.close()
    told(site, folder, count, ours)


def with_site(site: SlurmSite, folder: Path, words: str) -> System:
    """A system, not yet up, with that site and these words about it."""
    system = System(None)
    system.env["SLURM_CONF"] = site.env["SLURM_CONF"]
    system.configure(f"backends: {{slurm: {{folder: {folder}/shared, {words}}}}}")
    return system


def nodes(system: System) -> set[str]:
    """The names of its nodes."""
    return {node["name"] for node in system.client().gpus()["nodes"]}


def told(site: SlurmSite, folder: Path, count: int, ours: float) -> None:
    """Time the same by bare sbatch, and print both."""
    script = folder / "bare.sh"
    script.write_text("#!/bin/sh\nsleep 1; exit $((SLURM_ARRAY_TASK_ID % 7))\n")
    options = ["--output=/dev/null", "--ntasks-per-node=1", "--cpus-per-task=1", f"--array=0-{count - 1}"]
    start = time.monotonic()
    subprocess.run(
        ["sbatch", "--wait", *options, str(script)], env=site.env, check=False, capture_output=True
    )
    bare = time.monotonic() - start
    print(f"{count} elements: raysched {ours:.1f} s, bare sbatch --wait {bare:.1f} s: {ours / bare:.2f} x")


WAIT = "while :; do sleep 0.1; done"
FILL = "/usr/bin/python3 -c 'print(len(bytearray(400 << 20)))'"
ENDS = {
    "memory": (f"{FILL}; exit $?", {"memory": 100}, "exited 137 ran out of memory on n"),
    "time": (WAIT, {"limit": 60_000}, "exited 143 ran longer than its max_runtime of 60 s"),
    "warned": (
        f"trap 'echo warned; exit 9' USR1; {WAIT}",
        {"limit": 60_000, "signal": "USR1@30"},
        "exited 9 ",
    ),
    "node": (WAIT, {"kind": "gpu", "count": 2}, "taken None a node of it failed on n"),
    "mps": ("exit $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", {"kind": "mps", "count": 50}, "exited 50 "),
}
"""What is run, what it asks for, and how its end is told."""


def ends(site: SlurmSite, folder: Path) -> None:
    """Each of them at once; one node is lost."""
    asked: dict[str, Launch] = {}
    for name, (command, fields, _) in ENDS.items():
        (launch,) = launches(f"{name}x", 1, command)
        demand = replace(CPU, **{key: value for key, value in fields.items() if key in Demand.__slots__})
        where = ("options", (f"--nodelist={'n2' if name == 'node' else 'n1'}",))
        options = (where, *((key, value) for key, value in fields.items() if key == "signal"))
        asked[name] = replace(launch, order=Order(demand, fields.get("limit"), options))
    backend = SlurmBackend(folder / "runs", CommandController(environment=site.env), dict(os.environ), folder)

    async def run() -> dict[Run, Seen]:
        going = asyncio.create_task(until_ended(backend, list(asked.values())))
        while not (
            node := site.run("squeue", "-h", "-t", "R", "-n", named(asked["node"]), "-o", "%N").strip()
        ):
            await asyncio.sleep(0.5)
        await asyncio.sleep(2)
        await asyncio.to_thread(site.lose_node, node)
        return await going

    def named(launch: Launch) -> str:
        return f"rs-{(folder / 'runs' / '.tag').read_text()}-{launch.run}"

    ended = asyncio.run(run())
    wrong = 0
    for name, (_, _, expected) in ENDS.items():
        one = ended[asked[name].run]
        said = f"{one.state} {one.code} {one.reason}"
        wrong += not said.startswith(expected)
        print(f"{name}: {said}")
    sys.exit(bool(wrong))


SAVE = "trap 'echo warned; exit 9' USR1; echo ready; while :; do sleep 0.1; done"
GO_ON = f"""
echo "attempt $RAYSCHED_ATTEMPT"
trap 'echo saved; exit 9' TERM
[ $RAYSCHED_ATTEMPT = 2 ] || {{ {WAIT}; }}
"""
CALL = """
import ray, raysched

@raysched.remote(gpus=1, gpu_type="H100")
def there():
    return "called"

print(ray.get(there.remote()))
"""


def timed(site: SlurmSite, folder: Path) -> None:
    """A warning before the time limit, one before a preemption, and a node that leaves raysched's Ray."""
    system = with_site(site, folder, "simulate: H100-80GB")
    try:
        system.up()
        wait_until(lambda: "n3" in nodes(system), "the site is there")
        (lease,) = system.json("lease", "--gpus", "1", "--memory", "2GiB", "--for", "5m")["jobs"]
        asked = {"backend": "slurm", "resources": {"gpus": 0}}
        limit = system.submit("limit", SAVE, **asked, max_runtime="1m", slurm={"signal": "USR1@30"})
        warned(system, limit)
        preempted(system)
        left(site, system, lease["id"])
    finally:
        system.close()


def warned(system: System, id: str) -> None:
    """Slurm signals the command half a minute before its minute is over, and it ends by itself."""
    end = system.ended(id)
    ran = end["attempts"][-1] if end.get("attempts") else end
    assert (end["state"], end["exit_code"]) == ("failed", 9), end
    assert system.output(id) == "ready\nwarned\n", system.output(id)
    print(f"limit: warned, exit code 9: {ran.get('reason') or end['why']}")


def preempted(system: System) -> None:
    """Slurm tells a command whose nodes it takes, and leaves it time; it runs again as its next attempt."""
    both = {"backend": "slurm", "resources": {"gpus": 3, "gpu_type": "a100"}}
    low = system.submit("low", GO_ON, **both, slurm={"partition": "low"})
    wait_until(lambda: system.output(low).count("attempt 1\n") == 2, "it has begun")
    high = system.submit("high", "true", **both, slurm={"partition": "main"})
    assert system.ended(high)["state"] == "succeeded"
    end = system.ended(low)
    assert (end["state"], end["attempt"]) == ("succeeded", 2), end
    first = system.cli("logs", low, "--attempt", "1").stdout
    assert first.count("saved\n") == 2, first
    assert system.output(low) == "attempt 2\n" * 2, system.output(low)
    print("preemption: told, and went on as attempt 2")


def left(site: SlurmSite, system: System, id: str) -> None:
    """The node is there for calls, and gone before Slurm would end it."""
    wait_until(lambda: any(name.endswith(f"-{id}.1") for name in nodes(system)), "the node is in Ray", 240)
    assert system.python("-c", CALL).stdout == "called\n"
    wait_until(lambda: system.client().job(id)[0]["ended"], "it has ended", 400)
    assert system.ended(id)["state"] == "succeeded"
    wait_until(lambda: not any(name.endswith(f"-{id}.1") for name in nodes(system)), "the node is gone")
    (state,) = [line.split()[-1] for line in site.jobs("%j %T") if f"-{id}.1.0" in line]
    assert state == "COMPLETED", state
    print(f"lease: its node did a call, and left before its time was over; Slurm says {state}")


def faults(site: SlurmSite, folder: Path, count: int, seed: str) -> None:
    """Kill Slurm's daemons at random while jobs run; a run that Slurm takes away gets another attempt."""
    rng = random.Random(seed)
    done = threading.Event()
    killed: Counter[str] = Counter()
    drained: list[str] = []

    def havoc() -> None:
        while not done.wait(rng.uniform(0.5, 5)):
            if rng.random() < 0.5:
                killed["slurmctld"] += 1
                site.kill_controller()
                time.sleep(rng.choice((0, 1, 2, LONG_S)))
                site.start_controller()
            else:
                killed["slurmd"] += 1
                node = rng.choice(NODES)
                site.kill_node(node)
                time.sleep(rng.uniform(0, 2))
                site.start_node(node)
            resume()

    def resume() -> None:
        """A controller that lost a job gives its id to another one, and drains the node that still runs the
        first: an administrator has to see to that."""
        for line in site.run("sinfo", "-hN", "-o", "%N %E", check=False).splitlines():
            node, _, reason = line.partition(" ")
            if "Duplicate jobid" in reason:
                drained.append(node)
                site.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    marks = folder / "marks"
    marks.mkdir()
    mark = f'echo x >> "{marks}/$RAYSCHED_RUN"; '
    backend = SlurmBackend(folder / "runs", CommandController(environment=site.env), dict(os.environ), folder)
    thread = threading.Thread(target=havoc)
    thread.start()
    try:
        last, attempts = asyncio.run(all_attempts(backend, count, mark))
    finally:
        done.set()
        thread.join()
    wrong = {index: one for index, one in last.items() if one.code != index % 7}
    twice = [path.name for path in marks.iterdir() if path.read_text() != "x\n"]
    print(f"seed {seed}: {count} jobs, {sum(attempts.values())} attempts, killed {dict(killed)}")
    print(f"nodes that Slurm drained for a job id that it gave away twice: {len(drained)}")
    print(f"wrong ends: {len(wrong)} {list(wrong.items())}; runs started twice: {len(twice)} {twice[:3]}")
    sys.exit(bool(wrong or twice))


async def all_attempts(backend: SlurmBackend, count: int, mark: str) -> tuple[dict[int, Seen], Counter[int]]:
    """The last end of each job, and how many attempts it had. They come one after the other."""
    last: dict[int, Seen] = {}
    attempts: Counter[int] = Counter()

    async def one(index: int) -> None:
        await asyncio.sleep(index * 0.3)
        for attempt in range(1, 20):
            attempts[index] += 1
            (launch,) = launches(f"job{index}", 1, f"{mark}sleep 2; exit {index % 7}", attempt)
            launch = replace(launch, run=Run(f"job{index}", attempt, 0), lease=f"job{index}.{attempt}")
            launch = replace(launch, env=(("RAYSCHED_RUN", str(launch.run)),))
            wanted[launch.run] = launch
            while launch.run not in ends:
                await asyncio.sleep(0.1)
            last[index] = ends[launch.run]
            if ends[launch.run].state != "taken":
                return

    wanted: dict[Run, Launch] = {}
    ends: dict[Run, Seen] = {}
    starting: dict[Run, asyncio.Task[None]] = {}
    jobs = asyncio.gather(*(one(index) for index in range(count)))
    deadline = time.monotonic() + LIMIT_S
    while not jobs.done():
        seen = {each.run: each for each in await backend.observe()}
        for run, launch in list(wanted.items()):
            task = starting.get(run)
            if run not in seen and (task is None or task.done()):
                starting[run] = asyncio.create_task(backend.start(launch))
        new = {run: each for run, each in seen.items() if each.state not in ("queued", "running")}
        if new.keys() - ends.keys():
            deadline = time.monotonic() + LIMIT_S
        ends.update(new)
        assert time.monotonic() < deadline, [each for each in seen.values() if each.run not in ends][:5]
        await backend.changed(1.0)
    await jobs
    return last, attempts


def main() -> None:
    """See the top."""
    what = sys.argv[1] if len(sys.argv) > 1 else "array"
    count = (
        int(sys.argv[2]) if len(sys.argv) > 2 else {"array": 1000, "submit": 1000, "faults": 200}.get(what, 0)
    )
    sites = {"ends": lambda: SlurmSite(8, memory=True), "timed": lambda: SlurmSite(grace=20)}
    site = sites.get(what, SlurmSite)()
    try:
        with tempfile.TemporaryDirectory(prefix="slurm-runs-") as folder:
            if what == "array":
                array(site, Path(folder), count)
            elif what == "ends":
                ends(site, Path(folder))
            elif what == "timed":
                timed(site, Path(folder))
            elif what == "submit":
                submit(site, Path(folder), count)
            else:
                faults(site, Path(folder), count, os.environ.get("SEED") or str(time.time_ns() % 10**6))
    finally:
        site.close()


if __name__ == "__main__":
    main()
