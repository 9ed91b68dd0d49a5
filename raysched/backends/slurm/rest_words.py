"""What sbatch is told by options, in the words of slurmrestd. What differs between the versions of its API is
in this file and nowhere else.

| | v0.0.38 (22.05) | v0.0.40 to v0.0.45 (23.11 to 26.05) |
|---|---|---|
| GRES a node | "gres": "shard:3" | "tres_per_node": "gres/shard:3" |
| GPUs of the whole job | "gpus": "a100:4" | "tres_per_job": "gres/gpu:a100:4" |
| a number | 5 | {"set": true, "number": 5} |
| nodes | 2 | "2" |
| no requeue | "no_requeue": true | "requeue": false |
| a signal to the script | not to be had | "kill_warning_signal", "_delay", "_flags" |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from raysched.backends.slurm.controller import Batch, Refused

VERSIONS = (*(f"v0.0.{number}" for number in range(45, 39, -1)), "v0.0.38")
"""Those that are spoken, the newest first."""
OLD = "v0.0.38"

Fields = dict[str, Any]
_SIGNAL = re.compile(r"B:([A-Z0-9]+)@(\d+)")


def api(paths: Mapping[str, Any]) -> str | None:
    """The newest version that is spoken among the paths of an OpenAPI document."""
    return next((version for version in VERSIONS if f"/slurm/{version}/job/submit" in paths), None)


def submission(batch: Batch, version: str, environment: Mapping[str, str]) -> Fields:
    """The body that submits a batch, whose script gets these variables. Raises Refused for an option that
    this version has no word for."""
    words = _OLD if version == OLD else _NEW
    job: Fields = {"current_working_directory": "/"}
    for option in batch.options:
        name, _, value = option.removeprefix("--").partition("=")
        word = words.get(name)
        if word is None:
            raise Refused(
                f"--{name} can't be said to slurmrestd {version}: leave it out, or use sbatch",
                final=True,
            )
        job.update(word(value))
    job["environment"] = (
        dict(environment) if version == OLD else [f"{name}={value}" for name, value in environment.items()]
    )
    return {"script": batch.script, "job": job}


def drained(reason: str | None) -> Fields:
    """The body that drains a node, or (None) uses it again."""
    return {"state": ["RESUME"]} if reason is None else {"state": ["DRAIN"], "reason": reason}


def _text(name: str) -> Callable[[str], Fields]:
    return lambda value: {name: value}


def _plain(name: str) -> Callable[[str], Fields]:
    return lambda value: {name: int(value)}


def _set(name: str) -> Callable[[str], Fields]:
    return lambda value: {name: _number(int(value))}


def _number(value: int) -> Fields:
    return {"set": True, "infinite": False, "number": value}


def _warning(value: str) -> Fields:
    found = _SIGNAL.fullmatch(value)
    assert found is not None, value
    return {
        "kill_warning_signal": found[1],
        "kill_warning_delay": _number(int(found[2])),
        "kill_warning_flags": ["BATCH_JOB"],
    }


Words = dict[str, Callable[[str], Fields]]

_BOTH: Words = {
    "job-name": _text("name"),
    "comment": _text("comment"),
    "output": _text("standard_output"),
    "array": _text("array"),
    "account": _text("account"),
    "partition": _text("partition"),
    "qos": _text("qos"),
    "reservation": _text("reservation"),
    "constraint": _text("constraints"),
    "ntasks-per-node": _plain("tasks_per_node"),
    "cpus-per-task": _plain("cpus_per_task"),
    "nice": _plain("nice"),
    "licenses": _text("licenses"),
    "dependency": _text("dependency"),
    "wckey": _text("wckey"),
}
_OLD: Words = {
    **_BOTH,
    "no-requeue": lambda _: {"no_requeue": True},
    "nodes": _plain("nodes"),  # with the list of two that its manual names, 22.05 gives one node
    "mem": lambda value: {"memory_per_node": int(value.removesuffix("M"))},
    "time": _plain("time_limit"),
    "gres": _text("gres"),
    "gpus": _text("gpus"),
    "exclusive": lambda _: {"exclusive": "exclusive"},
}
_NEW: Words = {
    **_BOTH,
    "no-requeue": lambda _: {"requeue": False},
    "nodes": lambda value: {"nodes": value, "minimum_nodes": int(value)},
    "mem": lambda value: {"memory_per_node": _number(int(value.removesuffix("M")))},
    "time": _set("time_limit"),
    "gres": lambda value: {"tres_per_node": f"gres/{value}"},
    "gpus": lambda value: {"tres_per_job": f"gres/gpu:{value}"},
    "exclusive": lambda _: {"shared": ["none"]},
    "signal": _warning,
}
