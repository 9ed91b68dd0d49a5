"""Amounts, times and names as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

MIB_IN_GIB = 1024
UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def duration(seconds: float | None, parts: int = 1) -> str:
    """`12m`; with two parts `12m 5s`. Never negative, and empty where nothing is known."""
    if seconds is None:
        return ""
    rest = max(0, int(seconds))
    words: list[str] = []
    for size, unit in UNITS:
        if rest >= size:
            words.append(f"{rest // size}{unit}")
            rest %= size
    return " ".join(words[:parts]) or "0s"


def percent(share: int) -> str:
    """A share in ten-thousandths as `25 %`, with one decimal where there is one, rounded down."""
    if 0 < share < 10:
        return "<0.1 %"
    tenths = share // 10
    return f"{tenths // 10} %" if tenths % 10 == 0 else f"{tenths / 10:.1f} %"


def memory(mib: int) -> str:
    """MiB as `512 MiB` or `19.9 GiB`."""
    return f"{mib} MiB" if mib < MIB_IN_GIB else f"{mib / MIB_IN_GIB:.1f} GiB"


def memory_of(used: int, total: int) -> str:
    """Two amounts of MiB in the unit of the larger: `18.2 of 19.9 GiB`."""
    if total < MIB_IN_GIB:
        return f"{used} of {total} MiB"
    return f"{used / MIB_IN_GIB:.1f} of {total / MIB_IN_GIB:.1f} GiB"


def count(number: float, noun: str, plural: str | None = None) -> str:
    """`1 job`, `2 jobs`, `0.5 CPUs`."""
    shown = f"{number:g}" if isinstance(number, float) else number
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"


def instant(iso: str | None) -> str:
    """An ISO 8601 instant in the local zone, with its offset; empty where there is none."""
    if not iso:
        return ""
    moment = datetime.fromisoformat(iso.replace("Z", "+00:00")).astimezone()
    return moment.isoformat(sep=" ", timespec="seconds")


def clock(iso: str) -> str:
    """The time of day of an ISO 8601 instant in the local zone."""
    moment = datetime.fromisoformat(iso.replace("Z", "+00:00")).astimezone()
    return moment.strftime("%H:%M:%S")


def clean(text: object) -> str:
    """Text from elsewhere on one line, with control characters spelled out, so that it can't move the
    cursor or colour what follows."""
    one_line = str(text).strip().replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in one_line)


def resources(counts: Mapping[str, int]) -> str:
    """What a node of Kubernetes offers: `nvidia.com/gpu: 2`."""
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "no GPU"
