"""The environment of a job's processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from raysched.core.work import Launch

NOT_FOR_JOBS = ("RAY_", "RAYSCHED_", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
"""Beginnings of names that a job doesn't inherit: what they say is about another process, or for the lease
to decide."""

REACHES_RAYSCHED = frozenset({"RAYSCHED_ADDRESS", "RAYSCHED_TOKEN", "RAYSCHED_HOME", "RAYSCHED_CONFIG"})
"""How to reach this raysched: a job may submit others."""


def environment(launch: Launch, base: Mapping[str, str]) -> dict[str, str]:
    """`base`, the variables that `raysched up` was started with, under those of the launch.

    `python` is the one that raysched runs in, unless the spec sets another PATH.
    """
    env = {
        name: value
        for name, value in base.items()
        if name in REACHES_RAYSCHED or not name.startswith(NOT_FOR_JOBS)
    }
    here = os.path.dirname(sys.executable)
    env["PATH"] = os.pathsep.join([here, env.get("PATH", os.defpath)])
    env.update(launch.env)
    # By these two the processes of a run are found again when nothing else tells whose they are.
    env.update(RAYSCHED_LEASE=launch.lease, RAYSCHED_RUN=str(launch.run))
    return env
