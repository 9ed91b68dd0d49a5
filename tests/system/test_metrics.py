"""raysched's metrics, as Ray exports them and a real Prometheus reads them; and the board for Grafana."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import need
from running import System, free_port, wait_until, watched

from raysched.actors.metrics import GAUGES, STRAYS_ENDED
from raysched.testing import SimulatedGPUs

pytestmark = pytest.mark.ray

FIRST_S = 1
BOARD = Path(__file__).parents[2] / "raysched" / "cli" / "grafana.json"
NAMES = {f"ray_{name}" for name in GAUGES} | {f"ray_{STRAYS_ENDED[0]}_total"}


class Prometheus:
    """A Prometheus that reads what Ray says there is to read."""

    def __init__(self, folder: Path, targets: Path) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        config.write_text(
            f"global: {{scrape_interval: {FIRST_S}s}}\n"
            f"scrape_configs: [{{job_name: ray, file_sd_configs: [{{files: [{targets}]}}]}}]\n"
        )
        subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
        listen = self._url.removeprefix("http://")
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [*command, f"--web.listen-address={listen}"], stdout=self._log, stderr=self._log
        )

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._url}/api/v1/query?{query}", timeout=30) as answer:
            return json.loads(answer.read())["data"]["result"]

    def answers(self) -> bool:
        try:
            self.ask("up")
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def running(_ray: None) -> Iterator[System]:
    """A system whose one GPU is used by a tenant, by an orphan and by a stranger."""
    with watched("policy: {watchdog: {sample: 1s, grace: 1s}}") as system:
        yield system


@pytest.fixture(scope="module")
def prometheus(running: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    there = [shutil.which(name) for name in ("prometheus", "promtool")]
    need(all(there), "apt-get install prometheus")
    targets = running.folder / "ray" / "prom_metrics_service_discovery.json"
    wait_until(targets.exists, "Ray tells where its metrics are")
    made = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
    try:
        wait_until(made.answers, "Prometheus answers")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def tenant(running: System) -> Iterator[str]:
    """A job that keeps 0.2 of the GPU busy and is over its memory; beside it an orphan was ended."""
    (node,) = running.client().gpus()["nodes"]
    gpu = node["gpus"][0]["uuid"]
    cards = SimulatedGPUs(running.home, node["name"])
    cards.warm(gpu, 250, 55)
    over = running.submit("over", "true", resources={"gpu_fraction": 0.1})
    wait_until(lambda: running.client().job(over)[0]["lease"]["state"] == "released", "it is over")
    orphan = subprocess.Popen(["sleep", "600"], env={**os.environ, "RAYSCHED_LEASE": f"{over}.1"})
    cards.use(gpu, orphan.pid, 10)
    id = running.submit("greedy", "echo $$; exec sleep 600", resources={"gpu_fraction": 0.25})
    waits = running.submit("waits", "true", resources={"gpus": 1}, queue="nlp")
    read = lambda: b"".join(running.client().logs(id)).decode().strip()  # noqa: E731
    cards.use(gpu, int(wait_until(read, "it runs")), 30_000, busy=0.2)
    try:
        yield id
    finally:
        orphan.kill()
        orphan.wait()
        running.cli("cancel", id)
        running.cli("cancel", waits)


def value(prometheus: Prometheus, expression: str, wanted: float) -> None:
    """Wait until an expression gives one series with a value."""

    def found() -> bool:
        series = prometheus.ask(expression)
        return [float(each["value"][1]) for each in series] == [wanted]

    wait_until(found, f"{expression} is {wanted}", 60)


def test_prometheus_sees_what_is_granted_used_and_waits(prometheus: Prometheus, tenant: str) -> None:
    lease = f'lease="{tenant}.1"'
    labels = f'{lease},job_name="greedy",queue="default"'
    value(prometheus, f"ray_raysched_tenant_busy_ratio{{{labels}}}", 0.2)
    value(prometheus, f"ray_raysched_tenant_share_ratio{{{lease}}}", 0.25)
    value(prometheus, f"ray_raysched_tenant_memory_used_bytes{{{lease}}}", 30_000 * 2**20)
    value(prometheus, "ray_raysched_gpu_share_granted_ratio", 0.25)
    value(prometheus, "ray_raysched_gpu_power_watts", 250)
    value(prometheus, "ray_raysched_tenants_over_memory", 1)
    value(prometheus, 'ray_raysched_jobs{queue="nlp",state="waiting"}', 1)
    value(prometheus, 'ray_raysched_watchdog_ended_total{kind="orphan"}', 1)


def test_every_metric_is_there_and_every_panel_of_the_board_shows_something(
    prometheus: Prometheus, tenant: str
) -> None:
    for name in NAMES:
        wait_until(lambda name=name: prometheus.ask(name), f"{name} is there")
    for expression in expressions():
        asked = expression.replace("$node", ".*").replace("$queue", ".*")
        wait_until(lambda asked=asked: prometheus.ask(asked), f"{asked} gives something")


def test_promtool_has_nothing_to_say_but_against_rays_labels(prometheus: Prometheus, tenant: str) -> None:
    """Ray puts `WorkerId`, `SessionName` and others of that form on everything."""
    (place,) = {series["metric"]["instance"] for series in prometheus.ask("ray_raysched_nodes")}
    with urllib.request.urlopen(f"http://{place}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    ours = "".join(f"{line}\n" for line in text.splitlines() if "ray_raysched_" in line)
    check = ["promtool", "check", "metrics"]
    done = subprocess.run(check, input=ours, text=True, capture_output=True, check=False)
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "camelCase" not in line] == []


def test_what_is_no_longer_so_is_no_longer_told(running: System, prometheus: Prometheus, tenant: str) -> None:
    """The last one here: it ends the tenant."""
    series = f'ray_raysched_tenant_busy_ratio{{lease="{tenant}.1"}}'
    wait_until(lambda: prometheus.ask(series), "it is told")
    running.cli("cancel", tenant)
    wait_until(lambda: not prometheus.ask(series), "it is told no more")


# ---------------------------------------------------------------- the board, without engines


def board() -> dict[str, Any]:
    return json.loads(BOARD.read_text())


def expressions() -> list[str]:
    return [target["expr"] for panel in board()["panels"] for target in panel["targets"]]


def test_the_board_asks_for_all_metrics_that_there_are_and_no_others() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"ray_raysched_\w+", expression)}
    assert asked == NAMES


def test_the_panels_have_places_of_their_own_and_say_what_they_show() -> None:
    cells = [
        (x, y)
        for panel in board()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] and panel["description"] for panel in board()["panels"])
    assert len({panel["id"] for panel in board()["panels"]}) == len(board()["panels"])


def test_the_command_prints_it() -> None:
    script = Path(sys.executable).with_name("raysched")
    done = subprocess.run([script, "grafana"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == board()
