"""The core as one object: commands in, facts out, the state kept. The ledger actor, the simulator and the
tests all drive this."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysched.core.commands import Command
from raysched.core.decide import decide, grant
from raysched.core.evolve import evolve
from raysched.core.facts import Fact
from raysched.core.queue import survey
from raysched.core.state import State


class Scheduler:
    """Holds the state. It has no clock: `now` is milliseconds since 1970, given by the caller. `hear` is
    called with each fact before that is folded."""

    def __init__(self, state: State | None = None, hear: Callable[[State, Fact], None] | None = None) -> None:
        self.state = state or State()
        self._hear = hear

    def handle(self, command: Command, now: int) -> list[Fact]:
        """Decide one command and fold its facts. Raises what `decide` raises, and then changes nothing."""
        return self._fold(decide(self.state, command, now))

    def schedule(self, now: int) -> list[Fact]:
        """Grant what fits to the waiting jobs, in their order."""
        granted: list[Fact] = []
        for look in survey(self.state, now):
            if look.placement is not None:
                granted += self._fold(grant(self.state, look.job, look.placement, now))
        return granted

    def _fold(self, facts: Sequence[Fact]) -> list[Fact]:
        for fact in facts:
            if self._hear is not None:
                self._hear(self.state, fact)
            evolve(self.state, fact)
        return list(facts)
