"""Times as Kubernetes writes them."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache


@lru_cache(maxsize=10_000)
def moment(text: str | None) -> int | None:
    """Milliseconds since 1970 of `2026-01-02T03:04:05Z`, with or without a fraction; None of none."""
    if not text:
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    at = datetime.fromisoformat(f"{whole}+00:00")
    return int(at.timestamp()) * 1000 + int((fraction + "000")[:3])
