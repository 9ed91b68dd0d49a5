"""A fake NVML, compiled here, behind the real pynvml in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent.parent / "fake_nvml" / "nvml.c"

PROBE = """
import dataclasses, json, sys
from raysched.errors import RayschedError
from raysched.gpu.driver import open_driver
try:
    driver = open_driver(None, "node-a")
    found = driver.discover()
    uses = {uuid: dataclasses.asdict(use) for uuid, use in driver.sample().items()}
    print(json.dumps({**dataclasses.asdict(found), "uses": uses}))
    driver.close()
except RayschedError as problem:
    print(json.dumps({"error": str(problem)}))
"""

Probe = Callable[..., dict[str, Any]]


def compile_fake(folder: Path, *options: str) -> Path:
    """Compile the fake into `folder`, which goes into LD_LIBRARY_PATH. Skips where there is no compiler,
    fails where there has to be one."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        reason = "no C compiler for the fake NVML: apt-get install gcc libc6-dev"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", *options]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return folder


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the calls that came with driver 510."""
    return compile_fake(tmp_path_factory.mktemp("nvml"), "-DOLD_DRIVER")


@pytest.fixture
def probe(fake_nvml: Path, tmp_path: Path) -> Probe:
    """What a driver answers on a machine with these lines of state (none: no state, no driver)."""

    def run(*lines: str, library: Path = fake_nvml, visible: str | None = None) -> dict[str, Any]:
        environ = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        environ["LD_LIBRARY_PATH"] = str(library)
        if lines:
            state = tmp_path / "state"
            state.write_text("\n".join(lines))
            environ["FAKE_NVML_STATE"] = str(state)
        if visible is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROBE],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return {**json.loads(done.stdout), "stderr": done.stderr}

    return run
