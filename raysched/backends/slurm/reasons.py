"""Slurm's own words in plain ones: why a job waits, how one ended, what sbatch refused."""

from __future__ import annotations

import re

from raysched.backends.slurm.records import Job

WAITS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "jobs with a higher priority are before it",
    "Resources": "what it asks for is in use",
    "Dependency": "a job that it depends on has not ended",
    "DependencyNeverSatisfied": "a job that it depends on failed, so it never starts",
    "BeginTime": "its time has not come",
    "JobHeldUser": "it is held: scontrol release starts it",
    "JobHeldAdmin": "an administrator holds it",
    "JobArrayTaskLimit": "as many tasks of its array run as may",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition starts nothing now",
    "PartitionNodeLimit": "its partition has not as many nodes, or they are down",
    "PartitionTimeLimit": "it asks for more time than its partition allows",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "Reservation": "its reservation has not begun",
    "Licenses": "licenses that it needs are in use",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "BadConstraints": "no node has what it asks for",
    "NodeDown": "a node that it needs is down",
    "Cleaning": "its last run is being cleaned up",
    "FrontEndDown": "the front end is down",
    "NonZeroExitCode": "it failed before",
    "SystemFailure": "a part of Slurm failed",
    "LaunchFailureLimitReached": "it could not be started several times, and is held",
}
"""By squeue's reason codes; squeue(1) lists all of them."""

_NOT_THERE = ("Nodes_required_for_job", "Nodes required for job", "ReqNodeNotAvail")
_LIMIT = re.compile(r"(?P<whose>QOS|Assoc)(?P<what>\w+)")
_WHOSE = {"QOS": "its QOS", "Assoc": "its account"}

FINAL = re.compile(
    r"invalid (account|partition|qos|generic|node|job array|time|license|feature|reservation|wckey)"
    r"|invalid dependency"
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


def waits(reason: str) -> str:
    """Why a job waits at the site."""
    name = reason.strip() or "None"
    known = WAITS.get("ReqNodeNotAvail" if name.startswith(_NOT_THERE) else name)
    if known is None and (limit := _LIMIT.match(name)):
        known = f"{_WHOSE[limit['whose']]} is at a limit"
    return f"waits in Slurm: {known} ({name})" if known else f"waits in Slurm: {name}"


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
    if "PREEMPTED" in states:
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
