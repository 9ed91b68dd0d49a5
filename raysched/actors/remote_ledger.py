"""The ledger actor as the actors beside it reach it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from raysched.actors import names
from raysched.core import gpu_views
from raysched.core.commands import Command
from raysched.core.host import Host
from raysched.core.measured import Guidance
from raysched.core.node import NodeInfo
from raysched.core.work import Change, Partition, Run


class RemoteLedger:
    """Methods of `Ledger`, where they are described. Each raises ActorDiedError or ValueError while there is
    no ledger; one that `up` made anew is found by the next call."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def tell(self, told: Sequence[Command]) -> None:
        """See `Ledger.tell`."""
        await self._ask("tell", told)

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        """See `Ledger.wanted`."""
        return await self._ask("wanted", backend, version, timeout)

    async def partitions(self, node: str, version: int, timeout: float) -> tuple[int, tuple[Partition, ...]]:
        """See `Ledger.partitions`."""
        return await self._ask("partitions", node, version, timeout)

    async def host_partitions(
        self, node: str, version: int, timeout: float
    ) -> tuple[int, tuple[Partition, ...]]:
        """See `Ledger.host_partitions`."""
        return await self._ask("host_partitions", node, version, timeout)

    async def nodes(self) -> dict[str, NodeInfo]:
        """See `Ledger.nodes`."""
        return await self._ask("nodes")

    async def names(self) -> dict[str, tuple[str, ...]]:
        """See `Ledger.names`."""
        return await self._ask("names")

    async def hosts(self, version: int, timeout: float) -> tuple[int, tuple[Host, ...]]:
        """See `Ledger.hosts`."""
        return await self._ask("hosts", version, timeout)

    async def view(self, what: str) -> dict[str, Any]:
        """See `Ledger.view`."""
        return await self._ask("view", what)

    async def remove_host(self, key: str, name: str) -> dict[str, Any]:
        """See `Ledger.remove_host`."""
        return await self._ask("remove_host", key, name)

    async def cordon(self, key: str, node: str, on: bool) -> dict[str, Any]:
        """See `Ledger.cordon`."""
        return await self._ask("cordon", key, node, on)

    async def known(self, backend: str) -> frozenset[Run]:
        """See `Ledger.known`."""
        return await self._ask("known", backend)

    async def sample(self, node: str, usage: gpu_views.Usage, told: Sequence[Command]) -> Guidance:
        """See `Ledger.sample`."""
        return await self._ask("sample", node, usage, told)

    async def host_sample(self, node: str, usage: gpu_views.Usage, told: Sequence[Command]) -> Guidance:
        """See `Ledger.host_sample`."""
        return await self._ask("host_sample", node, usage, told)

    async def _ask(self, method: str, *args: Any) -> Any:
        if self._handle is None:
            self._handle = ray.get_actor(names.LEDGER, namespace=names.NAMESPACE)
        try:
            return await getattr(self._handle, method).remote(*args)
        except ActorDiedError:
            self._handle = None
            raise
