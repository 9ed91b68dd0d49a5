"""What every actor of a running system needs to know; made by `up` and passed to each at its creation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raysched.core.host import Host
from raysched.core.measured import USUAL, Policy
from raysched.core.node import REPLICAS
from raysched.store.usual import file_url


@dataclass(frozen=True, slots=True)
class SlurmSite:
    """How a Slurm site is reached and used: the fields of `backends: {slurm: ...}`; memory in MiB."""

    folder: str
    login: str | None = None
    rest: str | None = None
    token_file: str | None = None
    python: str = "python3"
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    simulate: str | None = None
    gpu_memory: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class KubeSite:
    """How a Kubernetes cluster is reached and used: the fields of `backends: {k8s: ...}`; times in ms."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    image: str | None = None
    patience: int = 600_000
    kai: dict[str, str] = field(default_factory=dict[str, str])
    kueue: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Settings:
    """`folder` is the state folder; `environment` the variables of the shell that ran `up`, from which jobs
    get theirs; `simulate` describes the made-up GPUs of the head node, None for real ones; `store` is the
    journal's URL, None for a file in the folder. The token is not here: it stays in `gateway.json`.
    """

    folder: str
    host: str = "127.0.0.1"
    port: int = 8274
    simulate: str | None = None
    backends: tuple[str, ...] = ("ray", "vm")
    silence: float = 60.0
    """How many seconds a program that holds leases may be silent."""
    watchdog: Policy = USUAL
    sample: float = 2.0
    """How many seconds lie between two samples of a GPU."""
    replicas: int = REPLICAS
    """How many tenants a time-sliced GPU takes."""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    hosts: tuple[Host, ...] = ()
    """The machines behind SSH that the configuration names."""
    store: str | None = field(default=None, repr=False)  # it may hold a password
    slurm: SlurmSite | None = None
    k8s: dict[str, KubeSite] = field(default_factory=dict[str, KubeSite])
    """Kubernetes clusters by backend."""

    @property
    def on_nodes(self) -> tuple[str, ...]:
        """The backends that launch work on the nodes of the Ray cluster; a site has nodes of its own."""
        return tuple(name for name in self.backends if name not in self.sites)

    @property
    def sites(self) -> tuple[str, ...]:
        """The backends whose nodes have a scheduler of their own."""
        return tuple(name for name in self.backends if name == "slurm" or name in self.k8s)

    @property
    def journal(self) -> str:
        """The URL of the journal."""
        return self.store or file_url(Path(self.folder))

    @property
    def packages(self) -> Path:
        """The folder of packed working directories."""
        return Path(self.folder) / "packages"

    @property
    def endpoint(self) -> Path:
        """The file with the gateway's address and token."""
        return Path(self.folder) / "gateway.json"
