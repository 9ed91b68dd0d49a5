"""The `slurm` backend itself: hands runs to Slurm, looks at them and ends them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raysched.backends import runner
from raysched.backends.base import Names
from raysched.backends.run_files import delete_hidden, runs_in
from raysched.backends.slurm.cancels import Cancels
from raysched.backends.slurm.controller import Controller, Refused, Unanswered
from raysched.backends.slurm.folder import Folder
from raysched.backends.slurm.listing import Listing
from raysched.backends.slurm.ray_nodes import ENTRANCE
from raysched.backends.slurm.script import Defaults, Identity
from raysched.backends.slurm.sender import Sender
from raysched.backends.slurm.site import Site
from raysched.backends.slurm.verdict import Verdicts
from raysched.core.commands import Command
from raysched.core.work import Launch, Run, Seen
from raysched.errors import Unreachable

SOONEST_S = 0.2
LATEST_S = 5.0
"""Shortest and longest time between two looks at the run folders."""
SLOWER = 1.5


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
            runner.write_json(str(self.root), ENTRANCE, dict(ray))
        self._controller = controller
        self._base_env = dict(base_env)
        self._packages = packages
        identity = Identity(_tag(self.root))
        self._listing = Listing(controller, identity)
        self._sender = Sender(
            controller,
            self._listing,
            identity,
            defaults or Defaults(),
            self.root,
            self._prepare,
        )
        self._cancels = Cancels(controller, self._listing)
        self._verdicts = Verdicts(self.root, self._listing, self._cancels, self._sender.sending)
        self._site = Site(controller, gpu_memory or {}, names)
        self._woken = asyncio.Event()
        self._pace = SOONEST_S
        self._last: list[Seen] = []

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

    # ------------------------------------------------------------ observe

    async def observe(self) -> list[Seen]:
        """All runs, as their folders and Slurm's last answer tell."""
        await self._listing.look()
        seen = await asyncio.to_thread(self._verdicts.all)
        for run in self._verdicts.strays():
            self._cancels.cancel(run)
        self._pace = SOONEST_S if seen != self._last else min(LATEST_S, self._pace * SLOWER)
        self._last = seen
        return seen

    # ------------------------------------------------------------ stop

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that has not begun never will."""
        folder = self._folder(run)
        never = await asyncio.to_thread(folder.stop, grace)
        if folder.ended and not never:
            return
        begun = not never and folder.begun
        self._cancels.cancel(run, "TERM" if begun else None)
        self._wake()

    # ------------------------------------------------------------ the rest of the contract

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return await asyncio.to_thread(self._folder(run).logs, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete the files of these runs, but of one that has not ended."""
        await asyncio.to_thread(self._delete, runs)

    def _delete(self, runs: frozenset[Run]) -> None:
        for run in runs_in(self.root) & runs:
            self._folder(run).delete()
        delete_hidden(self.root)

    async def changed(self, timeout: float) -> None:
        """Return when it is time to look again, at the latest after `timeout` seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), min(timeout, self._pace))
        self._woken.clear()

    async def close(self) -> None:
        """Let go of connections; what runs goes on."""
        await self._cancels.close()
        await self._controller.close()

    # ------------------------------------------------------------ the site

    async def cordon(self, node: str, on: bool, reason: str) -> None:
        """See `base.Cordoning`."""
        await self._site.drain(node, on, reason)

    async def mirror(self) -> list[Command]:
        """See `base.Mirroring`."""
        try:
            return await self._site.told(self._listing.runs())
        except Unanswered as error:
            raise Unreachable(f"Slurm does not answer: {error}") from None

    # ------------------------------------------------------------

    def _wake(self) -> None:
        self._pace = SOONEST_S
        self._woken.set()

    def _folder(self, run: Run) -> Folder:
        return Folder(self.root / str(run), run)


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
