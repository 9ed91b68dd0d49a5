"""What was granted and used, summed up; and who could take less."""

from __future__ import annotations

from typing import Any

from raysched.core.advice import LEAST_MEASURED, advise
from raysched.core.history import JobRecord, LeaseRecord
from raysched.core.measured import Stretch
from raysched.core.usage import HOUR, By, Window, usage, usage_view

DAY = Window(0, 24 * HOUR)
GPU = 81_920


def lease(id: str, start: int, end: int | None, share: int = 2500, **other: Any) -> LeaseRecord:
    """A lease that was held from one hour to another."""
    gpus = other.pop("gpus", ("GPU-1",))
    fields: dict[str, Any] = {
        "job": id.partition(".")[0],
        "attempt": 1,
        "name": "embed",
        "user": "ana",
        "queue": "nlp",
        "kind": "command",
        "backend": "vm",
        "sharing": "fraction",
        "isolation": "soft",
        "mechanism": "variables",
        "nodes": ("a",),
        "share": share * len(gpus),
        "memory": GPU * share // 10_000 * len(gpus),
        "cpus": 0,
        "host_memory": 0,
        "waited": 0,
        "parts": dict.fromkeys(gpus, (share, GPU * share // 10000)),
        "gpus": gpus,
    }
    released = None if end is None else end * HOUR
    return LeaseRecord(lease=id, granted=start * HOUR, released=released, **{**fields, **other})


def used(
    of: LeaseRecord, hour: float, hours: float, memory: int, busy: int | None, gpu: str = "GPU-1"
) -> None:
    """What was measured of a lease for some hours until one."""
    ms = round(hours * HOUR)
    of.used.append(
        (round(hour * HOUR), Stretch(of.lease, gpu, 0, ms, memory, memory * 2, busy, busy and busy * 2))
    )


def granted(by: By, *leases: LeaseRecord, window: Window = DAY) -> dict[str, float]:
    """The hours of a whole GPU by name."""
    totals = usage(leases, by, window, {})
    return {total.name: total.granted / 10_000 / HOUR for total in totals}


def test_gpu_hours_are_shares_times_the_time_within_the_window() -> None:
    one = lease("j.1", 2, 6)
    assert granted("queue", one) == {"nlp": 1}
    assert granted("queue", one, window=Window(5 * HOUR, 24 * HOUR)) == {"nlp": 0.25}
    assert granted("queue", one, window=Window(6 * HOUR, 24 * HOUR)) == {}
    assert granted("queue", lease("j.1", 20, None)) == {"nlp": 1}, "one that is held counts until now"


def test_they_are_summed_up_by_queue_user_job_and_gpu() -> None:
    leases = (
        lease("a.1", 0, 4, 10_000, gpus=("GPU-1", "GPU-2")),
        lease("b.1", 0, 8, user="bo"),
        lease("x.0.1", 0, 4, queue="vision", name="many", job="x.0"),
        lease("x.1.1", 0, 4, queue="vision", name="many", job="x.1"),
    )
    assert granted("queue", *leases) == {"nlp": 10, "vision": 2}
    assert granted("user", *leases) == {"ana": 10, "bo": 2}
    assert granted("gpu", *leases) == {"GPU-1": 8, "GPU-2": 4}
    jobs = usage(leases, "job", DAY, {"x.0": "x", "x.1": "x"})
    assert [(total.name, total.id, len(total.jobs)) for total in jobs] == [
        ("embed", "a", 1),
        ("embed", "b", 1),
        ("many", "x", 2),
    ]


def test_what_was_used_is_told_of_the_time_in_which_it_was_measured() -> None:
    one = lease("j.1", 0, 10)
    used(one, 4, 4, 1000, 1000)
    used(one, 6, 2, 3000, None)
    (row,) = usage_view(usage([one], "queue", DAY, {}), "queue", DAY)["rows"]
    assert (row["gpu_hours"], row["gpu_hours_measured"], row["gpu_hours_used"]) == (2.5, 1.0, 0.4)
    assert row["busy"] == 4000, "of the share that it had"
    assert row["memory"] == (1000 * 4 + 3000 * 2) * 10_000 // (20_480 * 6)
    assert row["memory_peak_mib"] == 6000
    (late,) = usage_view(usage([one], "queue", Window(3 * HOUR, 4 * HOUR), {}), "queue", DAY)["rows"]
    assert (late["gpu_hours"], late["gpu_hours_used"]) == (0.25, 0.1)


def test_what_was_never_measured_is_not_told_as_nothing() -> None:
    (row,) = usage_view(usage([lease("j.1", 0, 1)], "user", DAY, {}), "user", DAY)["rows"]
    assert (row["gpu_hours_used"], row["busy"], row["memory"], row["memory_peak_mib"]) == (None,) * 4
    idle = lease("j.1", 0, 1)
    used(idle, 1, 1, 0, 0)
    (row,) = usage_view(usage([idle], "user", DAY, {}), "user", DAY)["rows"]
    assert (row["gpu_hours_used"], row["busy"], row["memory"], row["memory_peak_mib"]) == (0, 0, 0, 0)


# ---------------------------------------------------------------- advice


def job(id: str, by_memory: bool = False) -> JobRecord:
    return JobRecord(id, id, None, "embed", "ana", "nlp", 0, "command", 0, by_memory=by_memory)


def advised(*leases: LeaseRecord, by_memory: bool = False) -> list[tuple[Any, ...]]:
    jobs = {one.job: job(one.job, by_memory) for one in leases}
    return [(each.fraction, each.memory, each.frees) for each in advise(leases, jobs, DAY)]


def test_a_job_that_uses_little_of_a_gpu_could_take_a_fraction() -> None:
    one = lease("j.1", 0, 10, 10_000, sharing="exclusive")
    used(one, 10, 10, 4000, 1000)
    (found,) = advise([one], {"j": job("j")}, DAY)
    assert (found.fraction, found.memory, found.frees) == (1500, None, 8500), "1.5 x 0.1 of the compute"
    assert found.frees_ms == 8.5 * HOUR


def test_the_peak_of_its_memory_fits_with_a_fifth_to_spare() -> None:
    one = lease("j.1", 0, 10, 10_000, sharing="exclusive")
    used(one, 10, 10, 14_000, 100)
    assert advised(one) == [(4500, None, 5500)]
    assert GPU * 0.45 >= 28_000 * 1.2


def test_a_job_that_asks_by_memory_is_told_a_memory() -> None:
    one = lease("j.1", 0, 10, 5000)
    used(one, 10, 10, 5000, 100)
    ((fraction, memory, frees),) = advised(one, by_memory=True)
    assert (fraction, memory) == (None, 12 * 1024)
    assert frees == 5000 - 1500


def test_the_run_that_used_most_counts() -> None:
    small, large = lease("j.1", 0, 10, 5000), lease("k.1", 0, 10, 5000)
    used(small, 10, 10, 1000, 100)
    used(large, 10, 10, 19_000, 100)
    assert advised(small) == [(500, None, 4500)]
    assert advised(small, large) == [], "38,000 MiB and a fifth are more than half a GPU"


def test_who_saves_less_than_a_tenth_is_left_alone() -> None:
    one = lease("j.1", 0, 10, 2000)
    used(one, 10, 10, 6000, 100)
    assert advised(one) == []


def test_nothing_is_advised_by_what_was_not_measured() -> None:
    short, blind, split, cut = (lease(f"{name}.1", 0, 10, 10_000) for name in "abcd")
    used(short, 1, (LEAST_MEASURED - 1) / HOUR, 100, 100)
    used(blind, 10, 10, 100, None)
    used(split, 10, 10, 100, 100)
    split.parts = {"GPU-1": (5000, 100), "GPU-2": (2500, 100)}
    used(cut, 10, 10, 100, 100)
    cut.sharing = "mig"
    assert advised(short, blind, split, cut, lease("e.1", 0, 10)) == []


def test_one_whose_compute_was_not_always_measured_is_blind() -> None:
    one = lease("j.1", 0, 10, 10_000)
    used(one, 5, 5, 100, 100)
    used(one, 10, 5, 100, None)
    assert advised(one) == []


def test_the_most_that_could_be_saved_comes_first() -> None:
    small, large = lease("j.1", 0, 1, 5000), lease("k.1", 0, 20, 5000, name="large")
    used(small, 1, 1, 100, 100)
    used(large, 20, 20, 100, 100)
    found = advise([small, large], {"j": job("j"), "k": job("k")}, DAY)
    assert [each.runs.name for each in found] == ["large", "embed"]
