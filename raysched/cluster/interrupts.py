"""Ctrl-C, SIGTERM and SIGHUP while something is being started."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Generator[None]:
    """Make each of the signals a KeyboardInterrupt, so that what was begun is ended again, undisturbed by
    further ones."""
    with _handled(_interrupt):
        yield


@contextmanager
def held() -> Generator[None]:
    """Put a signal off to the end of the block, in which a process is started and noted."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    with _handled(note):
        yield
    if came:
        _interrupt(came[0], None)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for later in SIGNALS:
        signal.signal(later, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Give the signals this handler for the length of the block. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, kept in before.items():
            signal.signal(number, kept)
