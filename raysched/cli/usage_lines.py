"""`raysched usage` and `raysched advise`: what was granted and used, and what could be saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from raysched.cli.tables import Cell, Column, flow, table
from raysched.cli.words import clean, count, instant, memory, memory_of, percent
from raysched.client import Json
from raysched.errors import FileMissing, RayschedError

if TYPE_CHECKING:
    import pandas as pd

ADVICE = [
    Column("job"),
    Column("user", extra=True),
    Column("leases", right=True, named=True, extra=True),
    Column("has", right=True, named=True),
    Column("busy", right=True, named=True),
    Column("peak memory", right=True, named=True),
    Column("could ask for"),
    Column("frees", named=True, right=True),
]


def usage_lines(answer: Json, width: int | None) -> list[Text]:
    """A row for each queue, user, job or GPU."""
    rows = [_row(row, answer["by"]) for row in answer["rows"]]
    if not rows:
        return [Text(f"no lease since {instant(answer['from'])}")]
    unmeasured = any(row["gpu_hours_used"] is None for row in answer["rows"])
    note = "- was not measured: the GPU does not tell, or none was used for long enough" if unmeasured else ""
    return [*table(_columns(answer["by"]), rows, width), *(flow([Text(note, "dim")], width) if note else [])]


def _columns(by: str) -> list[Column]:
    return [
        Column(by),
        *([Column("id")] if by == "job" else []),
        Column("jobs", right=True, named=True),
        Column("leases", right=True, named=True, extra=True),
        Column("GPU-hours", right=True, named=True),
        Column("used", right=True, named=True),
        Column("busy", right=True, named=True),
        Column("memory", right=True, named=True),
        Column("peak memory", right=True, named=True, extra=True),
    ]


def _row(row: Json, by: str) -> list[Cell]:
    used, peak = row["gpu_hours_used"], row["memory_peak_mib"]
    return [
        Text(clean(row["name"]), "bold"),
        *([row["id"]] if by == "job" else []),
        str(row["jobs"]),
        str(row["leases"]),
        hours(row["gpu_hours"]),
        "-" if used is None else hours(used),
        _part(row["busy"]),
        _part(row["memory"]),
        "-" if peak is None else memory(peak),
    ]


def hours(number: float) -> str:
    """Hours, with more digits the fewer they are."""
    return f"{number:.4f}" if number < 0.1 else f"{number:.2f}" if number < 100 else f"{number:,.0f}"


def _part(share: int | None) -> str:
    return "-" if share is None else percent(share)


def frame(answer: Json) -> pd.DataFrame:
    """The rows of an answer of `usage`, with its two times."""
    import pandas as pd

    frame = pd.DataFrame(answer["rows"])
    frame.insert(0, "from", pd.to_datetime(answer["from"]))
    frame.insert(1, "to", pd.to_datetime(answer["to"]))
    return frame.rename(columns={"name": answer["by"]})


def write_parquet(answer: Json, path: Path) -> None:
    """Write the rows to a parquet file. Raises RayschedError where that can't be done."""
    try:
        frame(answer).to_parquet(path)
    except ImportError:
        raise RayschedError("parquet needs pyarrow: pip install 'raysched[parquet]'") from None
    except OSError as error:
        raise FileMissing(f"{path} can't be written: {error.strerror or error}") from None


def advice_lines(answer: Json, width: int | None) -> list[Text]:
    """A row for each job that could take less, and what all would free."""
    found: list[Json] = answer["advice"]
    if not found:
        since = instant(answer["from"])
        return flow([f"nothing to save: no job used less than it has since {since}"], width, "")
    freed = sum(each["gpu_hours_freed"] for each in found)
    whole = sum(each["gpu_hours"] for each in found)
    total = f"{count(len(found), 'job')} would free {hours(freed)} of {hours(whole)} GPU-hours"
    return [*table(ADVICE, list(_advised(found)), width), *flow([Text(total, "bold")], width)]


def _advised(found: list[Json]) -> Iterator[list[Cell]]:
    for each in found:
        asks = (
            f"gpu_memory: {each['gpu_memory']}"
            if each["gpu_memory"]
            else f"gpu_fraction: {each['gpu_fraction']:g}"
        )
        yield [
            Text(clean(each["name"]), "bold"),
            clean(each["user"]),
            str(each["leases"]),
            percent(each["share"]),
            percent(each["busy_mean"]),
            memory_of(each["memory_peak_mib"], each["memory_mib"]),
            asks,
            percent(each["frees"]),
        ]
