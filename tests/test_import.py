"""The command line, the client and the decorator import where there is no Linux: on macOS, for instance."""

from __future__ import annotations

import subprocess
import sys

import pytest

ELSEWHERE = """
# The standard library comes as this machine has it.
import asyncio, builtins, ctypes, multiprocessing, os, subprocess, sys, urllib.request, zoneinfo

sys.platform = "darwin"
for name in ("pidfd_open", "setresuid", "sched_getaffinity", "posix_fadvise", "splice", "memfd_create"):
    if hasattr(os, name):
        delattr(os, name)

opened = open

def open_outside_proc(file, *args, **kwargs):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return opened(file, *args, **kwargs)

builtins.open = open_outside_proc
"""


def imported_elsewhere(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in an interpreter that believes it is on macOS."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE + code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "code",
    [
        "import raysched",
        "import raysched.client, raysched.cli.main",
        "import raysched.package, raysched.specs.job, raysched.specs.config, raysched.specs.schema",
    ],
)
def test_what_users_import_needs_no_linux(code: str) -> None:
    """Servers run on Linux; what people touch runs anywhere."""
    run = imported_elsewhere(code)
    assert run.returncode == 0, run.stderr


def test_the_decorator_needs_no_linux() -> None:
    """A laptop may be a driver of a far cluster. Ray itself is loaded as on this machine."""
    run = imported_elsewhere(
        "sys.platform = 'linux'\nimport ray\nsys.platform = 'darwin'\n"
        "import raysched\nfor name in raysched.__all__: getattr(raysched, name)\n"
    )
    assert run.returncode == 0, run.stderr
