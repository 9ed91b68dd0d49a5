"""The backend actor: opens one backend and drives it, for ever (`backends/reconciler.py`)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysched.actors.entrance import entrance
from raysched.actors.remote_ledger import RemoteLedger
from raysched.actors.settings import Settings
from raysched.backends.base import Backend, Cordoning, EngineRefused, Mirroring, Scripted
from raysched.backends.reconciler import Reconciler
from raysched.backends.runner import forget_worker
from raysched.backends.slurm.controller import Unanswered
from raysched.core.work import Launch, Run
from raysched.errors import Refused, Unreachable
from raysched.machines.keeper import Keeper

if TYPE_CHECKING:
    from raysched.backends.kube.backend import KubeBackend
    from raysched.backends.kube.evictions import Left


class BackendActor:
    """Drives one backend. Detached, on the head node, restarted for ever."""

    async def __init__(self, name: str, settings: Settings) -> None:
        forget_worker()
        self.name = name
        self.ledger = RemoteLedger()
        self.backend = _open(name, settings, self.ledger)
        self.task = asyncio.create_task(Reconciler(self.backend, self.ledger).run())
        if name == "vm":
            keeper = Keeper(Path(settings.folder), self.ledger, entrance)
            self.keeper = asyncio.create_task(keeper.run())

    def __repr__(self) -> str:
        return f"Backend({self.name})"

    async def ping(self) -> str:
        """Whether the backend actor answers."""
        return self.name

    async def logs(self, run: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return await self.backend.logs(Run.parse(run), offset, limit)

    async def way_in(self, run: str) -> str | None:
        """The command with which one gets into a run of Kubernetes; None where it does not run."""
        return self.kube.way_in(Run.parse(run))

    async def scripts(self, launches: Sequence[Launch]) -> dict[Run, str]:
        """What would be sent to a site for these launches; nothing where work is started without one."""
        return await self.backend.scripts(launches) if isinstance(self.backend, Scripted) else {}

    async def cordon(self, node: str, on: bool, reason: str) -> str:
        """Have a site start nothing new on a node, or use it again, and tell the ledger; "", else why not."""
        assert isinstance(self.backend, Cordoning), "this backend's nodes are cordoned by the ledger"
        assert isinstance(self.backend, Mirroring)
        try:
            await self.backend.cordon(node, on, reason)
            await self.ledger.tell(await self.backend.mirror())
        except (EngineRefused, Unanswered, Unreachable) as error:
            return str(error)
        return ""

    async def evict(self, node: str, stay: dict[str, str], how: Mapping[str, bool]) -> list[dict[str, Any]]:
        """Ask the pods of a node of Kubernetes to leave; those that are still there. Raises Refused."""
        from raysched.backends.kube.evictions import Drain

        drain = Drain(stay, how["force"], how["delete_emptydir_data"], how["plan"])
        with refusals():
            left = await self.kube.evict(node, drain)
        return [_left_view(one) for one in left]

    async def label(self, node: str, labels: dict[str, str | None]) -> dict[str, str]:
        """Label a node of Kubernetes; all labels that it has then. Raises Refused."""
        with refusals():
            return await self.kube.label(node, labels)

    async def share(
        self, node: str, stay: dict[str, str], to: Mapping[str, Any], how: Mapping[str, bool]
    ) -> dict[str, Any]:
        """Bring a node of Kubernetes one step further to sharing its GPUs so. Raises Refused."""
        from raysched.backends.kube.evictions import Drain
        from raysched.backends.kube.plugin import Sharing

        drain = Drain(stay, how["force"], how["delete_emptydir_data"], how["plan"])
        sharing = Sharing(to["kind"], to["replicas"], to["layout"])
        with refusals():
            look = await self.kube.share(node, sharing, drain, end=how["drain"])
        return {
            "node": node,
            "state": look.state,
            "to": sharing.words,
            "changes": list(look.changes),
            "offers": dict(look.offers),
            "wanted": dict(look.wanted),
            "left": [_left_view(one) for one in look.left],
        }

    @property
    def kube(self) -> KubeBackend:
        """The k8s backend, where this is its actor."""
        from raysched.backends.kube.backend import KubeBackend

        assert isinstance(self.backend, KubeBackend), "only the k8s backend has such nodes"
        return self.backend

    async def check_host(self, host: str, accept_new: bool) -> str:
        """Connect to a host of the vm backend anew; "" where it can be used, else why not."""
        from raysched.backends.vm import VMBackend

        assert isinstance(self.backend, VMBackend), "only the vm backend has hosts"
        return await self.backend.hosts.check(host, accept_new)


def _left_view(one: Left) -> dict[str, Any]:
    return {"job": one.job, "display": one.pod, "pod": one.pod, "why": one.why}


@contextmanager
def refusals() -> Generator[None]:
    """What an engine refuses for good, as an error that reaches whoever asked."""
    try:
        yield
    except EngineRefused as refused:
        raise Refused(refused.reason) from None


def _open(name: str, settings: Settings, ledger: RemoteLedger) -> Backend:
    """The backend of that name, on this machine."""
    if name == "vm":
        from raysched.actors.metrics import NodeMetrics
        from raysched.backends.ssh.hosts import Hosts
        from raysched.backends.vm import VMBackend
        from raysched.gpu.watch import Rules

        folder = Path(settings.folder)
        rules = Rules(settings.watchdog, settings.sample, NodeMetrics().show, settings.replicas, folder)
        hosts = Hosts(ledger, system_id(folder), rules)
        return VMBackend(folder / "runs", settings.environment, settings.packages, hosts)
    if name == "slurm":
        return _open_slurm(settings, ledger)
    if name in settings.k8s:
        return _open_kube(name, settings, ledger)
    from raysched.backends.ray.backend import RayBackend

    return RayBackend(settings.packages, ledger.nodes)


def system_id(folder: Path) -> str:
    """What tells this system's runs on a host from another's; made once for a state folder."""
    path = folder / "system"
    with suppress(FileExistsError), open(path, "x", encoding="ascii") as file:
        file.write(secrets.token_hex(6))
    return path.read_text(encoding="ascii")


def _open_slurm(settings: Settings, ledger: RemoteLedger) -> Backend:
    from raysched.backends.slurm.access import open_controller
    from raysched.backends.slurm.backend import SlurmBackend
    from raysched.backends.slurm.script import Defaults

    site = settings.slurm
    assert site is not None, "no Slurm site is configured"
    return SlurmBackend(
        Path(site.folder),
        open_controller(site.login, site.rest, site.token_file, settings.environment),
        settings.environment,
        settings.packages,
        defaults=Defaults(site.account, site.partition, site.qos, site.python),
        gpu_memory=site.gpu_memory,
        names=ledger.names,
        ray={**entrance(), "simulate": site.simulate},
    )


def _open_kube(name: str, settings: Settings, ledger: RemoteLedger) -> Backend:
    from raysched.backends.kube.backend import KubeBackend
    from raysched.backends.kube.cluster import Access, Cluster

    site = settings.k8s[name]
    folder = Path(settings.folder)
    return KubeBackend(
        Cluster(Access(site.kubeconfig, site.context, site.namespace, settings.environment)),
        system_id(folder),
        settings.packages,
        folder / f"runs-{name}",
        name=name,
        image=site.image,
        kai=site.kai,
        kueue=site.kueue,
        patience=site.patience,
        names=ledger.names,
    )
