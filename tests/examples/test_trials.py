"""What the demo shows, made from the API's JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(name="trials")
def trials_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """examples/trials.py, imported as the demo does it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "trials", raising=False)
    import trials

    return trials


def job(index: int, state: str, **fields: Any) -> dict[str, Any]:
    """A job as docs/api.md describes it, on a quarter of GPU-3f2a1111 once it has been granted."""
    place = {"node": "a", "cpus": 0, "memory_mib": 0}
    gpu = {"uuid": "GPU-3f2a1111-0000", "index": 0, "model": "A100-80GB", "share": 2500, "memory_mib": 20480}
    base = {
        "id": f"J.{index}",
        "state": state,
        "reason": "",
        "wait_s": 0.5,
        "run_s": 4.0,
        "granted": "2026-11-25T10:00:00.000Z",
        "started": "2026-11-25T10:00:01Z",
        "ended": None,
        "lease": {"places": [place | {"gpus": [gpu]}]},
    }
    return base | fields


def shown(renderable: Any) -> str:
    """What a pipe of 80 columns gets."""
    console = Console(width=80, force_terminal=False, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_a_running_trial_shows_its_share_and_progress(trials: Any) -> None:
    trial = trials.Trial("J.0", "hpo[0]")
    trial.update(job(0, "running"))
    trial.output = b"epoch 100 of 600: accuracy 0.9\nepoch 300 of 600: accuracy 0.95\n"
    assert trial.progress == 0.5
    assert trials.change_line(trial) == "hpo[0] runs on 25 % of GPU-3f2a"
    assert "GPU-3f2a: 1 trial on 25 % of it" in shown(trials.progress_view([trial]))


def test_a_lease_is_remembered_after_it_was_given_back(trials: Any) -> None:
    trial = trials.Trial("J.0", "hpo[0]")
    trial.update(job(0, "running"))
    trial.update(job(0, "succeeded", lease=None, ended="2026-11-25T10:00:05Z"))
    assert (trial.gpu, trial.share) == ("GPU-3f2a1111-0000", 2500)


def ended(trials: Any, index: int, start: int, end: int, cpu_s: float) -> Any:
    """A trial that was granted and ended at these seconds, and computed for `cpu_s`."""
    trial = trials.Trial(f"J.{index}", f"hpo[{index}]")
    stamps = {"granted": f"2026-11-25T10:00:{start:02}Z", "ended": f"2026-11-25T10:00:{end:02}Z"}
    trial.update(job(index, "succeeded", run_s=float(end - start), **stamps))
    result = f'{{"learning_rate": 0.01, "hidden": 32, "accuracy": 0.9{index}, "cpu_s": {cpu_s}}}'
    trial.output = b"epoch 600 of 600: accuracy 0.9\nRESULT " + result.encode() + b"\n"
    return trial


def test_the_table_has_what_each_trial_had(trials: Any) -> None:
    table = shown(trials.result_table([ended(trials, 0, 0, 4, 2.0), ended(trials, 1, 0, 4, 2.0)]))
    row = next(line for line in table.splitlines() if line.startswith("hpo[1]"))
    assert row.split() == ["hpo[1]", "0.01", "32", "0.910", "25", "%", "0.5", "s", "4.0", "s", "GPU-3f2a"]
    assert max(map(len, table.splitlines())) <= 80


def test_time_saved_counts_computing_time_not_stretched_run_time(trials: Any) -> None:
    """Four trials of 2 CPU seconds, stretched to 4 s side by side: 8 s alone, 5 s shared."""
    four = [ended(trials, index, 0, 4 + index // 3, 2.0) for index in range(4)]
    lines = "\n".join(trials.saving_lines(four, gpus=1, cores=2))
    assert "Time saved: 3.0 s, or 38%, measured from these runs." in lines
    assert "run times add up to 17.0 s" in lines


def test_time_lost_is_said(trials: Any) -> None:
    lines = "\n".join(trials.saving_lines([ended(trials, 0, 0, 9, 2.0)], gpus=1, cores=2))
    assert "Time saved: none, 7.0 s lost" in lines
