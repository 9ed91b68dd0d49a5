"""Where the `raysched` command begins: it imports little itself, so that Ctrl-C is heeded from the start."""

from __future__ import annotations

import signal
import sys


def run() -> None:
    """The entry point of the `raysched` command."""
    heeded = signal.getsignal(signal.SIGINT)
    if heeded is signal.default_int_handler:
        # While all the rest is imported Ctrl-C just ends the process: an exception would show a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from raysched.cli.main import main

    signal.signal(signal.SIGINT, heeded)
    sys.exit(main(sys.argv[1:]))
