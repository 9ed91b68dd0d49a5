"""When a process dies. Every step that is worth dying at is told to its fate; the process is killed for real,
by SIGKILL from itself, so that not a line of it runs afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from raysched.core.facts import Fact
from raysched.core.state import State
from raysched.store.journal import Journal


class Fate:
    """Dies at step number `last` from now; never, if that is 0."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.steps = 0

    def step(self, _what: str) -> None:
        """One more step is done, or about to be."""
        self.steps += 1
        if self.steps == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def watch(engine: Engine, fate: Fate) -> None:
    """Every statement of a database, and the end of every transaction, is a step."""

    def step(*_: Any, **__: Any) -> None:
        fate.step("within a transaction")

    for moment in ("before_cursor_execute", "after_cursor_execute", "commit", "rollback"):
        event.listen(engine, moment, step)


class MortalJournal(Journal):
    """The journal, with a fate around each write of it and around each statement within one."""

    def __init__(self, url: str, fate: Fate) -> None:
        self.fate = fate
        super().__init__(url)
        watch(self._engine, fate)

    def append(self, facts: Sequence[Fact]) -> int:
        self.fate.step("before a write")
        last = super().append(facts)
        self.fate.step("after a write")
        return last

    def snapshot(self, state: State, seq: int) -> None:
        self.fate.step("before a snapshot")
        super().snapshot(state, seq)
        self.fate.step("after a snapshot")
