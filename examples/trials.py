"""What the demo shows of its trials: progress while they run, and the table at the end.

Everything here is made from the JSON of the HTTP API (docs/api.md) and what the trials printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

EPOCH = re.compile(rb"^epoch (\d+) of (\d+)", re.MULTILINE)
RESULT = re.compile(rb"^RESULT (\{.*\})$", re.MULTILINE)
ENDED = ("succeeded", "failed", "cancelled")
STYLES = {"running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "red"}


@dataclass
class Trial:
    """One element of the array. `gpu` and `share` are what its lease gave it, empty and 0 before that."""

    id: str
    name: str
    state: str = "waiting"
    reason: str = ""
    gpu: str = ""
    share: int = 0
    waited: float = 0.0
    ran: float = 0.0
    granted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    output: bytes = b""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED

    @property
    def attempted(self) -> bool:
        """Whether it was ever started, so that it may have printed something."""
        return self.started is not None

    @property
    def progress(self) -> float:
        """The part of its epochs that is done, 0 to 1."""
        found = EPOCH.findall(self.output)
        return int(found[-1][0]) / int(found[-1][1]) if found else 0.0

    @property
    def result(self) -> dict[str, Any]:
        """What the trial printed at its end; empty until then."""
        found = RESULT.findall(self.output)
        return json.loads(found[-1]) if found else {}

    def update(self, job: dict[str, Any]) -> None:
        """Take over what the API says of the job. A lease that is gone is remembered."""
        self.state, self.reason = job["state"], job["reason"] or ""
        self.waited, self.ran = job["wait_s"] or 0.0, job["run_s"] or 0.0
        self.granted = _instant(job["granted"])
        self.started = _instant(job["started"])
        self.ended = _instant(job["ended"])
        for place in (job["lease"] or {"places": []})["places"]:
            for gpu in place["gpus"]:
                self.gpu, self.share = gpu["uuid"], gpu["share"]


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def short(uuid: str) -> str:
    """The first characters of a GPU's UUID, as `raysched gpus` shows it."""
    return uuid[:8]


def percent(share: int) -> str:
    """Ten-thousandths as people read them."""
    return f"{share / 100:g} %"


def progress_view(trials: Sequence[Trial]) -> RenderableType:
    """The picture while they run: a bar a trial, and how much of each GPU is taken."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("trial", "", "state", "GPU", "share"):
        table.add_column(heading)
    for trial in trials:
        table.add_row(
            trial.name,
            ProgressBar(total=1.0, completed=trial.progress, width=30),
            Text(trial.state, STYLES.get(trial.state, "dim")),
            short(trial.gpu),
            percent(trial.share) if trial.share else "",
        )
    return Group(table, Text(taken_line(trials), "bold"))


def taken_line(trials: Sequence[Trial]) -> str:
    """`GPU-3f2a: 4 trials on 100 % of it`, for each GPU in use."""
    taken: dict[str, list[int]] = {}
    for trial in trials:
        if trial.gpu and not trial.over:
            taken.setdefault(trial.gpu, []).append(trial.share)
    return "   ".join(
        f"{short(gpu)}: {counted(len(shares), 'trial')} on {percent(sum(shares))} of it"
        for gpu, shares in taken.items()
    )


def counted(number: int, noun: str) -> str:
    """`1 trial`, `4 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def change_line(trial: Trial) -> str:
    """One plain line for a log, when a trial's state changed."""
    if trial.state == "running":
        return f"{trial.name} runs on {percent(trial.share)} of {short(trial.gpu)}"
    if trial.state == "succeeded":
        return f"{trial.name} done after {trial.ran:.1f} s: accuracy {trial.result.get('accuracy', 0):.3f}"
    return f"{trial.name} {trial.state} {trial.reason}".rstrip()


def result_table(trials: Sequence[Trial]) -> Table:
    """All trials, the best one marked."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("trial")
    for heading in ("rate", "hidden", "accuracy", "share", "waited", "ran"):
        table.add_column(heading, justify="right")
    table.add_column("GPU")
    best = max(trials, key=lambda trial: trial.result.get("accuracy", 0.0))
    for trial in trials:
        result = trial.result
        table.add_row(
            trial.name,
            f"{result.get('learning_rate', '')}",
            f"{result.get('hidden', '')}",
            f"{result['accuracy']:.3f}" if result else trial.state,
            percent(trial.share),
            f"{trial.waited:.1f} s",
            f"{trial.ran:.1f} s",
            short(trial.gpu),
            style="green" if trial is best else "",
        )
    return table


def saving_lines(trials: Sequence[Trial], gpus: int, cores: int) -> list[str]:
    """The time that sharing saved against one trial a GPU, and how that was computed.

    Trials that run side by side on few cores stretch each other's run time, so the comparison counts what
    each would need by itself: the CPU seconds that it measured of its own single thread.
    """
    starts = [trial.granted for trial in trials if trial.granted]
    ends = [trial.ended for trial in trials if trial.ended]
    shared = (max(ends) - min(starts)).total_seconds()
    alone = sum(trial.result["cpu_s"] for trial in trials) / gpus
    ran = sum(trial.ran for trial in trials)
    if alone > shared:
        verdict = (
            f"Time saved: {alone - shared:.1f} s, or {1 - shared / alone:.0%}, measured from these runs."
        )
    else:
        verdict = (
            f"Time saved: none, {shared - alone:.1f} s lost; the CPU was too busy for trials side by side."
        )
    return [
        f"Shared:           {shared:5.1f} s from the first grant to the last end.",
        f"One trial a GPU:  {alone:5.1f} s, the CPU seconds of all {len(trials)}, "
        f"one after another on {counted(gpus, 'GPU')}.",
        verdict,
        f"(Their run times add up to {ran:.1f} s: on {cores} cores, trials side by side slow each other. "
        "That is not counted as saved.)",
    ]
