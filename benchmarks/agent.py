"""What a node agent costs its node: CPU time of the sampling, and of the whole agent in a running system,
beside that of a Ray actor which does nothing.

    python benchmarks/agent.py                # 8 GPUs with two processes each, once a second, for a minute
    python benchmarks/agent.py --system       # the agent of a running raysched too (starts one)

The calls are the product's own, through pynvml, on the library that the tests use in place of NVIDIA's (it is
compiled here). What a real driver takes for a call is not in these figures. Printed are percent of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
TICKS = os.sysconf("SC_CLK_TCK")
IDLE = """
import ray

class Idle:
    async def ping(self):
        return True

ray.init(namespace="benchmark", log_to_driver=False)
options = {"name": "idle", "lifetime": "detached", "num_cpus": 0, "max_concurrency": 1000}
idle = ray.remote(Idle).options(**options).remote()
assert ray.get(idle.ping.remote())
"""
"""Starts an actor as the agent is one, with nothing to do."""


def machine(folder: Path, gpus: int) -> list[subprocess.Popen[bytes]]:
    """A machine with so many busy A100, and two processes on each; this process and its children see it."""
    sys.path.insert(0, str(TESTS))
    from fake_nvml import fake_state
    from fake_nvml.build import compile_fake

    lines, processes = [fake_state.DRIVER], []
    for at in range(gpus):
        lines += fake_state.gpu(at, f"GPU-{at:04}", "A100-80GB", used=30_000)
        lines += [f"busy {at} 70", f"watts {at} 300", f"celsius {at} 60"]
        for _ in range(2):
            processes.append(subprocess.Popen(["sleep", "infinity"]))
            pid = processes[-1].pid
            lines += [f"process {at} {pid} 10000 compute", f"active {at} {pid} 35"]
    (folder / "state").write_text("\n".join(lines))
    os.environ["FAKE_NVML_STATE"] = str(folder / "state")
    os.environ["LD_LIBRARY_PATH"] = str(compile_fake(folder))
    return processes


def sampling(gpus: int, seconds: int) -> float:
    """The CPU time of one sample of all GPUs, in ms; in a process of its own, which finds the library."""
    code = f"from agent import measure; print(measure({gpus}, {seconds}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def measure(gpus: int, samples: int) -> float:
    """Take samples one after the other; the mean CPU time of one in ms."""
    from raysched.core.measured import USUAL
    from raysched.gpu.driver import Sample, open_driver
    from raysched.gpu.meter import Meter
    from raysched.gpu.owners import Owners

    driver, owners, meter = open_driver(None, "node"), Owners(), Meter("node", USUAL)
    assert len(driver.discover().gpus) == gpus

    def take(now: int) -> None:
        uses = driver.sample()
        users = owners.of(process.pid for use in uses.values() for process in use.processes)
        meter.take(Sample(uses, users), (), now)

    take(0)
    begun = time.process_time()
    for at in range(samples):
        take((at + 1) * 1000)
    return (time.process_time() - begun) / samples * 1000


def agent(seconds: int) -> dict[str, float]:
    """The CPU time, in percent of a core, of the agent's process in a running system that samples the GPUs
    once a second, and of the idle actor's."""
    from running import System, wait_until

    system = System(None)
    config = Path(system.env["RAYSCHED_CONFIG"])
    config.write_text(f"{config.read_text()}policy: {{watchdog: {{sample: 1s}}}}\n")
    system.env |= {key: os.environ[key] for key in ("FAKE_NVML_STATE", "LD_LIBRARY_PATH")}
    try:
        system.up()
        wait_until(lambda: system.client().gpus()["nodes"], "the GPUs are there")
        system.env["RAY_AUTH_MODE"] = "token"
        system.python("-c", IDLE)
        time.sleep(10)  # until all that is done once is done
        pids = {name: next(iter(system.processes(f"ray::{name}"))) for name in ("NodeAgent", "Idle")}
        before, begun = {name: _ticks(pid) for name, pid in pids.items()}, time.monotonic()
        time.sleep(seconds)
        passed = (time.monotonic() - begun) * TICKS / 100
        return {name: (_ticks(pid) - before[name]) / passed for name, pid in pids.items()}
    finally:
        system.close()


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--gpus", type=int, default=8)
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--system", action="store_true", help="start a raysched and look at its agent")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    with TemporaryDirectory() as folder:
        processes = machine(Path(folder), chosen.gpus)
        try:
            ms = sampling(chosen.gpus, chosen.seconds)
            answer: dict[str, Any] = {"gpus": chosen.gpus, "sample_ms": ms, "sampling_percent": ms / 10}
            if chosen.system:
                used = agent(chosen.seconds)
                answer["agent_percent"], answer["idle_actor_percent"] = used["NodeAgent"], used["Idle"]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if chosen.json:
        print(json.dumps(answer, indent=2))
        return
    print(f"a sample of {chosen.gpus} GPUs takes {ms:.2f} ms of CPU time: {ms / 10:.2f} % of a core at 1 Hz")
    if chosen.system:
        whole, idle = answer["agent_percent"], answer["idle_actor_percent"]
        print(f"the agent's process: {whole:.2f} %; an idle Ray actor: {idle:.2f} %, so {whole - idle:.2f} %")


if __name__ == "__main__":
    main()
