"""A whole system whose journal is in a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from postgres import Postgres
from running import System, wait_until

from raysched.core.facts import Fact, NodeJoined, NodeLost
from raysched.core.node import NodeInfo
from raysched.store.journal import Journal
from raysched.store.upkeep import DUE

pytestmark = pytest.mark.ray


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


def long_past(url: str) -> None:
    """A node was there once, which was described so often that a snapshot is due."""
    journal = Journal(url)
    there: list[Fact] = [NodeJoined(1, NodeInfo("gone", ("vm",), (), cpus, 1)) for cpus in range(DUE)]
    journal.append([*there, NodeLost(2, "gone")])
    journal.close()


def snapshots(postgres: Postgres, url: str) -> str:
    """How many there are."""
    return postgres.sql("select count(*) from snapshots", url.rpartition("/")[2])


def test_a_system_outlives_its_database_server(
    make_system: Callable[..., System], postgres: Postgres
) -> None:
    """The server is killed and started again while a job runs; then the whole system is started anew."""
    system = make_system()
    url = postgres.database()
    config = system.folder / "raysched.yaml"
    config.write_text(f"{config.read_text()}store: {{url: '{url}'}}\n")
    long_past(url)
    system.up()
    wait_until(lambda: snapshots(postgres, url) == "1", "the ledger's upkeep has made a snapshot")
    assert not (system.home / "journal.sqlite").exists()
    runs = system.submit("runs", f"while ! test -e {system.folder}/go; do sleep 0.1; done")
    wait_until(lambda: system.client().job(runs)[0]["state"] == "running", "the job runs")

    postgres.kill()
    postgres.start()
    after = system.submit("after", "true")
    (system.folder / "go").touch()
    for job in (runs, after):
        wait_until(lambda job=job: system.client().job(job)[0]["state"] == "succeeded", "the job succeeds")
    assert [job["attempt"] for job in system.client().job(runs)] == [1]

    backup = system.folder / "backup.sqlite"
    system.cli("store", "backup", str(backup))
    refused = system.cli("store", "restore", str(backup), "--json", check=False)
    assert refused.returncode == 74
    assert "is used by another ledger (raysched, process" in json.loads(refused.stdout)["error"]["message"]
    found = system.json("store", "check")
    assert (found["problems"], found["journal"]) == ([], url)
    system.cli("down")
    system.up()
    assert {job["id"] for job in system.client().jobs()} == {runs, after}
    leases = system.python("-c", "import raysched; print(raysched.history().leases['outcome'].to_list())")
    assert leases.stdout.strip() == "['succeeded', 'succeeded']"


def test_a_database_that_does_not_answer_is_told_at_once(
    make_system: Callable[..., System], postgres: Postgres
) -> None:
    system = make_system()
    config = system.folder / "raysched.yaml"
    config.write_text(f"{config.read_text()}store: {{url: '{postgres.url('nowhere')}'}}\n")
    done = system.cli("up", *system.simulated, check=False)
    assert done.returncode == 74
    assert "createdb" in done.stderr
    assert done.stderr.strip().count("\n") <= 1
    assert not system.processes()
