"""What GPUs and tenants really use, as people see it: real processes, real Ray, ledger, agent; the cards are
made up, and a job says itself how much of them it uses."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from running import System, wait_until, watched

import raysched
from raysched.testing import SimulatedGPUs

pytestmark = pytest.mark.ray

QUARTER = 20480
POLICY = "policy: {replicas: 3, watchdog: {sample: 1s, over_memory: end, grace: 3s}}"
USE = """
import os, sys, time
from pathlib import Path
from raysched.testing import SimulatedGPUs
home, node, gpu, go, memory, busy = sys.argv[1:]
SimulatedGPUs(Path(home), node).use(gpu, os.getpid(), int(memory), busy=float(busy))
while not os.path.exists(go):
    time.sleep(0.05)
"""


class Card:
    """The GPU of a system, and jobs that use so much of it until `go`."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        (node,) = system.client().gpus()["nodes"]
        self.node = node["name"]
        self.gpu = node["gpus"][0]["uuid"]
        self.cards = SimulatedGPUs(system.home, self.node)
        self.go = folder / "go"
        (folder / "use.py").write_text(USE)
        self.program = folder / "use.py"

    def submit(self, memory: int, busy: float = 0.0, name: str = "job", **fields: Any) -> str:
        words = [self.system.home, self.node, self.gpu, self.go, memory, busy]
        line = f"python {self.program} {' '.join(map(str, words))}"
        return self.system.submit(name, line, resources={"gpu_fraction": 0.25}, **fields)

    def shown(self) -> dict[str, Any]:
        """The GPU as it is shown."""
        return self.system.client().gpus()["nodes"][0]["gpus"][0]

    def tenant(self, job: str) -> dict[str, Any]:
        """What is shown of a tenant; empty if it is none."""
        return next((tenant for tenant in self.shown()["tenants"] if tenant["job"] == job), {})

    def job(self, id: str) -> dict[str, Any]:
        return self.system.client().job(id)[0]

    def events(self, job: str) -> list[dict[str, Any]]:
        """What happened to a job so far."""
        found = []
        for event in self.system.client().events(job=job, after=0, tick=2):
            if event is None:
                return found
            found.append(event)
        return found


@pytest.fixture(scope="module")
def running(_ray: None) -> Iterator[System]:
    with watched(POLICY) as system:
        yield system


@pytest.fixture
def card(running: System, tmp_path: Path) -> Iterator[Card]:
    card = Card(running, tmp_path)
    yield card
    card.go.touch()
    card.cards.leave(card.gpu)
    card.cards.warm(card.gpu, None, None)
    wait_until(lambda: not card.shown()["tenants"] and not card.shown()["strangers"], "the GPU is free")


def test_a_tenant_over_its_memory_is_reported_and_ended(card: Card) -> None:
    """Its neighbour, which keeps to its share, is left alone."""
    good, bad = card.submit(QUARTER), card.submit(QUARTER + 1, name="greedy")
    wait_until(lambda: card.job(bad)["warning"], "it is told")
    assert f"uses {QUARTER + 1} MiB" in card.job(bad)["warning"]
    assert card.tenant(bad)["over"]["action"] == "end"
    wait_until(lambda: card.job(bad)["state"] == "failed", "it is ended")
    assert f"used {QUARTER + 1} MiB of" in card.job(bad)["reason"]
    assert (card.job(good)["state"], card.job(good)["warning"]) == ("running", "")
    told = [event["event"] for event in card.events(bad)]
    assert told.index("overshare") < told.index("warned") < told.index("stopping")


def test_what_a_tenant_uses_is_shown_beside_what_it_has(card: Card) -> None:
    card.cards.warm(card.gpu, 312, 61)
    one, two = card.submit(5000, 0.3), card.submit(7000, 0.1)
    wait_until(lambda: card.tenant(one).get("busy") and card.tenant(two).get("busy"), "it is measured")
    gpu = card.shown()
    assert (gpu["busy"], gpu["memory_used_mib"], gpu["power_w"], gpu["temperature_c"]) == (
        4000,
        12000,
        312,
        61,
    )
    assert (card.tenant(one)["busy"], card.tenant(one)["memory_used_mib"]) == (3000, 5000)
    assert gpu["strangers"] == []


def test_the_use_of_a_lease_is_in_the_history_and_in_usage(card: Card, running: System) -> None:
    id = card.submit(5000, 0.2, name="measured")
    wait_until(lambda: card.tenant(id).get("busy"), "it is measured")
    first = card.tenant(id)["for_s"]
    wait_until(lambda: card.tenant(id)["for_s"] > first + 3, "for some seconds")
    card.go.touch()
    wait_until(lambda: not card.tenant(id), "its lease is over")
    lease = raysched.history(f"sqlite:///{running.home}/journal.sqlite").leases.set_index("job").loc[id]
    assert (lease["memory_used_peak_mib"], lease["busy_peak"]) == (5000, 0.2)
    assert 0 < lease["gpu_seconds_used"] < lease["gpu_seconds"]
    assert lease["measured_s"] > 2
    (row,) = [row for row in running.json("usage", "--by", "job")["rows"] if row["id"] == id]
    assert (row["name"], row["jobs"], row["memory_peak_mib"]) == ("measured", 1, 5000)
    assert row["gpu_hours_used"] <= row["gpu_hours_measured"] <= row["gpu_hours"]
    assert 0 < row["busy"] <= 8000, "0.2 of a GPU are four fifths of its quarter"


def test_a_killed_agent_loses_no_more_than_its_last_seconds(card: Card, running: System) -> None:
    id = card.submit(5000, 0.2)
    file = running.home / "use" / f"{card.node}.json"

    def kept() -> float:
        told = json.loads(file.read_text()) if file.exists() else []
        return sum(each["ms"] for each in told if each["lease"] == f"{id}.1") / 1000

    wait_until(lambda: kept() >= 6, "some seconds are kept")
    before = kept()
    (agent,) = running.processes("ray::NodeAgent")
    os.kill(agent, signal.SIGKILL)
    card.go.touch()
    wait_until(lambda: card.job(id)["state"] == "succeeded" and not card.tenant(id), "its lease is over")
    lease = raysched.history(f"sqlite:///{running.home}/journal.sqlite").leases.set_index("job").loc[id]
    assert lease["measured_s"] >= before


def test_a_time_sliced_gpu_takes_as_many_as_the_configuration_says(card: Card) -> None:
    ids = [card.system.submit("turn", "sleep 60", resources={"sharing": "time_slice"}) for _ in range(4)]
    wait_until(lambda: [card.job(id)["state"] for id in ids[:3]] == ["running"] * 3, "three run")
    assert card.job(ids[3])["state"] == "waiting"
    assert "3 turns" in card.job(ids[3])["reason"] or "3 turns" in card.system.cli("explain", ids[3]).stdout
    for id in ids:
        card.system.client().cancel(id)
    wait_until(lambda: not card.shown()["tenants"], "the GPU is free")


def test_usage_goes_to_other_programs(card: Card, running: System, tmp_path: Path) -> None:
    id = card.submit(100)
    wait_until(lambda: card.job(id)["state"] == "running", "it runs")
    running.cli("usage", "--by", "gpu", "--parquet", "use.parquet", cwd=tmp_path)
    read = pd.read_parquet(tmp_path / "use.parquet")
    (tmp_path / "use.csv").write_text(running.cli("usage", "--by", "gpu", "--csv").stdout)
    for frame in (read, pd.read_csv(tmp_path / "use.csv")):
        assert frame["gpu"].to_list() == [card.gpu]
        assert frame["gpu_hours"].to_list()[0] > 0
    assert running.cli("usage", "--since", "1", check=False).returncode == 2
    nowhere = running.cli("usage", "--parquet", "no/such/folder.parquet", check=False, cwd=tmp_path)
    assert nowhere.returncode == 66
    assert "can't be written" in nowhere.stderr


def test_advice_needs_jobs_that_were_measured(running: System) -> None:
    assert running.json("advise", "--since", "1h")["advice"] == []
    assert "nothing to save" in running.cli("advise").stdout


# ---------------------------------------------------------------- processes that have no right to be there


def test_processes_without_a_lease_are_reported_and_left_alone(card: Card, running: System) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            card.cards.use(card.gpu, stranger.pid, 3000)
            wait_until(lambda: card.shown()["strangers"], "it is seen")
            (seen,) = card.shown()["strangers"]
            assert (seen["pid"], seen["name"], seen["memory_mib"], seen["lease"]) == (
                stranger.pid,
                "sleep",
                3000,
                None,
            )
            assert card.shown()["foreign_mib"] == 3000
            assert f"pid {stranger.pid}" in running.cli("top").stdout
            looks = card.shown()
            wait_until(lambda: card.shown() != looks, "time goes by")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_an_orphan_of_a_job_that_is_over_is_ended(card: Card) -> None:
    id = card.submit(100)
    wait_until(lambda: card.job(id)["state"] == "running", "it runs")
    card.go.touch()
    wait_until(lambda: not card.tenant(id), "its lease is over")
    with subprocess.Popen(["sleep", "600"], env={**os.environ, "RAYSCHED_LEASE": f"{id}.1"}) as orphan:
        try:
            card.cards.use(card.gpu, orphan.pid, 3000)
            wait_until(lambda: card.shown()["strangers"], "it is seen")
            assert card.shown()["strangers"][0]["lease"] == f"{id}.1"
            assert orphan.wait(60) == -signal.SIGTERM
        finally:
            orphan.kill()


# ---------------------------------------------------------------- top


@pytest.mark.parametrize("columns", [80, 200])
def test_top_is_live_on_a_terminal_until_it_is_ended(card: Card, running: System, columns: int) -> None:
    one = card.submit(5000, 0.2, name="first")
    wait_until(lambda: card.tenant(one).get("busy"), "it is measured")
    screen = Screen(running, columns, "top", "--every", "1s")
    screen.until("first")
    two = card.submit(5000, 0.2, name="second")
    screen.until("second")
    assert card.tenant(two)
    assert screen.end() == 0
    assert all(len(line) <= columns for line in screen.lines())


def test_in_a_pipe_top_looks_once(card: Card, running: System) -> None:
    id = card.submit(5000, 0.2, name="first")
    wait_until(lambda: card.tenant(id).get("busy"), "it is measured")
    lines = running.cli("top").stdout.splitlines()
    assert lines[0].startswith("1 GPU  granted 25 %  busy 20 %")
    assert card.gpu in lines[2]
    assert lines[3].split()[:3] == ["first", "25", "%"]
    assert running.json("top")["nodes"][0]["gpus"][0]["busy"] == 2000


class Screen:
    """A command on a terminal."""

    def __init__(self, system: System, columns: int, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = {name: value for name, value in system.env.items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            ["raysched", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env | {"TERM": "xterm"}
        )
        os.close(theirs)
        self._seen = ""

    def until(self, text: str) -> None:
        """Wait until it shows a text."""
        while text not in self._seen:
            assert self._read(), self._seen

    def _read(self) -> bool:
        assert select.select([self._ours], [], [], 60)[0], self._seen
        with suppress(OSError):  # Linux says so when the last process has closed the terminal
            if piece := os.read(self._ours, 1 << 16):
                self._seen += piece.decode(errors="replace")
                return True
        return False

    def end(self) -> int:
        """Press Ctrl-C; its exit code."""
        self._process.send_signal(signal.SIGINT)
        while self._read():
            pass
        os.close(self._ours)
        return self._process.wait()

    def lines(self) -> list[str]:
        """All that it ever showed, without colours."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen.replace("\x1b[H", "\n"))
        return [line.rstrip("\r") for line in text.split("\n")]
