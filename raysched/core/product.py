"""The product names of GPUs, as people ask for them."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=4096)
def matches(model: str, types: tuple[str, ...]) -> bool:
    """Whether a product name is of one of the types: whole words, whatever the case. No types: any is."""
    if not types:
        return True
    words = _words(model)
    return any(_contains(words, _words(kind)) for kind in types)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _contains(words: list[str], part: list[str]) -> bool:
    return (
        any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1)) if part else False
    )
