"""Where the `raysched` command begins: it imports little itself, so that Ctrl-C is heeded from the start."""

from __future__ import annotations

import signal
import sys

AGAIN_S = 0.01
"""Seconds after which Ctrl-C is raised again that came while an object was finalised."""


def run() -> None:
    """The entry point of the `raysched` command."""
    heeded = signal.getsignal(signal.SIGINT)
    if heeded is signal.default_int_handler:
        # While all the rest is imported Ctrl-C just ends the process: an exception would show a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from raysched.cli.main import main

    signal.signal(signal.SIGINT, heeded)
    sys.unraisablehook = _not_dropped
    sys.exit(main(sys.argv[1:]))


def _not_dropped(dropped: sys.UnraisableHookArgs) -> None:
    """Raise Ctrl-C again a moment later, wherever the program then is: Python drops every exception that
    comes while it finalises an object, such as a stream that is no longer read."""
    if dropped.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    else:
        sys.__unraisablehook__(dropped)
