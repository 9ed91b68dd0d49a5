"""Where a command's answer goes: text for people, one JSON document for programs; notices to stderr."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raysched.client import Client, Json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def note(message: str) -> None:
    """Tell the user something that is not the answer."""
    say(f"raysched: {message}")


def agreed(question: str) -> bool:
    """Ask on the terminal; only a yes is one. Nothing of it comes among the output."""
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say(message: str) -> None:
    """Print to stderr; on a terminal lines are broken between words."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = [textwrap.wrap(line, width, break_on_hyphens=False) or [""] for line in message.splitlines()]
        message = "\n".join(piece for pieces in lines for piece in pieces)
    print(message, file=sys.stderr, flush=True)


def terminal_width() -> int | None:
    """The cells of a line on the terminal that stdout is; None in a pipe or a file, where lines have any
    length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Output:
    """One command's output. With `as_json` the answer is one JSON document and nothing else."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.width = terminal_width()

    def answer(self, document: Json, lines: Iterable[Text], client: Client | None = None) -> None:
        """Print the document, or the lines. With a client the answer says whether its GPUs are simulated."""
        if not self.as_json:
            if client is not None:
                self.say_if_simulated(client)
            self.lines(lines)
        elif client is None or "simulated" in document:
            self.document(document)
        else:
            self.document({"simulated": client.status()["simulated"], **document})

    def say_if_simulated(self, client: Client) -> None:
        """Nobody shall take made-up GPUs for real ones."""
        if client.status()["simulated"]:
            note("the GPUs are simulated")

    def document(self, document: Any) -> None:
        """Print JSON."""
        print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)

    def lines(self, lines: Iterable[Text]) -> None:
        """Print text, in colour where that is wanted."""
        if self.width is None:
            print("\n".join(line.plain for line in lines), flush=True)
            return
        for line in lines:
            self._console.print(line, soft_wrap=True)

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(highlight=False)
