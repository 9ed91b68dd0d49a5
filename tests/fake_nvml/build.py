"""Compiles the fake NVML."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml.c")


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
    flags = ["-shared", "-fPIC", "-pthread", "-Wl,-soname,libnvidia-ml.so.1", *options]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return folder
