"""From a checked job file to a request: whole numbers only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raysched.core.compile import compile_job, compile_request
from raysched.core.request import Request
from raysched.specs.job import JobSpec, check_job


def job(resources: dict[str, Any], **fields: Any) -> JobSpec:
    return check_job({"entrypoint": "true", "resources": resources, **fields})


@pytest.mark.parametrize(
    ("resources", "request_"),
    [
        ({}, Request()),
        ({"gpus": 0, "cpus": 2}, Request(gpus=0, cpus=20_000)),
        ({"gpus": 0}, Request(gpus=0, cpus=10_000)),
        ({"gpus": 0, "cpus": 0}, Request(gpus=0)),
        ({"gpus": 4, "nodes": 2}, Request(gpus=4, nodes=2)),
        ({"gpu_fraction": 1}, Request()),
        ({"gpus": 3, "gpu_fraction": 0.5}, Request(gpus=3, share=5000, sharing="fraction")),
        ({"gpu_memory": "10GB"}, Request(memory=9537, sharing="fraction")),
        ({"gpu_fraction": 0.25, "gpu_memory": "1GiB"}, Request(share=2500, memory=1024, sharing="fraction")),
        ({"gpu_type": "A100", "memory": "24GB"}, Request(gpu_types=("A100",), host_memory=22_889)),
        (
            {"gpu_memory": "1GiB", "isolation": "hard"},
            Request(memory=1024, sharing="fraction", isolation="hard", or_mig=True, or_mps=True),
        ),
        (
            {"gpu_memory": "1GiB", "isolation": "hard", "sharing": "fraction"},
            Request(memory=1024, sharing="fraction", isolation="hard"),
        ),
        (
            {"gpu_memory": "1GiB", "isolation": "hard", "use_mig": False},
            Request(memory=1024, sharing="fraction", isolation="hard", or_mps=True),
        ),
        (
            {"gpu_memory": "1GiB", "isolation": "hard", "gpus": 2},
            Request(gpus=2, memory=1024, sharing="fraction", isolation="hard"),
        ),
        (
            {"gpu_fraction": 0.5, "isolation": "hard", "gpus": 2, "nodes": 2},
            Request(gpus=2, nodes=2, share=5000, sharing="fraction", isolation="hard", or_mps=True),
        ),
        ({"mig_profile": "1G.10GB"}, Request(sharing="mig", mig_profile="1g.10gb")),
        ({"use_mig": True, "gpu_memory": "5GiB"}, Request(memory=5120, sharing="mig")),
        ({"sharing": "time_slice"}, Request(sharing="time_slice")),
        ({"sharing": "time_slice", "gpu_memory": "5GiB"}, Request(memory=5120, sharing="time_slice")),
        ({"sharing": "mps", "gpu_fraction": 0.5}, Request(share=5000, sharing="mps")),
    ],
)
def test_a_request(resources: dict[str, Any], request_: Request) -> None:
    """Cases spec-01 and spec-03: shares in ten-thousandths of each GPU, memory in MiB of each."""
    assert compile_request(job(resources)) == replace(request_, limitable=True)


def test_the_kernel_limits_no_container() -> None:
    asked = compile_request(job({}, image="python:3.12"))
    assert (asked.container, asked.limitable) == (True, False)


@pytest.mark.parametrize(
    ("backend", "backends"),
    [("vm", ("vm",)), ("ray", ("ray",)), ("slurm", ("slurm",)), ("auto", ("vm", "ray"))],
)
def test_which_backends_may_launch_it(backend: str, backends: tuple[str, ...]) -> None:
    """auto: this machine's processes first."""
    assert compile_request(job({}, backend=backend)).backends == backends


def test_a_job_to_submit() -> None:
    """Times in milliseconds, and the spec as JSON; an array of one is a plain job."""
    spec = job({}, name="x", max_runtime="2m", retries=2, priority=7, queue="a/b", vm={"grace": "1s"})
    asked = compile_job(spec, "j1", "digest")
    assert (asked.id, asked.name, asked.kind, asked.array, asked.package) == (
        "j1",
        "x",
        "command",
        None,
        "digest",
    )
    assert (asked.max_runtime, asked.grace, asked.retries, asked.priority) == (120_000, 1000, 2, 7)
    assert check_job(asked.spec) == spec
    assert compile_job(job({}, array=3), "j2", None).array == 3
