"""What a tenant is told, as a function of its lease and nothing else."""

from __future__ import annotations

import pytest

from raysched.core.environment import advice, job_variables, variables
from raysched.core.lease import Place, Slice
from raysched.core.mig import Cut
from raysched.core.request import Request
from raysched.core.work import Run
from tests.core.world import World, changed, node

QUARTER = Slice("GPU-a", 2500, 20_480, total=81_920)


def place(*slices: Slice) -> Place:
    return Place("node-a", slices, 0, 0)


def test_under_mps_only_the_gpu_that_is_seen_has_a_limit():
    slice = Slice("GPU-a", 3333, 20_000, pipe="/tmp/mps/GPU-a", total=81_920)
    env = variables("job.1", "mps", place(slice))
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert env["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/mps/GPU-a"
    assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "GPU-a=20000M"
    assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "33"


def test_the_least_share_under_mps_is_one_percent():
    env = variables("job.1", "mps", place(Slice("GPU-a", 5, 40, pipe="/p", total=81_920)))
    assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "1"


@pytest.mark.parametrize("sharing", ["exclusive", "fraction", "time_slice", "mig"])
def test_nobody_else_is_told_of_a_daemon(sharing):
    """A tenant that takes turns beside MPS clients would hold them up."""
    assert not [name for name in variables("job.1", sharing, place(QUARTER)) if "MPS" in name]


@pytest.mark.parametrize("sharing", ["fraction", "time_slice", "mps"])
def test_frameworks_are_told_the_part_of_the_memory(sharing):
    told = advice(sharing, place(QUARTER))
    assert told["XLA_PYTHON_CLIENT_MEM_FRACTION"] == told["RAYSCHED_GPU_MEMORY_FRACTION"] == "0.25"
    assert told["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def test_the_part_of_the_memory_is_not_the_share():
    small = Slice("GPU-a", 5000, 8192, total=81_920)
    assert advice("fraction", place(small))["RAYSCHED_GPU_MEMORY_FRACTION"] == "0.1"


@pytest.mark.parametrize(
    ("sharing", "slice"),
    [
        ("exclusive", Slice("GPU-a", 10_000, 81_920, total=81_920)),
        ("mig", Slice("GPU-a", 1428, 9728, Cut(19, 0), "MIG-1")),
        ("fraction", Slice("GPU-a", 2500, 20_480)),
    ],
)
def test_who_has_a_device_of_his_own_is_told_nothing(sharing, slice):
    """Neither is one whose lease an older version granted: the GPU's memory was not written down."""
    assert advice(sharing, place(slice)) == {}


@pytest.mark.parametrize(
    ("env", "name", "value"),
    [
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1"}, "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1"),
        ({"XLA_CLIENT_MEM_FRACTION": "0.2"}, "XLA_PYTHON_CLIENT_MEM_FRACTION", None),
        ({"TF_FORCE_GPU_ALLOW_GROWTH": "false"}, "TF_FORCE_GPU_ALLOW_GROWTH", "false"),
        ({"CUDA_MPS_PIPE_DIRECTORY": "/elsewhere"}, "CUDA_MPS_PIPE_DIRECTORY", "/tmp/GPU-a-0"),
    ],
)
def test_a_spec_may_say_otherwise_but_not_leave_its_daemon(env, name, value):
    """JAX fails where it is told by its old and its new name."""
    world = World(changed(node("a", 1), mechanisms=("mps",)))
    world.submit("j", Request(sharing="mps", share=2500))
    world.job("j").spec["env"] = env
    world.run("j")
    found = job_variables(world.job("j"), Run("j", 1, 0), "j.1", world.state.nodes)
    assert found.get(name) == value
