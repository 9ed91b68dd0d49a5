"""How what is wrong with a file is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from raysched.errors import Problem

Location = tuple[str | int, ...]
"""Where a value stands in a document: names of fields and numbers in lists, from the top."""


def field_name(path: Location) -> str:
    """The path as people write it: `resources.gpu_type[0]`."""
    name = ""
    for part in path:
        text = str(part) if str(part).isprintable() else quoted(part)
        name += f"[{part}]" if isinstance(part, int) else f".{text}"
    return name.removeprefix(".")


def listing(problems: Iterable[Problem]) -> str:
    """One line a problem: the message of a SpecError or ConfigError."""
    return "\n".join(str(problem) for problem in problems)


def quoted(value: object) -> str:
    """A value as it may stand in a message: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` most likely was meant to be, whatever the case, or None."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def either(choices: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
