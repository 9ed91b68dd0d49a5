"""The output of runs, kept in files here: Kubernetes forgets a pod's once the pod is gone, and can't be asked
for it from an offset.

One file a run; of several pods one file each, whose whole lines come together in the run's as they arrive.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from raysched.backends.kube.cluster import Answered, Cluster
from raysched.backends.kube.names import ROLE
from raysched.backends.run_files import page
from raysched.core.work import Run
from raysched.errors import Unreachable
from raysched.specs.k8s import MAIN
from raysched.tasks import stop

AGAIN_S = 1.0
"""Time before output is asked for again that was cut off."""
ENDS_S = 1.0
"""How long what follows a pod that has ended may go on: it should end at once, and is asked anew if not."""
FETCH_S = 30.0
"""How long the rest of an ended run's output may take."""

Object = dict[str, Any]

log = logging.getLogger(__name__)


class Output:
    """The files of all runs, in `folder`."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self._folder = folder
        self._cluster = cluster
        self._following: dict[tuple[Run, str], asyncio.Task[None]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def follow(self, run: Run, pods: Sequence[Object]) -> None:
        """Bring along what pods write, from now on and from before."""
        pods = _speaking(pods)
        for pod in pods:
            key = (run, pod["metadata"]["name"])
            task = self._following.get(key)
            if _has_begun(pod) and (task is None or (task.done() and not _is_over(pod))):
                self._following[key] = asyncio.create_task(self._follow(run, pod, len(pods) > 1))

    async def finish(self, run: Run, pods: Sequence[Object]) -> None:
        """Bring along the rest of what pods wrote that have ended."""
        pods = _speaking(pods)
        for pod in pods:
            task = self._following.pop((run, pod["metadata"]["name"]), None)
            if task is not None:
                await asyncio.wait({task}, timeout=ENDS_S)
                await stop(task)
        tasks = [self._fetch(run, pod, len(pods) > 1) for pod in pods if _has_begun(pod)]
        await asyncio.gather(*tasks)

    def read(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return page(str(self._file(run)), offset, limit)

    def delete(self, run: Run) -> None:
        """Delete the files of a run."""
        for path in [self._file(run), *self._folder.glob(f"{run}.pod-*")]:
            path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Follow nothing any more."""
        await stop(*self._following.values())

    # ------------------------------------------------------------ bringing it along

    async def _follow(self, run: Run, pod: Object, several: bool) -> None:
        """Until the pod ends: what is cut off goes on where it was."""
        while True:
            try:
                await self._copy(run, pod, several, follow=True)
                return
            except Answered as error:
                if error.missing:
                    return
                log.info("the output of %s: %s", run, error)
            except Unreachable as error:
                log.info("the output of %s: %s", run, error)
            await asyncio.sleep(AGAIN_S)

    async def _fetch(self, run: Run, pod: Object, several: bool) -> None:
        try:
            await asyncio.wait_for(self._copy(run, pod, several, follow=False), FETCH_S)
        except (Answered, Unreachable, asyncio.TimeoutError) as error:
            log.info("the end of the output of %s is missing: %s", run, error)

    async def _copy(self, run: Run, pod: Object, several: bool, *, follow: bool) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/log"
        query = {"container": MAIN, **({"follow": "true"} if follow else {})}
        own = self._folder / f"{run}.pod-{metadata['name']}" if several else self._file(run)
        known = own.stat().st_size if own.exists() else 0
        rest = b""
        begun = False
        async with aclosing(self._cluster.stream(path, query, silent=None)) as parts:
            async for part in parts:
                if not begun and _is_a_refusal(part, pod):
                    return
                begun = True
                new, known = part[known:], max(0, known - len(part))
                _append(own, new)
                if several:
                    whole, end, rest = (rest + new).rpartition(b"\n")
                    _append(self._file(run), whole + end)
        if several:
            _append(self._file(run), rest)

    def _file(self, run: Run) -> Path:
        return self._folder / f"{run}.log"


def _append(path: Path, data: bytes) -> None:
    if data:
        with open(path, "ab", opener=_private) as file:
            file.write(data)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_a_refusal(part: bytes, pod: Object) -> bool:
    """Whether this is no output, but the kubelet's own words for a container that is gone: they come with
    status 200, as if the container had written them (Kubernetes, kuberuntime_container.go and logs.go)."""
    metadata = pod["metadata"]
    path = f"/var/log/pods/{metadata['namespace']}_{metadata['name']}_{metadata['uid']}/"
    words = [f'failed to try resolving symlinks in path "{path}']
    for one in pod["status"].get("containerStatuses") or []:
        if one.get("containerID"):
            words.append(f"unable to retrieve container logs for {one['containerID']}")
    return part.startswith(tuple(each.encode() for each in words))


def _speaking(pods: Sequence[Object]) -> list[Object]:
    """The pods that write what the job writes: of a Ray job the one that submitted its driver."""
    return [pod for pod in pods if pod["metadata"]["labels"].get(ROLE, "submitter") == "submitter"]


def _mains(pod: Object) -> list[Object]:
    return [one.get("state", {}) for one in pod["status"].get("containerStatuses") or []]


def _has_begun(pod: Object) -> bool:
    return any("running" in state or "terminated" in state for state in _mains(pod))


def _is_over(pod: Object) -> bool:
    return any("terminated" in state for state in _mains(pod))
