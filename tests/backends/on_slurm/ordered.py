"""Launches that ask something of a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysched.core.environment import rank_variables
from raysched.core.site import NOWHERE, Demand
from raysched.core.work import Launch, Order
from raysched.testing.conformance import Hands, new_launch

ONE_CPU = Demand("", "", 0, 1, False, 0, 0, 0)


class OrderedHands(Hands):
    """A slurm backend in the hands of a test. Launches ask for a CPU, or for what `order` is told."""

    def launch(
        self,
        entrypoint: str | Sequence[str],
        env: Mapping[str, str] | None = None,
        package: str | None = None,
    ) -> Launch:
        return replace(new_launch(entrypoint, NOWHERE, env, package), order=Order(ONE_CPU))

    def order(self, entrypoint: str, *, limit: int | None = None, **fields: Any) -> Launch:
        """A launch that asks for something else; what is no field of a demand is said to Slurm alone."""
        names = Demand.__slots__
        demand = replace(ONE_CPU, **{name: value for name, value in fields.items() if name in names})
        options = tuple((name, value) for name, value in fields.items() if name not in names)
        addresses = [f"@{rank}@" for rank in range(demand.nodes)]
        ranks = tuple(tuple(rank_variables(rank, addresses, 1234, 1).items()) for rank in range(demand.nodes))
        return replace(self.launch(entrypoint), order=Order(demand, limit, options, ranks))
