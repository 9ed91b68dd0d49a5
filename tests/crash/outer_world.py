"""What lies outside of raysched and outlives it: the engines with what runs on them.

All of it is one file to which lines are appended, a line for each thing that happened, so that what happened
twice can be seen for ever:

    start RUN LEASE PLACES    a command was started
    exit RUN CODE             it ended; without a start before it: it never will be started
    hold LEASE PLACES         Ray holds a lease
    release LEASE NODE        it was given back on a node: nothing holds it or starts for it there any more
    forget RUN                its files were deleted
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from raysched.core.lease import Place

WHOLE = 10_000
Part = tuple[str, str, int, int]
"""A part of a GPU, as a line has it: node, GPU, share, memory."""


@dataclass
class World:
    """What the lines add up to. `managed` are the nodes whose GPUs Ray holds; `memory` has each GPU's MiB.

    `read` raises AssertionError once something happened that must never happen, and then each time: whoever
    tries again after an error must not get away with it.
    """

    path: Path
    managed: frozenset[str]
    memory: dict[str, int]
    running: dict[str, tuple[str, list[Part]]] = field(default_factory=dict)
    held: dict[str, list[Part]] = field(default_factory=dict)
    over: set[tuple[str, str]] = field(default_factory=set)
    codes: dict[str, int] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    started: Counter[str] = field(default_factory=Counter)
    offset: int = 0
    wrong: str = ""

    def say(self, *words: object) -> None:
        """Let something happen, in one write."""
        line = " ".join(map(str, words)) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        self.read()

    def read(self) -> None:
        """Take note of what happened since the last look."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                self.offset += len(line)
                self._take(line.decode().rstrip("\n"))
        assert not self.wrong, self.wrong

    def runs_of(self, lease: str, nodes: Collection[str]) -> list[str]:
        """What runs under a lease on these nodes."""
        return [
            run
            for run, (its, parts) in self.running.items()
            if its == lease and any(node in nodes for node, *_ in parts)
        ]

    def _take(self, line: str) -> None:
        try:
            self._happened(*line.split(" ", 3))
        except AssertionError as wrong:
            self.wrong = self.wrong or f"{wrong} ({line})"

    def _happened(self, what: str, id: str, *rest: str) -> None:
        match what:
            case "start":
                self.started[id] += 1
                assert self.started[id] == 1, f"{id} was started twice"
                self.running[id] = rest[0], parts_of(rest[1])
                nodes = {node for node, *_ in self.running[id][1]}
                late = [node for node in nodes if (rest[0], node) in self.over]
                assert not late, f"{id} was started after its lease was given back"
                on_ray = bool(nodes & self.managed)
                assert rest[0] in self.held or not on_ray, f"{id} was started before Ray held its lease"
                self._check_capacity()
            case "exit":
                self.running.pop(id, None)
                self.codes[id] = int(rest[0])
            case "hold":
                self.held[id] = parts_of(rest[0])
                self._check_capacity()
            case "release":
                self.held[id] = [part for part in self.held.pop(id, []) if part[0] != rest[0]]
                self.held = {lease: parts for lease, parts in self.held.items() if parts}
                self.over.add((id, rest[0]))
                assert not self.runs_of(id, {rest[0]}), f"{id} still runs"
            case "forget":
                assert id not in self.running, f"{id} was forgotten while it runs"
                self.forgotten.add(id)

    def _check_capacity(self) -> None:
        """Nothing is given to two: the shares of a GPU never come to more than the whole."""
        tenants = {(lease, part) for lease, parts in self.held.items() for part in parts}
        tenants |= {(lease, part) for lease, parts in self.running.values() for part in parts}
        shares: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        for _, (_, gpu, share, mib) in tenants:
            shares[gpu] += share
            memory[gpu] += mib
        for gpu in shares:
            assert shares[gpu] <= WHOLE, f"{gpu} is given twice: {tenants}"
            assert memory[gpu] <= self.memory[gpu], f"{gpu} is given beyond its memory: {tenants}"


def written(places: Iterable[Place]) -> str:
    """Places as a line has them."""
    parts = [(place.node, slice.gpu, slice.share, slice.memory) for place in places for slice in place.slices]
    return json.dumps(parts, separators=(",", ":"))


def parts_of(text: str) -> list[Part]:
    """The parts that `written` wrote."""
    return [(node, gpu, share, memory) for node, gpu, share, memory in json.loads(text)]
