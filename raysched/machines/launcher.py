"""Ray's cluster launcher as raysched uses it: its providers make, tag, find and end machines. No Ray runs on
them for that."""

from __future__ import annotations

import io
import logging
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

from ray.autoscaler._private import commands, providers, util
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UNINITIALIZED,
    STATUS_UP_TO_DATE,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from raysched.errors import ConfigError, RayschedError
from raysched.machines.record import Cluster, Json

NEEDS = {"aws": "pip install 'raysched[aws]'"}
"""What brings the libraries of a provider."""

_one_at_a_time = threading.RLock()
"""What is printed is caught for all threads at once."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that runs or is about to. `kind` is Ray's: head or worker, `type` the node type of the file;
    `address` is None while it has none; `ready` once its setup commands have run."""

    id: str
    kind: str
    type: str
    address: str | None
    ready: bool


class Launcher:
    """The machines of one cluster. Raises RayschedError, in the provider's words."""

    def __init__(self, cluster: Cluster) -> None:
        self.name = cluster.name
        with _words(cluster):
            self._config = cluster.config or _prepared(cluster.asked)
            self.provider = providers._get_node_provider(self._config["provider"], self.name, use_cache=False)
        self._cluster = cluster

    def wanted(self) -> Counter[tuple[str, str]]:
        """How many machines of each kind and type there are to be."""
        types = self._config["available_node_types"]
        counts = Counter(
            {(NODE_KIND_WORKER, name): each.get("min_workers", 0) for name, each in types.items()}
        )
        counts[(NODE_KIND_HEAD, self._config["head_node_type"])] = 1
        return counts

    def found(self) -> list[Machine]:
        """The machines that there are, by their tags."""
        with _words(self._cluster):
            return [self._machine(id) for id in sorted(self.provider.non_terminated_nodes({}))]

    def _machine(self, id: str) -> Machine:
        tags = self.provider.node_tags(id)
        inside = self._config["provider"].get("use_internal_ips", False)
        address = self.provider.internal_ip(id) if inside else self.provider.external_ip(id)
        ready = tags.get(TAG_RAY_NODE_STATUS) == STATUS_UP_TO_DATE
        return Machine(id, tags[TAG_RAY_NODE_KIND], tags.get(TAG_RAY_USER_NODE_TYPE, ""), address, ready)

    def make(self, kind: str, type: str, count: int) -> None:
        """Make so many machines; they are tagged from their first moment on."""
        config = self._config["available_node_types"][type]["node_config"]
        tags = {
            TAG_RAY_CLUSTER_NAME: self.name,
            TAG_RAY_NODE_KIND: kind,
            TAG_RAY_USER_NODE_TYPE: type,
            TAG_RAY_NODE_NAME: f"ray-{self.name}-{kind}",
            TAG_RAY_NODE_STATUS: STATUS_UNINITIALIZED,
            TAG_RAY_LAUNCH_CONFIG: util.hash_launch_conf(config, self._config["auth"]),
        }
        with _words(self._cluster):
            self.provider.create_node(config, tags, count)

    def set_ready(self, id: str) -> None:
        """Note that the setup commands have run there."""
        with _words(self._cluster):
            self.provider.set_node_tags(id, {TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE})

    def end(self, ids: Sequence[str]) -> None:
        """End machines, for good."""
        with _words(self._cluster):
            self.provider.terminate_nodes(list(ids))

    @property
    def auth(self) -> Json:
        """Account and key, as the file or the provider says."""
        return self._config["auth"]


def resolve(cluster: Cluster) -> Json:
    """What the launcher makes of the file: defaults filled in, and around the machines what they need, such
    as a key pair and a security group, made where it is not there. Raises RayschedError."""
    with _words(cluster):
        config = commands._bootstrap_config(_without_cache(cluster.asked), no_config_cache=True)
        return dict(config)


def _prepared(asked: Json) -> Json:
    """Defaults filled in, and nothing made."""
    return dict(util.prepare_config(_without_cache(asked)))


def _without_cache(asked: Json) -> Json:
    """Machines that are ended are to be gone, not kept stopped for later, which costs."""
    return {**asked, "provider": {**asked["provider"], "cache_stopped_nodes": False}}


@contextmanager
def _words(cluster: Cluster) -> Generator[None]:
    """Let Ray's launcher, which prints and ends the process, raise RayschedError."""
    kind, said = str(cluster.asked["provider"].get("type")), io.StringIO()
    logging.getLogger("ray.autoscaler").setLevel(logging.CRITICAL)  # what matters is raised as well
    try:
        with _one_at_a_time, redirect_stdout(said), redirect_stderr(said):
            yield
    except ImportError as error:
        how = NEEDS.get(kind, "see Ray's documentation of its cluster launcher")
        raise ConfigError(f"the provider {kind} needs the library {error.name}: {how}") from None
    except RayschedError:
        raise
    except (Exception, SystemExit) as error:
        lines = [line.strip() for line in f"{said.getvalue()}\n{error}".splitlines() if line.strip()]
        raise RayschedError(
            f"the provider {kind} of the cluster {cluster.name} says no: {lines[-1] if lines else error!r}"
        ) from None
