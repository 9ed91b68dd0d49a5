"""What happens to simulated GPUs, at a test's word: they fail, are cut by hand, are used by strangers."""

from __future__ import annotations

import shutil
from pathlib import Path

from raysched.core.mig import Cut, Instance, Layout
from raysched.core.node import Mechanism
from raysched.core.request import WHOLE
from raysched.gpu.cards import Cards, path_of
from raysched.gpu.driver import ProcessUse
from raysched.gpu.processes import started


class SimulatedGPUs:
    """The simulated GPUs of the node called `node`, of the system whose state folder is `folder`. What is
    changed here shows when the node agent looks next."""

    def __init__(self, folder: Path, node: str) -> None:
        self._cards = Cards(path_of(folder, node))

    def layout(self, gpu: str) -> Layout:
        """How a GPU is cut now."""
        return self._cards[gpu].layout

    def fail(self, gpu: str, fault: str) -> None:
        """Let a GPU have a fault, in words; an empty text ends it."""
        with self._cards.change(gpu) as card:
            card.fault = fault

    def refuse(self, gpu: str, cut: Cut | None, reason: str) -> None:
        """Let the driver refuse to make or destroy an instance, to switch the MIG mode (None), or to start or
        end the MPS daemon (`core.mig.DAEMON`)."""
        with self._cards.change(gpu) as card:
            card.refused.append((cut, reason))

    def allow(self, gpu: str) -> None:
        """Let the driver refuse nothing of that kind any more."""
        with self._cards.change(gpu) as card:
            card.refused.clear()

    def cut(self, gpu: str, *cuts: Cut, enabled: bool = True) -> tuple[Instance, ...]:
        """Cut a GPU by hand: exactly these instances, all of them new."""
        with self._cards.change(gpu) as card:
            card.enabled = enabled
            first = card.made + 1
            card.made += len(cuts)
            made = [Instance(f"MIG-by-hand-{gpu}-{first + at}", cut) for at, cut in enumerate(cuts)]
            card.instances = made
            return card.layout.instances

    def use(
        self,
        gpu: str,
        pid: int,
        memory_mib: int | None,
        instance: str | None = None,
        busy: float | None = None,
        *,
        graphics: bool = False,
    ) -> None:
        """Let a process be on a GPU, or on one of its MIG instances: holding so much memory, and keeping the
        part `busy` (0 to 1) of the GPU so. A process that lives is on it until it ends; said again, what it
        holds changes."""
        part = None if busy is None else round(busy * WHOLE)
        with self._cards.change(gpu) as card:
            card.processes = [use for use in card.users if use.pid != pid]
            card.processes.append(ProcessUse(pid, memory_mib, instance, part, graphics))
            ticks = started(pid)
            if ticks is not None:
                card.born[pid] = ticks

    def leave(self, gpu: str) -> None:
        """Let no process be on a GPU any more."""
        with self._cards.change(gpu) as card:
            card.processes.clear()
            card.born.clear()

    def warm(self, gpu: str, watts: int | None, celsius: int | None) -> None:
        """Let a GPU draw so much power and have this temperature; None: it does not tell."""
        with self._cards.change(gpu) as card:
            card.power, card.temperature = watts, celsius

    def offer(self, gpu: str, *mechanisms: Mechanism) -> None:
        """Let a GPU have these means, beside MIG, to hold tenants to their shares: `mps` with a daemon that
        the node agent starts and ends."""
        with self._cards.change(gpu) as card:
            card.offers = list(mechanisms)

    def end_daemon(self, gpu: str) -> None:
        """Let the MPS daemon of a GPU die."""
        with self._cards.change(gpu) as card:
            shutil.rmtree(card.mps, ignore_errors=True)
            card.mps = ""

    def slow(self, gpu: str, seconds: float) -> None:
        """Let every change of how a GPU is cut take so long."""
        with self._cards.change(gpu) as card:
            card.pause = seconds
