"""Slurm's own words in plain ones: how a job ended, what sbatch refused. `waiting.py` has why one waits."""

from __future__ import annotations

import re

from raysched.backends.slurm.records import Job

FINAL = re.compile(
    r"invalid (account|partition|qos|generic|node|job array|time|license|feature|reservation|wckey)"
    r"|invalid dependency|reservation is invalid"
    r"|option '.*' (is ambiguous|requires an argument|doesn't allow an argument)"
    r"|node configuration is not available|more processors requested|memory specification can not be"
    r"|time limit is invalid|invalid .*specification|(unrecognized|invalid|ambiguous) option"
    r"|requires .* account|not permitted|access.*denied|too long|invalid trackable|invalid tres|invalid gres",
    re.IGNORECASE,
)
"""What sbatch would say every time."""

UNANSWERED = re.compile(
    r"unable to contact slurm controller|connection (refused|reset|aborted)|socket timed out|connect failure"
    r"|missing socket|socket error|broken pipe|incomplete message|insane message"
    r"|communication connection failure|zero bytes were transmitted|slurm temporarily unable"
    r"|slurm backup controller in standby|unable to establish control|protocol authentication"
    r"|transport endpoint|unexpected message|resource temporarily unavailable|no route to host"
    r"|connection timed out|controller .*not respond|munge",
    re.IGNORECASE,
)
"""What says that nobody answered, so that nobody knows whether it was done."""

_BEFORE = re.compile(r"^(sbatch|scancel|squeue|sinfo|scontrol|slurm_\w+|error|fatal):\s*", re.IGNORECASE)


def starting(job: Job) -> str:
    """What becomes of a job that Slurm has given nodes to and whose command has not begun."""
    return f"Slurm is starting it on {', '.join(job.nodes)}" if job.nodes else "Slurm is starting it"


def ended(job: Job, limit: int | None) -> str:
    """How Slurm ended a job, where that tells more than an exit code; else empty. `limit` in ms."""
    states = job.states
    where = f" on {', '.join(job.nodes)}" if job.nodes else ""
    if "TIMEOUT" in states:
        most = f"max_runtime of {limit / 1000:g} s" if limit else "time limit at this site"
        return f"ran longer than its {most}"
    if "OUT_OF_MEMORY" in states:
        return f"ran out of memory{where}: ask for more with resources.memory"
    if "NODE_FAIL" in states:
        return f"a node of it failed{where}"
    if "BOOT_FAIL" in states or "LAUNCH_FAILED" in states or "RECONFIG_FAIL" in states:
        return f"Slurm could not start it{where}"
    if "PREEMPTED" in states or job.preempted:
        return "Slurm took its nodes for a job that goes before it"
    if "DEADLINE" in states:
        return "ended by Slurm at its deadline"
    if "CANCELLED" in states or "REVOKED" in states:
        return "cancelled in Slurm, not by raysched"
    return ""


def refusal(said: str) -> str:
    """The sentence in what a command of Slurm's said on stderr: its last error, else its first line."""
    lines = [_bare(line) for line in said.splitlines() if line.strip()]
    errors = [_bare(line) for line in said.splitlines() if "error:" in line.lower()]
    return (errors[-1:] or lines[:1] or ["it gave no reason"])[0]


def _bare(line: str) -> str:
    text = line.strip()
    while (shorter := _BEFORE.sub("", text)) != text:
        text = shorter
    return text.removeprefix("Batch job submission failed: ")
