"""All objects of one kind that concern us, kept up to date by one watch: it goes on where it was cut off, is
kept fresh by bookmarks, and lists anew where the server has forgotten how far that was (410).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from raysched.backends.kube.cluster import Answered, Cluster, Object
from raysched.errors import Unreachable
from raysched.tasks import stop

RENEWED_S = 55
"""After how many seconds the server ends a watch, so that a dead connection is noticed."""
SOONEST_S = 0.2
LATEST_S = 10.0
"""Shortest and longest time before a server that does not answer is asked again."""

log = logging.getLogger(__name__)


class Watch:
    """The objects at `path` that fit `query`, by name. `departed` are those that were deleted, as they were
    last seen, for those who ask for it. `note` is told of each object that came, changed or went. `error`
    says why there is no news, and is empty where there is. Where the cluster does not know the kind, or we
    may not see it, one that is `optional` is `absent`."""

    def __init__(
        self,
        cluster: Cluster,
        path: Callable[[], str],
        query: Mapping[str, str],
        changed: Callable[[], None],
        *,
        note: Callable[[Object], None] | None = None,
        keep_departed: bool = False,
        optional: bool = False,
    ) -> None:
        self._cluster = cluster
        self._path = path
        self._query = dict(query)
        self._changed = changed
        self._note = note or (lambda _: None)
        self._keep = keep_departed
        self._optional = optional
        self._gone: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.objects: dict[str, Object] = {}
        self.departed: dict[str, Object] = {}
        self.error = ""
        self.absent = False

    async def ready(self) -> None:
        """Return once all objects are known. Raises Unreachable where they can't be."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        if self._ready.is_set():
            return
        failed = asyncio.create_task(self._failed())
        waits = asyncio.create_task(self._ready.wait())
        await asyncio.wait({failed, waits}, return_when=asyncio.FIRST_COMPLETED)
        failed.cancel()
        waits.cancel()
        if not self._ready.is_set():
            raise Unreachable(self.error)

    async def _failed(self) -> None:
        while not self.error:
            await asyncio.sleep(0.05)

    def put(self, new: Object) -> None:
        """Take note of an object as the server has just answered, before the watch tells of it."""
        self._take(new)

    def drop(self, name: str) -> None:
        """Take note that an object was deleted; what the watch still tells of it is old."""
        old = self.objects.pop(name, None)
        if old is not None:
            self._gone.add(old["metadata"]["uid"])
            self._note(old)

    async def close(self) -> None:
        """End the watch."""
        await stop(self._task)

    # ------------------------------------------------------------ keeping up

    async def _run(self) -> None:
        pause = SOONEST_S
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list()
                async with aclosing(self._follow(version)) as versions:
                    async for known in versions:
                        version, pause = known, SOONEST_S
                self._heard()
            except Answered as error:
                version = ""
                if self._optional and error.code in (403, 404):
                    for gone in list(self.objects.values()):
                        self._delete(gone)
                    self.absent = True
                    self._heard()
                    self._ready.set()
                    await asyncio.sleep(LATEST_S)
                elif error.code != 410:
                    self._missed(str(error))
                    await asyncio.sleep(pause)
                    pause = min(LATEST_S, pause * 2)
            except Unreachable as error:
                self._missed(str(error))
                await asyncio.sleep(pause)
                pause = min(LATEST_S, pause * 2)
            except Exception:
                log.exception("a watch failed and lists anew")
                version = ""
                await asyncio.sleep(LATEST_S)

    def _heard(self) -> None:
        self.error = ""

    def _missed(self, error: str) -> None:
        if not self.error:
            log.warning("Kubernetes: %s", error)
        self.error = error
        self._changed()

    async def _list(self) -> str:
        items, version = await self._cluster.list(self._path(), self._query)
        names = {item["metadata"]["name"] for item in items}
        for name, known in list(self.objects.items()):
            # One that is newer than the list was made after it.
            if name not in names and _version(known) <= int(version):
                self._delete(known)
        for item in items:
            self._take(item)
        self._gone.clear()
        self.absent = False
        self._heard()
        self._ready.set()
        self._changed()
        return version

    async def _follow(self, version: str) -> AsyncGenerator[str]:
        """The versions up to which everything is known, as that grows. Raises Answered where the server has
        forgotten `version`."""
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(RENEWED_S),
        }
        rest = b""
        async with aclosing(self._cluster.stream(self._path(), query)) as parts:
            async for part in parts:
                self._heard()
                *lines, rest = (rest + part).split(b"\n")
                for line in filter(None, lines):
                    event: Any = json.loads(line)
                    yield self._event(event["type"], event["object"])
                self._changed()

    def _event(self, kind: str, told: Object) -> str:
        if kind == "ERROR":
            raise Answered(int(told.get("code", 500)), str(told.get("reason", "")), str(told.get("message")))
        if kind == "DELETED":
            self._delete(told)
        elif kind != "BOOKMARK":
            self._take(told)
        return told["metadata"]["resourceVersion"]

    def _take(self, new: Object) -> None:
        name, uid = new["metadata"]["name"], new["metadata"]["uid"]
        known = self.objects.get(name)
        if uid in self._gone or (known is not None and _version(known) > _version(new)):
            return
        self.objects[name] = new
        self._note(new)

    def _delete(self, old: Object) -> None:
        name, uid = old["metadata"]["name"], old["metadata"]["uid"]
        self._gone.discard(uid)
        known = self.objects.get(name)
        if known is not None and known["metadata"]["uid"] == uid:
            del self.objects[name]
        if self._keep:
            self.departed[name] = old
        self._note(old)


def _version(known: Object) -> int:
    return int(known["metadata"]["resourceVersion"])
