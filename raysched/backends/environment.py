"""The environment of a job's processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from raysched.core.work import Launch

NOT_FOR_JOBS = (
    "RAY_",
    "RAYSCHED_",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "CUDA_MPS_",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
)
"""Beginnings of names that a job doesn't inherit: what they say is about another process, or for the lease
to decide."""

REACHES_RAYSCHED = frozenset({"RAYSCHED_ADDRESS", "RAYSCHED_TOKEN", "RAYSCHED_HOME", "RAYSCHED_CONFIG"})
"""How to reach this raysched: a job may submit others."""


REACHES_GATEWAY = ("RAYSCHED_ADDRESS", "RAYSCHED_TOKEN")
"""Those of them that mean the same in a container."""


def environment(launch: Launch, base: Mapping[str, str]) -> dict[str, str]:
    """What is inherited of `base`, under the variables of the launch."""
    return inherited(base) | own(launch, {})


def inherited(base: Mapping[str, str]) -> dict[str, str]:
    """What a process of a job inherits of `base`, the variables that `raysched up` was started with.

    `python` is the one that raysched runs in, unless the spec sets another PATH.
    """
    env = {
        name: value
        for name, value in base.items()
        if name in REACHES_RAYSCHED or not name.startswith(NOT_FOR_JOBS)
    }
    here = os.path.dirname(sys.executable)
    env["PATH"] = os.pathsep.join([here, env.get("PATH", os.defpath)])
    return env


def own(launch: Launch, base: Mapping[str, str]) -> dict[str, str]:
    """The variables of a launch, with how to reach the gateway, as `base` says."""
    env = {name: base[name] for name in REACHES_GATEWAY if name in base}
    env.update(launch.env)
    # By these two the processes of a run are found again when nothing else tells whose they are.
    env.update(RAYSCHED_LEASE=launch.lease, RAYSCHED_RUN=str(launch.run))
    return env
