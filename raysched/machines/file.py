"""The file of a cluster: Ray's own cluster YAML, with one section more, `raysched`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raysched.errors import ConfigError, FileMissing, SpecError
from raysched.machines.record import Cluster
from raysched.specs.inventory import check_host, parse_host_name

Json = dict[str, Any]
OURS, RAY = "raysched", "ray"
HOST_FIELDS = ("port", "jump", "python", "folder", "simulate", "labels", "cpus", "memory")
NOT_USED = {
    "docker": "say `image:` in the jobs",
    "file_mounts": "jobs bring their working directory",
    "min_workers": "say it of each node type",
}
"""Fields of Ray's that would promise what is not done, and what to do instead."""


def load(path: Path) -> Cluster:
    """The cluster that a file asks for. Raises FileMissing and ConfigError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileMissing(f"{path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    try:
        return _cluster(content)
    except (ValueError, SpecError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _cluster(content: Any) -> Cluster:
    """Raises ValueError."""
    if not isinstance(content, dict) or not isinstance(content.get("provider"), dict):
        raise ValueError("this is no cluster file of Ray: it has no `provider`")
    asked = dict(content)
    host = asked.pop(OURS, None) or {}
    ray = host.pop(RAY, False) if isinstance(host, dict) else False
    if not isinstance(ray, bool):
        raise ValueError(f"{OURS}.{RAY}: must be true or false")
    name = parse_host_name(str(asked.get("cluster_name", "")))
    for field, instead in NOT_USED.items():
        if asked.get(field) and not (field == "min_workers" and asked["provider"].get("type") == "local"):
            raise ValueError(f"{field}: not used by raysched; take it out, and {instead}")
    if (asked.get("auth") or {}).get("ssh_proxy_command"):
        raise ValueError("auth.ssh_proxy_command: not used by raysched; name the way as raysched.jump")
    _check(host)
    idle = asked.get("idle_timeout_minutes")
    idle_s = None if idle is None else float(idle) * 60
    return Cluster(name, asked, None, host, _setup(asked), idle_s, ray=ray)


def _check(host: Any) -> None:
    """The fields that all hosts of the cluster have. Raises ValueError."""
    unknown = sorted(set(host) - set(HOST_FIELDS)) if isinstance(host, dict) else [repr(host)]
    if unknown:
        raise ValueError(f"{OURS}: {', '.join(unknown)} is none of {', '.join((RAY, *HOST_FIELDS))}")
    check_host({"name": "any", **host})


def _setup(asked: Json) -> dict[str, list[str]]:
    """What each kind of machine runs once, in Ray's order; nothing that Ray would add."""
    first = [*(asked.get("initialization_commands") or []), *(asked.get("setup_commands") or [])]
    kinds = {kind: asked.get(f"{kind}_setup_commands") or [] for kind in ("head", "worker")}
    return {kind: [str(command) for command in [*first, *more]] for kind, more in kinds.items()}
