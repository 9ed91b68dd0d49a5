"""What goes wrong, and the record of all that happens: both depend on one seed."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from raysched.backends.base import EngineRefused
from raysched.errors import RayschedError

T = TypeVar("T")

SHOWN = 60
"""How many of the last events a failure shows."""

LIKELY = {
    "request lost": 0.02,
    "answer lost": 0.02,
    "said again": 0.03,
    "slow": 0.05,
    "very slow": 0.005,
    "killed amid a call": 0.004,
    "disk full": 0.01,
    "disk fails after the write": 0.005,
    "killed before the write": 0.002,
    "killed after the write": 0.002,
    "start refused": 0.03,
    "start refused for good": 0.01,
    "hold refused": 0.03,
    "cut refused": 0.05,
    "ignores SIGTERM": 0.15,
    "leaves a process behind": 0.15,
    "user cancels": 0.15,
    "program dies": 0.2,
}
"""How likely each mishap is whenever it may happen, where the seed makes it neither rarer nor likelier."""

EVERY_S = {
    "ledger killed": 60,
    "backend killed": 40,
    "agent silent": 50,
    "node reboots": 120,
    "node cut off": 150,
    "wall clock jumps": 120,
    "somebody takes a GPU in Ray": 60,
    "a stranger's process": 40,
    "GPU vanishes": 200,
    "GPU fails": 200,
    "node drained": 150,
    "instances destroyed by hand": 150,
}
"""Mean seconds between two of what happens by itself."""


class Lost(Exception):
    """A call got no answer; it may have had its effect, may not, or may have it later."""


class Killed(BaseException):
    """A process dies at this line."""


class Chaos:
    """The dice and the record of one simulation. The seed chooses which mishaps happen, and how often.

    `calm` ends all of them. `events` counts what happened, `digest` is over all of it. `broken` is the first
    promise that was broken; `over` is set then.
    """

    def __init__(self, seed: int, echo: Callable[[str], None] | None = None) -> None:
        self.dice = random.Random(seed)
        self.calm = False
        self.events = 0
        self.last: deque[str] = deque(maxlen=SHOWN)
        self._echo = echo
        self._hash = hashlib.sha256()
        self._late: set[asyncio.Task[None]] = set()
        self.broken: BaseException | None = None
        self.over = asyncio.Event()
        self._weights = {name: self.dice.choice((0, 0.5, 1, 3)) for name in (*LIKELY, *EVERY_S)}

    # ------------------------------------------------------------ the record

    def note(self, what: str, *about: Any) -> None:
        """Something happened."""
        self.events += 1
        line = f"{asyncio.get_running_loop().time():9.3f} {what} {' '.join(map(str, about))}"
        self._hash.update(line.encode())
        self.last.append(line)
        if self._echo is not None:
            self._echo(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    # ------------------------------------------------------------ promises

    def promise(self, kept: bool, words: str) -> None:
        """Something that must be so. Whoever catches the error, the simulation ends."""
        if not kept:
            self.breaks(AssertionError(words))

    def breaks(self, error: BaseException) -> None:
        """Note a broken promise, or an error that nobody should have seen, and raise it."""
        if self.broken is None:
            self.broken = error
            self.note("BROKEN:", f"{type(error).__name__}: {error}")
            self.over.set()
        raise error

    def watch(self, task: asyncio.Task[Any]) -> None:
        """An error that ends a task and that nobody looks at is a broken promise, too."""
        task.add_done_callback(self._see_end)

    def _see_end(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            with suppress(BaseException):
                self.tolerate(error)

    def tolerate(self, error: BaseException) -> None:
        """Errors that are answers are part of the game; all others are broken promises."""
        if not isinstance(error, Lost | Killed | RayschedError | EngineRefused):
            self.breaks(error)

    # ------------------------------------------------------------ the dice

    def happens(self, mishap: str) -> bool:
        """Whether a mishap happens now."""
        if self.calm or self.dice.random() >= LIKELY[mishap] * self._weights[mishap]:
            return False
        self.note("mishap:", mishap)
        return True

    async def next(self, mishap: str) -> bool:
        """Wait until one happens by itself. False: it never will again."""
        weight = self._weights[mishap]
        if self.calm or not weight:
            return False
        await asyncio.sleep(self.dice.expovariate(weight / EVERY_S[mishap]))
        return not self.calm

    async def lag(self) -> None:
        """The time that a message takes."""
        if self.happens("very slow"):
            await asyncio.sleep(self.dice.uniform(1, 30))
        elif self.happens("slow"):
            await asyncio.sleep(self.dice.uniform(0, 2))
        else:
            await asyncio.sleep(self.dice.uniform(0, 0.01))

    def id(self) -> str:
        return f"{self.dice.getrandbits(40):010x}"

    # ------------------------------------------------------------ the network

    async def call(self, what: str, serve: Callable[[], Awaitable[T]]) -> T:
        """Have something far away done, over a network that may delay it, lose the request or the answer,
        and deliver it once more later."""
        await self.lag()
        if self.happens("request lost"):
            await asyncio.sleep(self.dice.uniform(0, 5))
            raise Lost(f"{what}: request lost")
        if not what.endswith("NodeSeen") and self.happens("said again"):  # an agent says that in order
            task = asyncio.get_running_loop().create_task(self._again(what, serve))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        answer = await serve()
        await self.lag()
        if self.happens("answer lost"):
            await asyncio.sleep(self.dice.uniform(0, 5))
            raise Lost(f"{what}: answer lost")
        return answer

    async def _again(self, what: str, serve: Callable[[], Awaitable[Any]]) -> None:
        await asyncio.sleep(self.dice.uniform(0, 30))
        self.note("said again:", what)
        try:
            await serve()
        except Exception as error:
            self.note("nobody heard", what, type(error).__name__)
            self.tolerate(error)
