"""What people read of requests, jobs and GPUs."""

from __future__ import annotations

from datetime import datetime, timezone

from raysched.core.jobs import Job
from raysched.core.request import WHOLE, Request


def number(ten_thousandths: int) -> str:
    """Ten-thousandths as people write them: 2500 is `0.25`, 10000 is `1`."""
    return f"{ten_thousandths / WHOLE:.4f}".rstrip("0").rstrip(".")


def asks(request: Request) -> str:
    """What a request asks for, in a few words: `0.25 GPU`, `2 GPUs`, `3 x 2000 MiB of a GPU`."""
    parts = [_asks_gpus(request)]
    if request.cpus:
        parts.append(cores(request.cpus))
    if request.host_memory:
        parts.append(f"{request.host_memory} MiB of memory")
    if request.nodes and request.nodes > 1:
        parts.append(f"on {request.nodes} nodes")
    return ", ".join(part for part in parts if part) or "nothing"


def _asks_gpus(request: Request) -> str:
    if not request.gpus:
        return "no GPU"
    kind = f" ({' or '.join(request.gpu_types)})" if request.gpu_types else ""
    if request.sharing == "exclusive":
        return f"{request.gpus} GPU{'s' if request.gpus > 1 else ''}{kind}"
    times = f"{request.gpus} x " if request.gpus > 1 else ""
    return f"{times}{_asks_part(request)}{kind}"


def _asks_part(request: Request) -> str:
    if request.mig_profile is not None:
        return f"MIG {request.mig_profile}"
    if request.sharing == "mig":
        return f"a MIG instance of {at_least(request)}"
    if request.sharing == "time_slice":
        of = "" if request.share is None and request.memory is None else f" with {_amount(request)}"
        return f"a time-slice of a GPU{of}"
    part = number(request.share) + " GPU" if request.share is not None else f"{request.memory} MiB of a GPU"
    return f"{part} under MPS" if request.sharing == "mps" else part


def _amount(request: Request) -> str:
    """The memory that is asked for."""
    if request.memory is not None:
        return f"{request.memory} MiB"
    return f"{number(request.share or WHOLE)} of its memory"


def at_least(request: Request) -> str:
    """What a MIG instance must have that is asked for by size."""
    if request.memory is not None:
        return f"at least {request.memory} MiB"
    return f"at least {number(request.share or 0)} of a GPU"


def cores(count: int) -> str:
    """Ten-thousandths of cores as people write them: `1 CPU`, `0.5 CPUs`."""
    return f"{number(count)} CPU{'' if count == WHOLE else 's'}"


def short(uuid: str) -> str:
    """A GPU's UUID, short enough to read: `GPU-3f2a8c1d`."""
    return uuid[:12]


def exit_of(code: int | None) -> str:
    """How something ended, by its exit code; None: it left none."""
    if code is None:
        return "lost without an exit code"
    return f"ended by signal {code - 128}" if code > 128 else f"exit code {code}"


def too_long(job: Job) -> str:
    """The reason of a job that ran into its max_runtime."""
    return f"ran longer than its max_runtime of {(job.max_runtime or 0) / 1000:g} s"


def listing(names: list[str], most: int = 3) -> str:
    """Names in a sentence, the first few of them: `a, b and 3 more`."""
    shown = names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def stamp(time: int | None) -> str | None:
    """A time in ms since 1970 as ISO 8601 in UTC."""
    if time is None:
        return None
    return (
        datetime.fromtimestamp(time / 1000, timezone.utc)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def seconds(start: int | None, end: int | None, now: int) -> float | None:
    """The seconds between two times (ms since 1970), until now where there is no end; never less than 0."""
    return None if start is None else max(0, (now if end is None else end) - start) / 1000
