"""Which client processes are still heard of, so that one that was stopped or cut off keeps no GPU."""

from __future__ import annotations

from collections.abc import Iterable

STEP_S = 3.0
"""The most that counts between two looks: in what is more the ledger itself stood still and heard nobody."""


class Heartbeats:
    """How long each owner of leases has been silent. Only time that passes while the ledger listens counts:
    a clock that is set, a machine that was suspended and a new start of the ledger take nobody's lease."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._silent: dict[str, float] = {}

    def heard(self, owner: str) -> None:
        """The owner's process lives now."""
        self._silent.pop(owner, None)

    def passed(self, seconds: float, owners: Iterable[str]) -> list[str]:
        """Count the seconds for `owners`, who are all that hold something; those without patience left."""
        step = min(seconds, STEP_S)
        self._silent = {owner: self._silent.get(owner, 0.0) + step for owner in owners}
        return [owner for owner, silent in self._silent.items() if silent >= self._patience]
