"""The serving end of a connection to a host: answers framed calls on stdin and stdout until it is hung up on.

It keeps nothing that is not on disk, so a second one beside it, or after it, goes on with the same runs. It
stands on the standard library, and on pynvml beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from raysched.backends.base import EngineRefused
from raysched.backends.containers import Engines
from raysched.backends.node_runs import NodeRuns
from raysched.backends.nursery import of_this_python
from raysched.backends.runs import Keep
from raysched.backends.ssh import calls, frames
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Launch, Partition, Run, Seen
from raysched.errors import RayschedError
from raysched.gpu.driver import PartitionRefused, Sample, open_driver
from raysched.gpu.driving import Driving
from raysched.gpu.processes import Process, send

MIB = 1024 * 1024
SILENCE_S = 120.0
"""Seconds without a call after which nobody is there any more: the other end asks every few seconds."""
LOOK_S = 5.0
"""Longest time between two looks at the runs."""
SWEEP_S = 600.0
"""Time between two looks at what can be deleted."""
KEEP = Keep(age=7 * 86_400, size=20 * 1024**3, at_least=3600)
"""How long working directories of runs that ended are kept."""
PACKAGE_KEPT_S = 86_400.0
"""How long a packed working directory is kept after its last use."""


class Served:
    """Implements `calls.Calls`. `folder` is raysched's folder on this host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._packages = folder / "packages"
        self._runs: NodeRuns | None = None
        self._driving: Driving | None = None
        self._node = ""
        self._engines = Engines(os.environ)
        self._token = secrets.token_hex(8)

    async def open(self, system: str, node: str, simulate: str | None) -> None:
        """Be the host that the ledger of `system` calls `node`. Raises RayschedError for a broken driver."""
        home = self._folder / system
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._packages.mkdir(mode=0o700, exist_ok=True)
        self._node = node
        runs = home / "runs" / node  # hosts may have one home on the network
        self._runs = NodeRuns(runs, os.environ, self._packages, nursery=of_this_python())
        driver = await asyncio.to_thread(open_driver, simulate, node, os.environ, home)
        self._driving = Driving(driver)

    async def sweep(self) -> None:
        """Delete what is old, again and again."""
        while True:
            try:
                await asyncio.to_thread(self._sweep)
                await self.runs.runs_sweep(KEEP)
                await asyncio.sleep(SWEEP_S)
            except (OSError, RayschedError):  # a broken disk, or it is not open yet
                await asyncio.sleep(LOOK_S)

    def _sweep(self) -> None:
        """Delete packages that nobody used for long, and those that did not arrive whole."""
        old = time.time() - PACKAGE_KEPT_S
        for path in self._packages.iterdir():
            if path.stat().st_mtime < old:
                path.unlink(missing_ok=True)

    @property
    def runs(self) -> NodeRuns:
        """The runs of the system here. Raises RayschedError before `open`."""
        if self._runs is None:
            raise RayschedError("the first call has to be open")
        return self._runs

    @property
    def driving(self) -> Driving:
        """The driver. Raises RayschedError before `open`."""
        if self._driving is None:
            raise RayschedError("the first call has to be open")
        return self._driving

    async def describe(self) -> NodeInfo:
        """The host as it is now: its GPUs, the CPUs that this process may use, and its memory."""
        engine = await asyncio.to_thread(self._engines.name)
        found = await self.driving.do(self.driving.driver.discover)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
        cpus = len(os.sched_getaffinity(0)) * WHOLE
        return NodeInfo(
            name=self._node,
            backends=("vm",),
            gpus=found.gpus,
            cpus=cpus,
            memory=memory,
            driver=found.driver_version,
            simulated=found.simulated,
            cuda=found.cuda,
            problem=found.problem,
            containers=engine,
        )

    async def sample(self) -> Sample:
        """Who uses the GPUs now."""
        return await self.driving.sample()

    async def partition(self, change: Partition) -> None:
        """Cut a GPU. Raises PartitionRefused."""
        await self.driving.do(self.driving.driver.partition, change)

    async def end_strays(self, processes: tuple[Process, ...], kill: bool) -> None:
        """Send SIGTERM to exactly these processes, or with `kill` SIGKILL."""
        send(processes, signal.SIGKILL if kill else signal.SIGTERM)

    async def observe(self) -> list[Seen]:
        """All runs of the system here."""
        return await self.runs.runs_observe()

    async def start(self, launch: Launch) -> tuple[Seen, ...] | None:
        """Start a run, silent where it was started before; what is then seen of it. None: its package is
        needed first."""
        if launch.package:
            package = self._packages / f"{launch.package}.tar.gz"
            if package.exists():
                package.touch()
        if not await self.runs.run_start(launch, None):
            return None
        seen = self.runs.run_seen(launch.run)
        return (seen,) if seen is not None else ()

    async def put_package(self, digest: str, offset: int, data: bytes, last: bool) -> None:
        """A part of a packed working directory; whole, it is kept under its digest. Raises EngineRefused,
        final where it is not what the digest says."""
        try:
            await asyncio.to_thread(self._put, digest, offset, data, last)
        except OSError as error:
            raise EngineRefused(f"the working directory can't be kept: {error}") from error

    def _put(self, digest: str, offset: int, data: bytes, last: bool) -> None:
        part = self._packages / f"{digest}.{self._token}.part"
        with open(part, "wb" if offset == 0 else "ab") as file:
            file.write(data)
        if not last:
            return
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256") if sys.version_info >= (3, 11) else _digest(file)
        if found.hexdigest() != digest:
            part.unlink()
            raise EngineRefused("the packed working directory is damaged", final=True)
        part.replace(self._packages / f"{digest}.tar.gz")

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run."""
        await self.runs.run_stop(run, grace)

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output."""
        return await self.runs.run_logs(run, offset, limit)

    async def forget(self, runs: tuple[Run, ...]) -> None:
        """Delete what is left of these runs, but of one that has not ended."""
        await self.runs.runs_forget(frozenset(runs))

    async def end_processes(self, lease: str, grace: float) -> None:
        """End all that runs under a lease. Raises RayschedError where something does not end."""
        await self.runs.end_processes(lease, grace)


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while part := file.read(MIB):
        digest.update(part)
    return digest


class Line:
    """Answers the calls that come in, each in a task of its own, and says when a run may have changed."""

    def __init__(self, served: Served, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._served = served
        self._reader = reader
        self._writer = writer
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[Run, Seen] = {}

    async def serve(self) -> None:
        """Go on until the stream ends or nobody calls any more."""
        while True:
            frame = await asyncio.wait_for(frames.read(self._reader), SILENCE_S)
            if frame is None:
                return
            self._spawn(self._answer(frame))
            if frame["call"] == "open":
                self._spawn(self._announce())
                self._spawn(self._served.sweep())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, frame: frames.Frame) -> None:
        try:
            signature = calls.signature(frame["call"])
            arguments = signature.decode_arguments(frame["arguments"])
            answer = await getattr(self._served, frame["call"])(**arguments)
            said = {"answer": frames.encode(signature.answer, answer)}
            self._note(frame["call"], answer)
        except EngineRefused as refused:
            said = {"refused": refused.reason, "final": refused.final}
        except PartitionRefused as refused:
            said = {"uncut": str(refused), "cut": frames.encode(calls.CUT, refused.cut)}
        except Exception as error:
            said = {"error": str(error) if isinstance(error, RayschedError) else _words(error)}
        self._send({"id": frame["id"], **said})

    def _note(self, call: str, answer: Any) -> None:
        """What the other end knows of the runs, once it has this answer."""
        if call == "observe":
            self._told = {seen.run: seen for seen in answer}
        elif call == "start" and answer is not None:
            self._told.update((seen.run, seen) for seen in answer)

    async def _announce(self) -> None:
        """Say whenever the runs are not as the other end knows them."""
        while True:
            try:
                seen = {each.run: each for each in await self._served.runs.runs_observe()}
                if seen != self._told:
                    self._told = seen
                    self._send({"changed": True})
                await self._served.runs.runs_changed(LOOK_S)
            except (OSError, RayschedError):
                await asyncio.sleep(LOOK_S)

    def _send(self, frame: frames.Frame) -> None:
        self._writer.write(frames.packed(frame))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


async def _main(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no frame
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, output)
    line = Line(Served(folder), reader, asyncio.StreamWriter(transport, protocol, None, loop))
    try:
        await line.serve()
    except (asyncio.TimeoutError, ValueError):
        return


def main() -> None:
    """Serve, with the folder that the command line names, and end without waiting for calls under way: each
    of them can be cut off anywhere."""
    logging.basicConfig(level=logging.CRITICAL)
    asyncio.run(_guarded())


async def _guarded() -> None:
    try:
        await _main(Path(sys.argv[1]))
    finally:
        os._exit(0)
