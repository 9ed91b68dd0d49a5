"""Times as Kubernetes writes them."""

from __future__ import annotations

from datetime import datetime, timezone


def moment(text: str | None) -> int | None:
    """Milliseconds since 1970 of `2026-01-02T03:04:05Z`, with or without a fraction; None of none."""
    if not text:
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    at = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    return int(at.timestamp()) * 1000 + int((fraction + "000")[:3])
