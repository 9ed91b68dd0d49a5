"""An event loop in which no time is waited for: when nothing is left to do, its clock jumps to what comes
next."""

from __future__ import annotations

import asyncio
import selectors


class Jumping(selectors.DefaultSelector):
    """Reports what is ready now, and instead of waiting puts the clock forward."""

    now = 0.0

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing is left to wait for"
            self.now += max(timeout, 0)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time begins at 0."""

    def __init__(self) -> None:
        self._jumping = Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds."""
        return self._jumping.now
