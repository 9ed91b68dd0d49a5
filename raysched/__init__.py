"""raysched shares GPUs: whole, by fraction or by memory.

@raysched.remote(gpu_fraction=0.25)
def embed(batch): ...

refs = [embed.remote(batch) for batch in batches]

Every name here is loaded when it is used first, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysched.client import Client
    from raysched.errors import LeaseLost, RayschedError, Refused, SpecError, Unreachable
    from raysched.python.actor_class import kill
    from raysched.python.decorator import remote
    from raysched.python.history import history
    from raysched.python.leases import Lease, lease, placement_group, release
    from raysched.python.submission import Job, submit

__version__ = "0.2.0"

__all__ = [
    "Client",
    "Job",
    "Lease",
    "LeaseLost",
    "RayschedError",
    "Refused",
    "SpecError",
    "Unreachable",
    "history",
    "kill",
    "lease",
    "placement_group",
    "release",
    "remote",
    "submit",
]

_HOMES = {
    "Client": "client",
    "Job": "python.submission",
    "Lease": "python.leases",
    "history": "python.history",
    "kill": "python.actor_class",
    "lease": "python.leases",
    "placement_group": "python.leases",
    "release": "python.leases",
    "remote": "python.decorator",
    "submit": "python.submission",
}
"""The module of each name; errors, which are all the others, have one."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module raysched has no attribute {name}")
    return getattr(import_module(f"raysched.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
