"""What is made of the samples of a node's GPUs, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raysched.core.commands import Usage
from raysched.core.gpu_views import Reading, Stranger
from raysched.core.measured import USUAL, Policy, Stretch, Tenancy, TenantUse
from raysched.gpu.driver import GPUUse, ProcessUse, Sample
from raysched.gpu.meter import GAP_MS, KEPT_MS, Measurement, Meter
from raysched.gpu.owners import Owners
from raysched.gpu.processes import MARKER, find, send
from raysched.gpu.strays import STUBBORN_MS, Due, Strays
from raysched.gpu.untold import Untold

GPU, CUT = "GPU-1", "GPU-2"
NOBODY = 2**22 + 7
HAS = Tenancy(GPU, "a.1", "a", "ana", "default", 2500, 1000)
NOW = 1_700_000_000_000
Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process, with a lease in its environment or none."""
    begun: list[subprocess.Popen[bytes]] = []

    def run(lease: str | None, *command: str) -> int:
        environ = {name: value for name, value in os.environ.items() if name != MARKER}
        environ |= {MARKER: lease} if lease else {}
        begun.append(subprocess.Popen(command or ("sleep", "600"), env=environ))
        return begun[-1].pid

    yield run
    for process in begun:
        process.kill()
        process.wait()


def take(meter: Meter, uses: dict[str, GPUUse], tenants: list[Tenancy], now: int) -> Measurement:
    """One sample of processes that are really there."""
    users = Owners().of(process.pid for use in uses.values() for process in use.processes)
    return meter.take(Sample(uses, users), tenants, now)


@pytest.fixture
def meter() -> Meter:
    return Meter("node", USUAL)


def test_the_use_of_a_lease_is_that_of_its_processes(meter: Meter, start: Start) -> None:
    one, two, other, stranger = start("a.1"), start("a.1"), start("b.1"), start(None)
    uses = (
        ProcessUse(one, 500, busy=1000),
        ProcessUse(two, 700, busy=2000),
        ProcessUse(other, 100, busy=0),
        ProcessUse(stranger, 50, busy=10),
        ProcessUse(NOBODY, None, busy=0),
    )
    sample = take(meter, {GPU: GPUUse(1400, uses, 3500, power=200, temperature=50)}, [HAS], 0)
    assert sample.usage.gpus == {GPU: Reading(1400, 3500, 3500, 200, 50)}
    assert sample.usage.tenants == {(GPU, "a.1"): Reading(1200, 3000, 3000), (GPU, "b.1"): Reading(100, 0, 0)}
    tenants = (TenantUse("a.1", GPU, 1200), TenantUse("b.1", GPU, 100))
    assert sample.told == (Usage("node", GPU, 50 + 1, (), tenants, USUAL),)
    account = sample.usage.strangers[GPU][0].user
    assert sample.usage.strangers[GPU][2:] == (
        Stranger(other, "sleep", account, 100, "b.1"),
        Stranger(stranger, "sleep", account, 50, None),
        Stranger(NOBODY, "", "", None, None),
    )


def test_the_use_of_a_lease_of_instances_is_that_of_its_instances(meter: Meter, start: Start) -> None:
    uses = tuple(ProcessUse(start("a.1"), 100, f"MIG-{at}") for at in (1, 1, 2))
    stranger = ProcessUse(start(None), 9, "MIG-3")
    on = GPUUse(309, (*uses, stranger), 4000, {"MIG-1": 1000, "MIG-2": 2000, "MIG-3": 1000})
    sample = take(meter, {CUT: on}, [], 0)
    assert sample.usage.tenants == {(CUT, "a.1"): Reading(300, 3000, 3000)}
    tenants = (TenantUse("a.1", "MIG-1", 200), TenantUse("a.1", "MIG-2", 100))
    assert sample.told == (Usage("node", CUT, 9, ("MIG-3",), tenants, USUAL),)


def test_what_is_not_measured_is_not_made_up(meter: Meter, start: Start) -> None:
    pid = start("a.1")
    sample = take(meter, {GPU: GPUUse(None, (ProcessUse(pid, None),))}, [HAS], 0)
    assert sample.usage.tenants == {(GPU, "a.1"): Reading(None, None, None)}
    assert sample.told[0].tenants == (TenantUse("a.1", GPU, None),)
    assert take(meter, {GPU: GPUUse(None)}, [HAS], 1000).usage.tenants == {}
    take(meter, {GPU: GPUUse(None)}, [HAS], 2000)
    meter.close(NOW)
    assert meter.closed() == ()


def idle(meter: Meter, now: int, busy: int | None = 0) -> Measurement:
    return take(meter, {GPU: GPUUse(0, (), busy)}, [HAS], now)


def test_a_tenant_that_uses_nothing_is_measured_too(meter: Meter) -> None:
    assert idle(meter, 0).usage.tenants == {(GPU, "a.1"): Reading(0, 0, 0)}
    idle(meter, 2000)
    meter.close(NOW)
    assert meter.closed() == (Stretch("a.1", GPU, NOW, 2000, 0, 0, 0, 0),)


def test_mean_and_peak_are_over_the_time_that_samples_stand_for(meter: Meter, start: Start) -> None:
    pid = start("a.1")

    def use(now: int, memory: int, busy: int | None) -> Measurement:
        return take(meter, {GPU: GPUUse(memory, (ProcessUse(pid, memory, busy=busy),), busy)}, [HAS], now)

    use(0, 9999, 9999)
    use(1000, 100, 4000)
    use(4000, 500, 8000)
    assert use(5000, 100, None).usage.tenants[GPU, "a.1"].mean == (9999 + 4000 + 8000) // 3
    meter.close(NOW, "a.1")
    (stretch,) = meter.closed()
    assert stretch == Stretch("a.1", GPU, NOW, 5000, (100 + 1500 + 100) // 5, 500, 28000 // 4, 8000)


def test_what_was_not_told_is_told_by_the_next_who_measures(meter: Meter, tmp_path: Path) -> None:
    """And once it was told it is no longer kept."""
    idle(meter, 0)
    idle(meter, 2000)
    kept = Untold(tmp_path, "node")
    kept.keep(meter.untold(NOW))
    assert meter.closed() == (), "it goes on"
    after = Meter("node", USUAL)
    after.resume(Untold(tmp_path, "node").kept())
    assert after.closed() == (Stretch("a.1", GPU, NOW, 2000, 0, 0, 0, 0),)
    after.forget(after.closed())
    kept.keep(after.untold(NOW))
    assert kept.kept() == ()


@pytest.mark.parametrize("damaged", ["", "[{]", '[{"lease": "a.1"}]'])
def test_what_was_kept_and_can_not_be_read_is_nothing(tmp_path: Path, damaged: str) -> None:
    kept = Untold(tmp_path, "node")
    kept.keep(())
    (tmp_path / "use" / "node.json").write_text(damaged)
    assert kept.kept() == Untold(None, "node").kept() == ()


def test_time_in_which_nobody_looked_is_not_measured(meter: Meter) -> None:
    idle(meter, 0)
    idle(meter, 2000)
    idle(meter, 2000 + GAP_MS + 1)
    meter.close(NOW)
    assert meter.closed()[0].ms == 2000


def test_the_mean_is_of_the_last_minute(meter: Meter) -> None:
    assert take(meter, {GPU: GPUUse(0, (), 9000)}, [], 0).usage.gpus[GPU].mean == 9000
    assert take(meter, {GPU: GPUUse(0, (), 1000)}, [], KEPT_MS - 1).usage.gpus[GPU].mean == 5000
    assert take(meter, {GPU: GPUUse(0, (), 1000)}, [], KEPT_MS).usage.gpus[GPU].mean == 1000
    assert take(meter, {GPU: GPUUse(None)}, [], 3 * KEPT_MS).usage.gpus[GPU].mean is None


def test_what_was_not_written_down_is_told_again_as_it_was(meter: Meter) -> None:
    idle(meter, 0)
    idle(meter, 2000)
    meter.close(NOW)
    told = meter.closed()
    idle(meter, 4000)
    assert meter.closed() == told
    meter.forget(told)
    assert meter.closed() == ()
    meter.close(NOW, "a.1")
    assert meter.closed() == (Stretch("a.1", GPU, NOW, 2000, 0, 0, 0, 0),)


# ---------------------------------------------------------------- those who have no right to be there


def look(strays: Strays, meter: Meter, now: int, *uses: ProcessUse, orphans: tuple[str, ...] = ()) -> Due:
    """What is to be done about these processes."""
    return strays.look(take(meter, {GPU: GPUUse(100, uses)}, [], 0).seen, frozenset(orphans), now)


def test_orphans_are_due_after_their_grace(meter: Meter, start: Start) -> None:
    orphan, tenant, other = start("old.1"), start("a.1"), start("another-ledgers.1")
    uses = [ProcessUse(pid, 10) for pid in (orphan, tenant, other)]
    strays = Strays(Policy(grace=60_000))
    due = look(strays, meter, 0, *uses, orphans=("old.1",))
    assert [(stray.kind, stray.process.pid, stray.lease) for stray in due.new] == [
        ("orphan", orphan, "old.1")
    ]
    assert (due.ask, due.kill) == ((), ())
    assert look(strays, meter, 59_999, *uses, orphans=("old.1",)) == Due()
    due = look(strays, meter, 60_000, *uses, orphans=("old.1",))
    assert [stray.process.pid for stray in due.ask] == [orphan]
    assert look(strays, meter, 60_000 + STUBBORN_MS - 1, *uses, orphans=("old.1",)) == Due(), "asked once"
    due = look(strays, meter, 60_000 + STUBBORN_MS, *uses, orphans=("old.1",))
    assert [stray.process.pid for stray in due.kill] == [orphan]


def test_who_went_away_and_comes_back_has_a_new_grace(meter: Meter, start: Start) -> None:
    use = ProcessUse(start("old.1"), 10)
    strays = Strays(Policy(grace=1000))
    look(strays, meter, 0, use, orphans=("old.1",))
    look(strays, meter, 500, orphans=("old.1",))
    assert len(look(strays, meter, 1000, use, orphans=("old.1",)).new) == 1
    assert look(strays, meter, 1999, use, orphans=("old.1",)).ask == ()


def test_who_never_had_a_lease_is_reported_and_left_alone(meter: Meter, start: Start) -> None:
    pid = start(None)
    strays = Strays(USUAL)
    due = look(strays, meter, 0, ProcessUse(pid, 10))
    assert [(stray.kind, stray.process.pid) for stray in due.new] == [("without_lease", pid)]
    assert look(strays, meter, 10**9, ProcessUse(pid, 10)) == Due()


def test_only_by_policy_strangers_are_due_and_never_what_draws_or_serves(
    meter: Meter, start: Start, tmp_path: Path
) -> None:
    service = tmp_path / "nvidia-cuda-mps-server"
    service.symlink_to("/bin/sleep")
    stranger, display, server = start(None), start(None), start(None, str(service), "600")
    uses = [ProcessUse(stranger, 1), ProcessUse(display, 1, graphics=True), ProcessUse(server, 1)]
    due = look(Strays(Policy(without_lease="end", grace=0)), meter, 0, *uses, ProcessUse(NOBODY, 1))
    assert [stray.process.pid for stray in due.ask] == [stranger]


def test_a_signal_goes_to_exactly_the_process_that_was_seen(start: Start) -> None:
    pid = start(None)
    process = find(pid)
    assert process is not None
    send([replace(process, started=process.started - 1)], signal.SIGKILL)
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    send([process], signal.SIGTERM)
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == signal.SIGTERM
