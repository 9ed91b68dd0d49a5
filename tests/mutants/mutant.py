"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old`, a text that is exactly once in `file` of the package, becomes `new`; `tests` have to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
