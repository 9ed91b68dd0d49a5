"""Memory limits of the kernel, in control groups that the kernel really has; the driver is the fake NVML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engines import need
from fake_nvml import fake_state

from tests.gpu.conftest import Probe

HERE = Path(__file__).parent
MOUNT = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
"""In a mount namespace of its own, so that nothing else sees it."""
H100 = (*fake_state.gpu(0, "GPU-0", "H100-80GB"), "limits")


def private(command: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command where cgroup v2 is at /sys/fs/cgroup."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{MOUNT} && {command}", "sh", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_kernel_holds_a_job_in_a_group_of_its_own(fake_nvml: Path, tmp_path: Path) -> None:
    """Case sharing-02. Every process of the job is in it, and it ends with the lease."""
    there = private("mkdir /sys/fs/cgroup/try && rmdir /sys/fs/cgroup/try").returncode == 0
    need(there, "cgroup v2 and the right to mount it: be root, outside of an unprivileged container")
    done = private(
        'exec "$@"',
        sys.executable,
        str(HERE / "kernel_limits.py"),
        str(tmp_path),
        LD_LIBRARY_PATH=str(fake_nvml),
        FAKE_NVML_STATE=str(tmp_path / "state"),
        PYTHONPATH=str(HERE.parent),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["mechanisms"] == ["mig", "memory_limit"]
    assert f"0::/raysched/{told['lease']}" in told["output"].splitlines()
    assert told["limit"] == ["0", str(told["inode"]), "0", str(told["size"] * 2**20)]
    assert told["size"] == 81920 // 8
    assert not told["left"]
    assert "the kernel can't limit the memory of lease unheld.1" in told["refused"]
    assert not told["ran"], "nothing runs that is not held"


@pytest.mark.parametrize(
    "lines",
    [
        (fake_state.DRIVER, "cuda 12080", *H100),
        (fake_state.DRIVER, "cuda 13040", *H100[:-1]),
        (fake_state.DRIVER, "cuda 13040", *H100, "fail nvmlDeviceGetMemoryLimits_v1 4"),
    ],
)
def test_where_it_holds_nothing_it_is_not_offered(probe: Probe, lines: tuple[str, ...]) -> None:
    """A driver that is too old, one that does not know it for the GPU, one that may not be asked."""
    (gpu,) = probe(*lines)["gpus"]
    assert gpu["mechanisms"] == ["mig"]
