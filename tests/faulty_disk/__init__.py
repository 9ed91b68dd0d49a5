"""A disk that fails when it is told to: real processes, real files, faults at any read, write or sync.

    from faulty_disk import FaultyDisk

    disk = FaultyDisk(tmp_path / "control", watched=str(tmp_path / "data"))
    process = subprocess.Popen(command, env=os.environ | disk.environment)
    disk.fail("write", nth=3, error=errno.ENOSPC)             # its third write from now on fails, once
    disk.fail("write", "sync", error=errno.EIO, lasting=True) # every one from now on
    disk.heal()
    disk.kill("write", when="within")                         # dies (SIGKILL) with half of the write done
    disk.lose_power("sync", nth=2, seed=7)                    # dies, and loses what no sync followed

`watched` is a part of the paths that this is about; what happens to other files is as ever. The control file
is shared with the process, so that a fault can be set and lifted while it runs, by anybody; `counts` says how
many operations there were, `fired` how many faults came.

Operations: `read`, `write`, `sync` (fsync, fdatasync), `truncate`.

| fault | at a write | at a sync |
|---|---|---|
| `fail(...)` | nothing is written, the call gives the error | nothing is synced, the call gives the error |
| `fail(..., torn=True)` | half of the bytes are written, the call gives the error | as above |
| `kill(when="before")` | dies with nothing written | dies before it |
| `kill(when="within")` | dies with half of the bytes written | dies before it |
| `kill(when="after")` | dies with all bytes written, before the call returns | dies when all is synced |
| `lose_power()` | what no sync followed is lost, this write too | the same, as if it had not begun |

With a `seed` other than 0 not all writes that no sync followed are lost: some survive, some by half, in no
order, as on a real disk.

A process that forks for each round (a child that dies leaves its server) makes a FaultyDisk of its own in the
child and calls `take_over()` there; the server itself was started with the `environment` of any FaultyDisk.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Literal

from engines import need

Operation = Literal["read", "write", "sync", "truncate"]
When = Literal["before", "within", "after"]

SOURCE = Path(__file__).with_name("disk.c")
_OPERATIONS: tuple[Operation, ...] = ("read", "write", "sync", "truncate")
_FAULTS = ("none", "error", "torn", "before", "within", "after", "power")
_FAULT = struct.Struct("=6q")
_COUNTS = struct.Struct("=5q")
_SIZE = 11 * 8 + 1024


@cache
def library() -> Path:
    """The compiled library, made once a process and deleted with the machine's temporary files."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    need(compiler, "apt-get install gcc libc6-dev")
    assert compiler is not None
    made = Path(tempfile.gettempdir()) / f"faulty-disk-{os.getuid()}-{SOURCE.stat().st_mtime_ns}.so"
    if not made.exists():
        part = made.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(part), str(SOURCE)]
        subprocess.run([*command, "-ldl", "-lpthread"], check=True)
        part.replace(made)
    return made


class FaultyDisk:
    """The faults of one process, or of several that shall count together. `control` is a file to be made."""

    def __init__(self, control: Path, watched: str) -> None:
        self.control = control
        control.write_bytes(bytes(11 * 8) + os.fsencode(watched).ljust(1024, b"\0"))
        with control.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _SIZE)

    @property
    def environment(self) -> dict[str, str]:
        """The variables for a process whose disk this is to be."""
        return {"LD_PRELOAD": str(library()), "FAULTY_DISK": str(self.control)}

    def take_over(self) -> None:
        """Be the disk of this very process, which was started with another one's `environment`."""
        if ctypes.CDLL(None).faulty_disk_control(os.fsencode(self.control)) != 0:
            raise OSError(f"the control file {self.control} can't be used")

    def fail(
        self, *at: Operation, error: int, nth: int = 1, lasting: bool = False, torn: bool = False
    ) -> None:
        """The `nth` of these operations from now on gives this errno; with `lasting` all later ones too."""
        self._set("torn" if torn else "error", at, nth, lasting=lasting, error=error)

    def kill(self, *at: Operation, nth: int = 1, when: When = "within") -> None:
        """The process dies at the `nth` of these operations from now on."""
        self._set(when, at, nth)

    def lose_power(self, *at: Operation, nth: int = 1, seed: int = 0) -> None:
        """The process dies at the `nth` of these operations, and with it what no sync followed."""
        self._set("power", at, nth, seed=seed)

    def heal(self) -> None:
        """No fault from now on."""
        self._set("none", (), 0)

    @property
    def counts(self) -> dict[Operation, int]:
        """How many operations of each kind there were."""
        return dict(zip(_OPERATIONS, self._counters()[1:], strict=True))

    @property
    def fired(self) -> int:
        """How many faults came."""
        return self._counters()[0]

    def _counters(self) -> tuple[int, ...]:
        return _COUNTS.unpack_from(self._shared, _FAULT.size)

    def _set(
        self,
        fault: str,
        at: tuple[Operation, ...],
        nth: int,
        *,
        lasting: bool = False,
        error: int = 0,
        seed: int = 0,
    ) -> None:
        mask = sum(1 << _OPERATIONS.index(operation) for operation in at)
        # The fault itself goes last: the process may run.
        self._shared[:8] = bytes(8)
        packed = _FAULT.pack(_FAULTS.index(fault), mask, nth, int(lasting), error, seed)
        self._shared[8 : _FAULT.size] = packed[8:]
        self._shared[:8] = packed[:8]
