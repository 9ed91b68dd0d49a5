"""Packed working directories in a cluster: each in ConfigMaps that all runs with it share."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Set
from pathlib import Path

from raysched.backends.base import EngineRefused
from raysched.backends.kube.cluster import Cluster, Object
from raysched.backends.kube.names import NAME, PART, SYSTEM, files_name, labels

PART_BYTES = 700_000
"""Bytes of a part: a ConfigMap may have a MiB."""
MOST_PARTS = 15
"""Parts that a working directory may have: they lie in the cluster's own store."""


class Files:
    """The packages in `folder` (`DIGEST.tar.gz`), and which of them are in the cluster."""

    def __init__(self, folder: Path, cluster: Cluster, system: str) -> None:
        self._folder = folder
        self._cluster = cluster
        self._system = system
        self._there: dict[str, int] = {}
        self._changing = asyncio.Lock()

    def parts(self, digest: str | None) -> int:
        """In how many parts a package comes. Raises EngineRefused for one that is damaged or too large."""
        if digest is None:
            return 0
        if digest in self._there:
            return self._there[digest]
        path = self._folder / f"{digest}.tar.gz"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineRefused(
                f"working_dir: its package can't be read: {error.strerror}", final=True
            ) from None
        size = len(content)
        if hashlib.sha256(content).hexdigest() != digest:
            raise EngineRefused("working_dir: its package is damaged: submit the job again", final=True)
        if size > PART_BYTES * MOST_PARTS:
            raise EngineRefused(
                f"working_dir: has {size / 1e6:.1f} MB when packed, and a cluster is given at most "
                f"{PART_BYTES * MOST_PARTS / 1e6:g} MB: leave data out of it (.rayschedignore), or put the "
                "files into the image or onto a volume and set working_dir: null",
                final=True,
            )
        return -(-size // PART_BYTES)

    async def bring(self, digest: str | None) -> None:
        """See to it that a package is in the cluster."""
        if digest is None or digest in self._there:
            return
        async with self._changing:
            if digest in self._there:
                return
            count = self.parts(digest)
            content = await asyncio.to_thread((self._folder / f"{digest}.tar.gz").read_bytes)
            for part in range(count):
                some = content[part * PART_BYTES : (part + 1) * PART_BYTES]
                await self._bring_part(digest, part, some)
            self._there[digest] = count

    async def _bring_part(self, digest: str, part: int, content: bytes) -> None:
        name = files_name(digest, self._system, part)
        body: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "labels": labels(self._system, "files"),
                "annotations": {NAME: digest},
            },
            "binaryData": {"part": base64.b64encode(content).decode()},
            "immutable": True,
        }
        await self._cluster.apply(f"{self._path}/{name}", body)

    async def sweep(self, needed: Set[str]) -> None:
        """Delete from the cluster what no run needs."""
        async with self._changing:
            query = {"labelSelector": f"{SYSTEM}={self._system},{PART}=files"}
            there, _ = await self._cluster.list(self._path, query)
            for found in there:
                digest = found["metadata"].get("annotations", {}).get(NAME, "")
                if digest not in needed:
                    self._there.pop(digest, None)
                    await self._cluster.delete(f"{self._path}/{found['metadata']['name']}")

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self._cluster.namespace}/configmaps"
