"""What simulated GPUs are like at the moment: their MIG mode, instances, faults, and who uses them.

It outlives the process that changes it, as with real GPUs, so it is kept in a file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raysched.core.mig import Cut, Instance, Layout
from raysched.core.node import Mechanism
from raysched.gpu.driver import ProcessUse
from raysched.gpu.processes import started


@dataclass(slots=True)
class Card:
    """One simulated GPU. `made` counts the instances that it ever had, so that no UUID comes twice; `refused`
    holds what the driver would not do (a cut, or None for the MIG mode) and why; `pause` is the time in
    seconds that each change takes. `offers` are the mechanisms beside MIG that a test lets it have, `mps` is
    the pipe directory of its MPS daemon while that runs. `born` has the start (in clock ticks) of each
    process that lived when it came: it is on the card until it ends, and others until they are told to leave.
    `power` is in watts, `temperature` in degrees Celsius."""

    enabled: bool = False
    instances: list[Instance] = field(default_factory=list[Instance])
    made: int = 0
    fault: str = ""
    refused: list[tuple[Cut | None, str]] = field(default_factory=list["tuple[Cut | None, str]"])
    processes: list[ProcessUse] = field(default_factory=list[ProcessUse])
    pause: float = 0.0
    offers: list[Mechanism] = field(default_factory=list[Mechanism])
    mps: str = ""
    born: dict[int, int] = field(default_factory=dict[int, int])
    power: int | None = None
    temperature: int | None = None

    @property
    def users(self) -> list[ProcessUse]:
        """The processes that are on it now."""
        return [use for use in self.processes if self.born.get(use.pid) in (None, started(use.pid))]

    @property
    def layout(self) -> Layout:
        """How it is cut now."""
        instances = tuple(sorted(self.instances, key=lambda each: each.cut.start))
        return Layout(self.enabled, instances, self.mps)

    def refusal(self, cut: Cut | None) -> str | None:
        """Why the driver would not do this, None where it would."""
        return next((reason for what, reason in self.refused if what == cut), None)


class Cards:
    """The GPUs of one node by UUID, in the file at `path`; without one only this object knows them."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cards: dict[str, Card] = {}

    def __getitem__(self, uuid: str) -> Card:
        return self._read().get(uuid, Card())

    @contextmanager
    def change(self, uuid: str) -> Generator[Card]:
        """A card to change; it is written, whole or not at all, when the block ends without an error."""
        with self._locked():
            cards = self._read()
            card = cards.setdefault(uuid, Card())
            yield card
            self._write(cards)

    @contextmanager
    def _locked(self) -> Generator[None]:
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, Card]:
        if self._path is None or not self._path.exists():
            return self._cards
        stored: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        return {uuid: _card(fields) for uuid, fields in stored.items()}

    def _write(self, cards: dict[str, Card]) -> None:
        if self._path is None:
            return
        aside = self._path.with_suffix(".new")
        aside.write_text(json.dumps({uuid: asdict(card) for uuid, card in cards.items()}), encoding="utf-8")
        os.replace(aside, self._path)


def _card(fields: dict[str, Any]) -> Card:
    return Card(
        enabled=fields["enabled"],
        instances=[Instance(each["uuid"], Cut(**each["cut"])) for each in fields["instances"]],
        made=fields["made"],
        fault=fields["fault"],
        refused=[(None if cut is None else Cut(**cut), reason) for cut, reason in fields["refused"]],
        processes=[ProcessUse(**each) for each in fields["processes"]],
        pause=fields["pause"],
        offers=fields["offers"],
        mps=fields["mps"],
        born={int(pid): ticks for pid, ticks in fields["born"].items()},
        power=fields["power"],
        temperature=fields["temperature"],
    )


def path_of(folder: Path, node: str) -> Path:
    """Where the cards of a node are kept, in the state folder `folder` of a system."""
    return folder / "simulated" / f"{node}.json"
