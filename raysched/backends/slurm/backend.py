"""The `slurm` backend itself: what becomes of each run, from its folder and from what Slurm says of it."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGRTMAX
from typing import Any

from raysched.backends import runner
from raysched.backends.base import EngineRefused, Names
from raysched.backends.slurm import batch, mirror, ray_nodes, reasons
from raysched.backends.slurm.controller import Controller, Refused, Unanswered
from raysched.backends.slurm.folder import TOLD_TO_END, Folder
from raysched.backends.slurm.listing import Listing
from raysched.backends.slurm.records import Job, Node
from raysched.backends.slurm.script import Defaults, Identity
from raysched.backends.slurm.sender import Sender
from raysched.backends.working_dir import delete_tree
from raysched.core.commands import Command, NodeGone, NodeSeen, Outside, Placed
from raysched.core.namesakes import own_name
from raysched.core.node import NodeInfo
from raysched.core.work import Launch, Run, Seen

SOONEST_S = 0.2
LATEST_S = 5.0
"""Shortest and longest time between two looks at the run folders."""
SLOWER = 1.5
LAG_S = 4.0
"""How long a file that a node wrote may take to be seen here, after Slurm says that its job is over."""
MISSING_S = 30.0
"""How long Slurm may know nothing of a run that began before that counts as lost: its controller may have
been restarted, and learns from the nodes what runs there."""
ENDING_S = 15.0
"""How long Slurm may take to say how it ended what a signal ended."""
AT_ONCE_S = 5
"""How long a job lasts at most, by Slurm's count, that a node will not start."""
REMEMBERED = 5000
"""How many of its last cancels the backend remembers."""
NODES_S = 10.0
"""Time between two questions about the nodes."""
TAKEN = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED"})
"""States in which Slurm took a job away through no fault of its own."""
LOST_BY_SLURM = "Slurm lost sight of it and ended it"


class SlurmBackend:
    """Hands runs to a Slurm site. `folder` lies on a file system that the site's nodes see under the same
    path, `base_env` are the variables that jobs inherit, `packages` holds packed working directories as
    `DIGEST.tar.gz`. `gpu_memory` has the MiB of a GPU by its type; `names` tells how the ledger's nodes are
    called; `ray` is what `ray_nodes.py` needs to let nodes join raysched's Ray.
    """

    name = "slurm"

    def __init__(
        self,
        folder: Path,
        controller: Controller,
        base_env: Mapping[str, str],
        packages: Path,
        *,
        defaults: Defaults | None = None,
        gpu_memory: Mapping[str, int] | None = None,
        names: Names | None = None,
        ray: Mapping[str, str | None] | None = None,
    ) -> None:
        self.root = folder.absolute()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if ray is not None:
            runner.write_json(str(self.root), ray_nodes.ENTRANCE, dict(ray))
        self._controller = controller
        self._base_env = dict(base_env)
        self._packages = packages
        self._gpu_memory = dict(gpu_memory or {})
        self._names = names
        identity = Identity(_tag(self.root))
        self._listing = Listing(controller, identity)
        self._sender = Sender(
            controller,
            self._listing,
            identity,
            defaults or Defaults(),
            self.root,
            self._program,
            self._prepare,
        )
        self._ended: dict[Run, Seen] = {}
        self._doubtful: dict[Run, float] = {}
        self._cancels: dict[Run, str | None] = {}
        self._cancelling: asyncio.Task[None] | None = None
        self._cancelled: dict[str, str] = {}
        self._woken = asyncio.Event()
        self._pace = SOONEST_S
        self._last: list[Seen] = []
        self._nodes: list[Node] = []
        self._nodes_at = -NODES_S
        self._told_nodes: set[str] = set()
        self._site_names: dict[str, str] = {}

    # ------------------------------------------------------------ start

    async def start(self, launch: Launch) -> None:
        """Hand a run to Slurm; silent where it was before. Raises EngineRefused: final for what Slurm would
        refuse every time."""
        await self._sender.send(launch)
        self._wake()

    async def scripts(self, launches: Sequence[Launch]) -> dict[Run, str]:
        """See `base.Scripted`."""
        shown: dict[Run, str] = {}
        for whole, sent in await asyncio.to_thread(self._sender.batches, launches):
            try:
                shown[sent[0].run] = await self._controller.shown(whole)
            except (Refused, Unanswered) as error:
                shown[sent[0].run] = f"nothing: {error}\n"
        return shown

    def _prepare(self, launch: Launch) -> Any:
        package = self._packages / f"{launch.package}.tar.gz" if launch.package else None
        watch = not self._controller.signals
        return self._folder(launch.run).prepare(launch, self._base_env, package, watch=watch)

    def _program(self) -> Path:
        """The folder's copy of what runs inside a job. Another version has another one, so that jobs which
        wait find theirs."""
        sources = [Path(module.__file__ or "") for module in (runner, batch, ray_nodes)]
        version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
        folder = self.root / f".program-{version}"
        if not folder.exists():
            new = self.root / f".program-{uuid.uuid4().hex}"
            new.mkdir(mode=0o700)
            for source in sources:
                shutil.copyfile(source, new / source.name)
            with suppress(OSError):  # somebody else was quicker
                new.rename(folder)
            shutil.rmtree(new, ignore_errors=True)
        return folder / "batch.py"

    # ------------------------------------------------------------ observe

    async def observe(self) -> list[Seen]:
        """All runs, as their folders and Slurm's last answer tell."""
        await self._listing.look()
        seen = await asyncio.to_thread(self._look_at_all)
        self._cancel_strays()
        self._pace = SOONEST_S if seen != self._last else min(LATEST_S, self._pace * SLOWER)
        self._last = seen
        return seen

    def _look_at_all(self) -> list[Seen]:
        runs = self._listed()
        for gone in self._ended.keys() - runs:
            del self._ended[gone]
        return [seen for run in sorted(runs) if (seen := self._look(run)) is not None]

    def _look(self, run: Run) -> Seen | None:
        if run in self._ended:
            return self._ended[run]
        folder, job = self._folder(run), self._listing.find(run)
        if (exit := folder.read("exit.json")) is not None:
            seen = self._exited(folder, job, exit)
        elif (mark := folder.read("run.json")) is not None:
            seen = self._begun(folder, job, mark.get("started"))
        else:
            seen = self._waits(folder, job)
        if seen is not None and seen.state not in ("queued", "running"):
            self._ended[run] = seen
        return seen

    def _exited(self, folder: Folder, job: Job | None, exit: dict[str, Any]) -> Seen | None:
        """A run that has written down how it ended. If Slurm told it to end, Slurm knows why."""
        code: int | None = exit.get("code")
        reason: str = exit.get("reason", f"{folder.path / 'exit.json'} is damaged")
        started, ended = exit.get("started"), exit.get("ended")
        by_signal = code is not None and 128 < code <= 128 + SIGRTMAX and not reason
        if reason == TOLD_TO_END or by_signal:
            if self._unsettled(job, ended) and not self._lasts(folder.run, ENDING_S):
                self._listing.hurry()
                return Seen(folder.run, "running", started)
            taken, why = self._why(folder, job)
            if reason == TOLD_TO_END or (why and job is not None and job.over):
                reason = why or TOLD_TO_END
                folder.write_exit(code, started, reason, taken=taken)
                exit = {**exit, "taken": taken}
        if exit.get("taken"):
            return Seen(folder.run, "taken", started, ended, None, reason)
        return Seen(folder.run, "lost" if code is None else "exited", started, ended, code, reason)

    def _unsettled(self, job: Job | None, ended: int | None) -> bool:
        """Whether Slurm has not yet said how a run ended: its last answer is older than that end, or calls
        the run going on."""
        return self._listing.at <= (ended or 0) or not (job is None or job.over or job.pending)

    def _begun(self, folder: Folder, job: Job | None, started: int | None) -> Seen:
        """A run whose command was started, and has not ended as far as its folder tells."""
        running = Seen(folder.run, "running", started)
        if self._listing.error or (job is not None and not job.over and not job.pending):
            self._doubtful.pop(folder.run, None)
            return running
        if not self._lasts(folder.run, MISSING_S if job is None else LAG_S):
            return running
        taken, why = self._why(folder, job)
        return self._bury(folder, why or "its runner was killed", taken)

    def _waits(self, folder: Folder, job: Job | None) -> Seen | None:
        """A run whose command was not started yet; None where Slurm has to be handed it."""
        sent = folder.sent
        if sent is None:
            return None
        if job is None:
            if folder.run in self._sender.sending or self._listing.error or self._listing.at <= sent:
                return Seen(folder.run, "queued", reason=self._unanswered() or "is being handed to Slurm")
            return None
        if not job.over:
            self._doubtful.pop(folder.run, None)
            return Seen(folder.run, "queued", reason=self._unanswered() or _before(job))
        if not self._lasts(folder.run, LAG_S):
            return Seen(folder.run, "queued", reason=reasons.starting(job))
        taken, why = self._why(folder, job)
        said = folder.said()
        return self._bury(folder, why or f"its script did not run{f': {said}' if said else ''}", taken)

    def _why(self, folder: Folder, job: Job | None) -> tuple[bool, str]:
        """Whether Slurm took a job away that may be started again, and the reason, where Slurm tells one."""
        if job is None or job.pending or self._hit_by_mistake(job) or self._mixed_up(folder, job):
            return True, LOST_BY_SLURM
        return bool(job.states & TAKEN), reasons.ended(job, _limit(folder))

    def _mixed_up(self, folder: Folder, job: Job) -> bool:
        """Whether Slurm itself may have ended the run: a controller that was killed starts jobs again that
        run, or gives their numbers to others, and a node that is to start a number a second time has all of
        it cancelled."""
        if folder.began not in ("", job.number):
            return True
        if "COMPLETED" in job.states:  # a script that came second; the first one would have told its end
            return folder.begun and not folder.ended
        if "CANCELLED" not in job.states:
            return False
        began = (folder.read("run.json") or {}).get("started", 0)
        if job.nodes and job.ended - job.started <= AT_ONCE_S and began < job.started * 1000:
            return True
        others = (self._folder(run) for run in self._listed() if run != folder.run)
        return folder.sent_again or any(other.began == job.number for other in others)

    def _hit_by_mistake(self, job: Job) -> bool:
        """Whether a cancel of ours that was meant for another job may have ended this one: scancel looks at
        the name, then sends the id, and waits for a controller that is being restarted, which gives ids of
        jobs that it lost to others."""
        meant = self._cancelled.get(job.id)
        return "CANCELLED" in job.states and meant is not None and meant != job.name

    def _unanswered(self) -> str:
        return f"Slurm does not answer: {self._listing.error}" if self._listing.error else ""

    def _lasts(self, run: Run, seconds: float) -> bool:
        """Whether a run has been in doubt for so long."""
        return time.monotonic() - self._doubtful.setdefault(run, time.monotonic()) >= seconds

    def _bury(self, folder: Folder, reason: str, taken: bool) -> Seen:
        folder.bury(reason, taken=taken)
        exit = folder.read("exit.json") or {}
        state = "taken" if exit.get("taken") else "lost" if exit.get("code") is None else "exited"
        return Seen(folder.run, state, exit.get("started"), exit.get("ended"), exit.get("code"), reason)

    # ------------------------------------------------------------ stop

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that has not begun never will."""
        folder = self._folder(run)
        never = await asyncio.to_thread(folder.ask_to_stop, grace)
        if folder.ended and not never:
            return
        begun = not never and folder.begun
        self._cancel(run, "TERM" if begun else None)
        self._wake()

    def _cancel(self, run: Run, signal: str | None) -> None:
        """Cancel a run's jobs, or signal them, together with what else is to be just now."""
        self._cancels[run] = signal
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel_all())

    async def _cancel_all(self) -> None:
        """By what Slurm says now: an id of a moment ago may be another job's since."""
        await asyncio.sleep(0.02)
        while self._cancels and await self._listing.ask():  # else asked again as long as it is wanted
            runs, self._cancels = self._cancels, {}
            for signal in dict.fromkeys(runs.values()):
                of_it = [run for run, wanted in runs.items() if wanted == signal]
                targets = [target for run in of_it for target in self._listing.cancels(run)]
                self._cancelled.update((target.id, target.name) for target in targets)
                for old in list(self._cancelled)[:-REMEMBERED]:
                    del self._cancelled[old]
                with suppress(Unanswered):
                    await self._controller.cancel(targets, signal)
        self._cancels.clear()
        self._listing.hurry()

    def _cancel_strays(self) -> None:
        """End what Slurm still has of runs that are over, or whose folder was deleted."""
        if self._listing.error:
            return
        for run, job in self._listing.runs():
            ended = self._ended.get(run)
            again = ended is not None and job.pending and self._listing.at > (ended.ended or 0)
            gone = not self._folder(run).path.exists() and run not in self._sender.sending
            if not job.over and (again or gone):
                self._cancel(run, None)

    # ------------------------------------------------------------ the rest of the contract

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return await asyncio.to_thread(self._folder(run).logs, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete the files of these runs, but of one that has not ended."""
        await asyncio.to_thread(self._delete, runs)

    def _delete(self, runs: frozenset[Run]) -> None:
        for run in self._listed() & runs:
            self._folder(run).delete()
        for hidden in self.root.glob(".*.deleted"):
            delete_tree(hidden)

    async def changed(self, timeout: float) -> None:
        """Return when it is time to look again, at the latest after `timeout` seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), min(timeout, self._pace))
        self._woken.clear()

    async def close(self) -> None:
        """Let go of connections; what runs goes on."""
        if self._cancelling is not None:
            await self._cancelling
        await self._controller.close()

    # ------------------------------------------------------------ nodes

    async def drain(self, node: str, on: bool, reason: str) -> None:
        """See `base.Draining`."""
        own = self._site_names.get(node, node)
        there = [known for known in await self._controller.nodes() if known.name == own]
        if there and on == any("DRAIN" in state for state in there[0].states):
            return
        try:
            await self._controller.drain(own, reason if on else None)
        except Refused as error:
            done = "drained" if on else "used again"
            raise EngineRefused(
                f"{node} is not {done}: Slurm says no ({error.reason}); somebody who may has to: "
                f"scontrol update NodeName={own} State={'DRAIN Reason=...' if on else 'RESUME'}",
                final=True,
            ) from None
        finally:
            self._nodes_at = -NODES_S

    # ------------------------------------------------------------ the mirror

    async def mirror(self) -> list[Command]:
        """The site as it is: its nodes, what others use, and where our jobs are."""
        if time.monotonic() - self._nodes_at >= NODES_S:
            self._nodes = await self._controller.nodes()
            self._nodes_at = time.monotonic()
        taken = await self._names() if self._names else {}
        infos = {node.name: self._info(node, taken) for node in self._nodes}
        self._site_names = {info.name: name for name, info in infos.items()}
        names = set(self._site_names)
        gone = [NodeGone(name, "slurm") for name in self._told_nodes - names]
        self._told_nodes = names
        jobs = [(run, job) for run, job in self._listing.runs() if job.states & {"RUNNING", "SUSPENDED"}]
        put = {f"{run.job}.{run.attempt}": mirror.places(job, infos) for run, job in jobs}
        return [
            *gone,
            *(NodeSeen(info) for info in infos.values()),
            *(self._others(node, infos[node.name].name, jobs) for node in self._nodes),
            *(Placed(lease, where) for lease, where in put.items() if where),
        ]

    def _info(self, node: Node, taken: Mapping[str, Sequence[str]]) -> NodeInfo:
        return mirror.node_info(node, own_name(node.name, "slurm", taken), self._gpu_memory)

    def _others(self, node: Node, name: str, jobs: list[tuple[Run, Job]]) -> Outside:
        ours = {index for _, job in jobs for index in mirror.indices(job).get(node.name, ())}
        return Outside(name, mirror.used_by_others(node, ours))

    # ------------------------------------------------------------

    def _wake(self) -> None:
        self._pace = SOONEST_S
        self._woken.set()

    def _folder(self, run: Run) -> Folder:
        return Folder(self.root / str(run), run)

    def _listed(self) -> set[Run]:
        """The runs that have a folder; whatever else lies there is passed over."""
        found: set[Run] = set()
        for path in self.root.iterdir():
            with suppress(ValueError):
                run = Run.parse(path.name)
                if str(run) == path.name and not path.name.startswith("."):
                    found.add(run)
        return found


def _before(job: Job) -> str:
    """Why a command has not begun."""
    return reasons.waits(job.reason) if job.pending else reasons.starting(job)


def _limit(folder: Folder) -> int | None:
    return (folder.read("launch.json") or {}).get("limit")


def _tag(root: Path) -> str:
    """What tells the jobs of this folder from those of another; made once."""
    path = root / ".tag"
    if not path.exists():
        new = root / f".tag-{uuid.uuid4().hex}"
        new.write_text(uuid.uuid4().hex[:6])
        with suppress(FileExistsError):
            path.hardlink_to(new)
        new.unlink()
    return path.read_text()
