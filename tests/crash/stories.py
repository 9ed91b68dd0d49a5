"""Many lives on one journal, each but the last one cut short: `python -m tests.crash.stories SEED CRASHES`.

Prints one line of JSON. It was started with the library of `faulty_disk` loaded; every life is a fork of it,
so that a crash costs a few hundredths of a second. A story is told by its seed, but for the crashes that come
at a random microsecond.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from faulty_disk import FaultyDisk

from raysched.errors import StorageError
from raysched.store import mark, reader, upkeep
from tests.crash.life import MANAGED, MEMORY, Life, Memory
from tests.crash.outer_world import World

LIVES = 40
"""Lives of a story."""
PACK = 20
"""Facts that are packed together: few, so that crashes come amid that."""
STUCK_S = 120
"""Seconds after which a life hangs."""
KINDS = {"step": 5, "moment": 2, "write": 3, "power": 2, "broken disk": 2}
"""How lives end, and how often each: killed at a step of the program; at a random microsecond; before, within
or after a write or a sync of the journal; by a loss of power there; or at a step, after the disk failed."""


@dataclass
class End:
    """How one life ends. `step` is when it dies by itself, `after` (s) when it is killed from outside."""

    kind: str
    step: int = 0
    after: float | None = None

    @classmethod
    def draw(cls, chance: random.Random) -> End:
        """One end."""
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        steps = chance.choice([20, 200, 1000])
        if kind == "moment":
            return cls(kind, after=chance.uniform(0, 0.15))
        return cls(kind, step=chance.randint(1, steps) if kind in ("step", "broken disk") else 0)

    def prepare(self, disk: FaultyDisk, chance: random.Random) -> None:
        """Set what the disk does."""
        nth = chance.randint(1, chance.choice([10, 100]))
        operation = chance.choice(["write", "sync"])
        match self.kind:
            case "write":
                disk.kill(operation, nth=nth, when=chance.choice(["before", "within", "after"]))
            case "power":
                disk.lose_power(operation, nth=nth, seed=chance.choice([0, chance.getrandbits(60)]))
            case "broken disk":
                error = chance.choice([errno.ENOSPC, errno.EIO])
                lasting, torn = chance.random() < 0.3, chance.random() < 0.5
                disk.fail("write", "sync", nth=nth, error=error, lasting=lasting, torn=torn)


class Story:
    """The lives on one journal."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder = folder
        self.seed = seed
        self.chance = random.Random(seed)
        self.memory = Memory()
        self.died: Counter[str] = Counter()
        self.world = World(folder / "world", MANAGED, MEMORY)
        (folder / "journal").mkdir()
        self.url = f"sqlite:///{folder / 'journal' / 'journal.sqlite'}"

    def tell(self) -> None:
        """All lives, the last of which heals. Raises AssertionError with what went wrong."""
        for number in range(LIVES):
            end = End.draw(self.chance)
            if self._live(number, end):
                self.died[end.kind] += 1
        self._live(LIVES, None)
        self.world.read()

    @property
    def told(self) -> Counter[str]:
        """What there was to lose."""
        memory = self.memory
        with reader.Reader(self.url) as journal:
            facts, packed = journal.last(), journal.packed()
        return Counter(
            facts=facts,
            packed=packed,
            stories=1,
            submissions=len(memory.accepted),
            leases=len(memory.bound),
            starts=len(self.world.started),
        )

    def _live(self, number: int, end: End | None) -> bool:
        """One life; whether it was cut short."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._child(number, end, writer)
        os.close(writer)
        if end is not None and end.after is not None:
            time.sleep(end.after)
            os.kill(child, signal.SIGKILL)
        with open(reader, "rb") as lines:
            for line in lines:
                what, id, more = json.loads(line)
                assert what != "wrong", f"life {number} of story {self.seed} ({end}): {id}"
                self.memory.note(what, id, more)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), f"life {number} of story {self.seed} ({end}) ended with {code}"
        return code != 0

    def _child(self, number: int, end: End | None, pipe: int) -> None:
        """Live, and never return."""
        try:
            signal.alarm(STUCK_S)
            chance = random.Random(f"{self.seed}/{number}/disk")
            disk = FaultyDisk(self.folder / "control", str(self.folder / "journal"))
            disk.take_over()
            if end is not None:
                end.prepare(disk, chance)
            world = World(self.folder / "world", MANAGED, MEMORY)
            boot = f"boot-{self.died['power']}"
            mark._boot = lambda: boot
            step = end.step if end else 0
            life = Life(number, self.url, world, self.memory, self.seed, step, pipe, boot)
            life.live(heal=end is None)
        except StorageError:
            if end is None or end.kind != "broken disk":
                self._wrong(pipe)
        except BaseException:
            self._wrong(pipe)
        os._exit(0)

    @staticmethod
    def _wrong(pipe: int) -> None:
        os.write(pipe, json.dumps(["wrong", traceback.format_exc()[-2000:], None]).encode() + b"\n")


def main(seed: str, crashes: int) -> int:
    """Tell stories until so many lives were cut short. 1: something went wrong, and its files are kept."""
    logging.disable()
    reader.PACK = upkeep.PACK = PACK
    told: Counter[str] = Counter()
    died: Counter[str] = Counter()
    while died.total() < crashes:
        story = Story(Path(tempfile.mkdtemp(prefix="raysched-crash-")), f"{seed}-{told['stories']}")
        try:
            story.tell()
        except AssertionError as wrong:
            print(json.dumps({"seed": seed, "wrong": str(wrong), "files": str(story.folder)}))
            return 1
        died += story.died
        told += story.told
        shutil.rmtree(story.folder)
    print(json.dumps({"seed": seed, "crashes": died.total(), **died, **told}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
