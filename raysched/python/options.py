"""The keyword arguments of `raysched.remote`, `raysched.lease` and `raysched.placement_group`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raysched.actors.calls.claims import Shape
from raysched.errors import SpecError
from raysched.specs.resources import LeaseOptions, LeaseSpec, check_options

RETRIES = 3
"""How often a call is started again after its worker died: Ray's own default."""

ELSEWHERE = {
    "num_gpus": "raysched.remote has no num_gpus: write gpus, gpu_fraction or gpu_memory",
    "num_cpus": "raysched.remote has no num_cpus: write cpus",
    "runtime_env": "runtime_env belongs to the whole job: pass it to ray.init or `ray job submit`",
    "resources": "raysched.remote takes the fields of `resources` themselves, such as gpu_fraction=0.25",
    "scheduling_strategy": "scheduling_strategy is raysched's: it runs the call where its lease is",
    "max_calls": "max_calls has no meaning here: workers live as long as their lease",
    "lifetime": "decorated actors end with their program: lifetime can't be set",
    "namespace": "decorated actors can't be named: pass the handle instead of a name and a namespace",
}
"""Options of Ray that mean something else here, and what to write."""


class CallOptions(LeaseOptions, total=False):
    """What `raysched.remote` takes: resources, queue, priority, and how to run the calls."""

    name: str
    max_retries: int
    num_returns: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked options. `asked` are those of the lease, as they were written."""

    asked: tuple[tuple[str, Any], ...] = ()
    name: str | None = None
    max_retries: int = RETRIES
    num_returns: int = 1

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Check keyword arguments. Raises SpecError, which names each that is wrong."""
        return cls().changed(options)

    def changed(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some other values. Raises SpecError."""
        for name in options:
            if name in ELSEWHERE:
                raise SpecError(ELSEWHERE[name])
        own = {name: options[name] for name in ("name", "max_retries", "num_returns") if name in options}
        asked = dict(self.asked) | {name: value for name, value in options.items() if name not in own}
        check_own(own)
        on_one_node(check_options(asked))
        return replace(self, asked=tuple(asked.items()), **own)

    def shape(self, name: str) -> Shape:
        """What a lease for this is asked with."""
        return shape_of(self.name or name, dict(self.asked))

    @property
    def key(self) -> str:
        """Equal for all that can share leases."""
        asked = json.dumps(dict(self.asked), sort_keys=True, default=str)
        return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()


def shape_of(name: str, asked: Mapping[str, Any]) -> Shape:
    """What a lease of that name is asked with."""
    given = {field: value for field, value in asked.items() if field != "queue" and value is not None}
    return Shape(name, asked.get("queue") or "default", given)


def check_own(options: Mapping[str, Any]) -> None:
    """Raises SpecError where options that are not the lease's are wrong."""
    returns, retries = options.get("num_returns", 1), options.get("max_retries", RETRIES)
    if type(returns) is not int or returns < 1:
        raise SpecError(
            f"num_returns: must be a whole number from 1, and is {returns!r}: return a list instead"
        )
    if type(retries) is not int or retries < -1:
        raise SpecError(f"max_retries: must be a whole number, -1 meaning without end, and is {retries!r}")
    name = options.get("name", "x")
    if not isinstance(name, str) or not name.strip():
        raise SpecError(f"name: must be a text, and is {name!r}")


def on_one_node(spec: LeaseSpec) -> None:
    """Raises SpecError for a lease over several nodes, where one process has to use it."""
    if spec.nodes not in (None, 1):
        raise SpecError(
            f"nodes: a decorated function or class runs on one node, and {spec.nodes} are asked for: "
            "use raysched.lease or raysched.placement_group"
        )
