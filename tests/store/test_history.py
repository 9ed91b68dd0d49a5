"""`raysched.history`: what the journal tells, as DataFrames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from stores import FileStore, Store

import raysched
from raysched.core.evolve import evolve
from raysched.core.history import Records
from raysched.core.state import State
from raysched.errors import StorageError
from raysched.store.journal import Journal
from raysched.store.reader import Reader

Start = Callable[[Store], Journal]
JOURNALS = sorted((Path(__file__).parent / "journals").glob("*.sqlite"))


@pytest.fixture
def written(tmp_path: Path) -> FileStore:
    """A journal in which much happened (journals/make.py)."""
    (tmp_path / "written").mkdir()
    shutil.copy(JOURNALS[0], tmp_path / "written" / "journal.sqlite")
    return FileStore(tmp_path / "written" / "journal.sqlite")


@pytest.mark.parametrize("journal", JOURNALS, ids=lambda path: path.stem)
def test_records_agree_with_the_state_after_each_fact(journal: Path, file: FileStore) -> None:
    """But for what the state forgets."""
    shutil.copy(journal, file.path)
    state, records = State(), Records()
    with Reader(file.url) as reader:
        for _, fact in reader.facts():
            evolve(state, fact)
            records.tell(fact)
            for job in state.jobs.values():
                record = records.jobs[job.id]
                assert (record.state, record.attempts, record.lease, record.submitted, record.ended) == (
                    job.state,
                    job.attempt,
                    job.lease,
                    job.submitted,
                    job.ended,
                )
                assert (record.code, record.user, record.queue) == (job.code, job.user, job.queue)
            held = {id for id, lease in records.leases.items() if lease.released is None}
            assert held == state.leases.keys()
            assert {id for id, lease in records.leases.items() if lease.bound and not lease.ended} == {
                id for id, lease in state.leases.items() if lease.state == "bound"
            }


def test_a_lease_is_a_row(written: FileStore) -> None:
    leases = raysched.history(written.url).leases.set_index("lease")
    good, again, denied = leases.loc["good.1"], leases.loc["again.1"], leases.loc["denied.1"]
    assert (good["user"], good["queue"], good["outcome"], good["code"]) == ("ana", "default", "succeeded", 0)
    assert (good["gpus"], good["nodes"]) == (("GPU-node-c-0",), ("node-c",))
    assert (good["share"], good["memory_mib"], good["cpus"]) == (0.25, 20480, 1.0)
    assert good["released"] - good["granted"] == pd.Timedelta(seconds=good["held_s"])
    assert good["gpu_seconds"] == pytest.approx(0.25 * good["held_s"])
    assert good["granted"] <= good["bound"] <= good["ended"] <= good["released"]
    assert str(good["granted"]) == "2023-11-14 22:13:20.600000+00:00"
    assert (again["outcome"], again["reason"]) == ("failed", "attempt 1 failed: exit code 1")
    assert (denied["outcome"], denied["reason"]) == ("returned", "image registry down")
    held = leases.loc["kept.1"]
    assert held[["ended", "released", "outcome", "code"]].isna().all()
    assert held["held_s"] > 86_400


def test_a_job_is_a_row(written: FileStore) -> None:
    found = raysched.history(written.url)
    jobs = found.jobs.set_index("job")
    assert jobs.loc["good", "state"] == "succeeded", "also what the ledger has forgotten"
    assert jobs.loc["many.0", ["group", "index", "code"]].to_list() == ["many", 0, 137]
    assert pd.isna(jobs.loc["good", "index"])
    again = found.leases[found.leases["job"] == "again"]
    assert jobs.loc["again", "attempts"] == len(again) == 2
    assert jobs.loc["again", "gpu_seconds"] == pytest.approx(again["gpu_seconds"].sum())
    waits = jobs.loc["waits"]
    assert waits["state"] == "waiting"
    assert (waits["attempts"], waits["gpu_seconds"]) == (0, 0)
    assert waits[["granted", "started", "ended", "waited_s"]].isna().all()


def test_a_fact_is_a_row(written: FileStore) -> None:
    facts = raysched.history(written.url).facts
    with Reader(written.url) as reader:
        rows = list(reader.rows())
    assert facts["seq"].to_list() == [row.seq for row in rows]
    assert facts["kind"].to_list() == [row.kind for row in rows]
    at = facts["at"].dt.tz_convert(None).astype("datetime64[ms]").astype("int64")
    assert at.to_list() == [json.loads(body)["at"] for body in facts["body"]]


def test_a_journal_without_leases_has_the_same_columns(
    start: Start, store: Store, written: FileStore
) -> None:
    start(store)
    empty, full = raysched.history(store.url), raysched.history(written.url)
    for ours, theirs in zip(empty, full, strict=True):
        assert len(ours) == 0
        assert ours.dtypes.to_dict() == theirs.dtypes.to_dict()


def test_it_reads_while_a_ledger_writes_and_changes_nothing(
    start: Start, store: Store, written: FileStore
) -> None:
    with Reader(written.url) as reader:
        told = [fact for _, fact in reader.facts()]
    journal = start(store)
    journal.append(told[:40])
    assert len(raysched.history(store.url).facts) == 40
    journal.append(told[40:])
    assert len(raysched.history(store.url).facts) == len(told)
    assert journal.append(told[:1]) == len(told) + 1


def test_by_default_it_is_the_journal_of_the_configuration(
    written: FileStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAYSCHED_HOME", raising=False)
    monkeypatch.setenv("RAYSCHED_CONFIG", str(tmp_path / "raysched.yaml"))
    (tmp_path / "raysched.yaml").write_text(f"store: {{url: 'sqlite:///{written.path}'}}\n")
    assert len(raysched.history().facts) > 0
    (tmp_path / "raysched.yaml").write_text(f"store: {{folder: {written.path.parent}}}\n")
    assert len(raysched.history().facts) > 0
    monkeypatch.setenv("RAYSCHED_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(StorageError, match=r"elsewhere/journal.sqlite is not there"):
        raysched.history()
