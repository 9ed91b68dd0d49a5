"""Why a job waits at a site, in plain words beside Slurm's own code."""

from __future__ import annotations

import re

CODES = {
    "None": "Slurm has not looked at it yet",
    "WaitingForScheduling": "Slurm has not looked at it yet",
    "Prolog": "its nodes are being prepared",
    "Priority": "jobs with a higher priority are before it",
    "Resources": "what it asks for is in use",
    "SchedDefer": "Slurm looks at new jobs only now and then",
    "Dependency": "a job that it depends on has not ended",
    "DependencyNeverSatisfied": "a job that it depends on failed, so it never starts",
    "BeginTime": "its time has not come",
    "DeadLine": "it can't end before its deadline any more",
    "JobHeldUser": "it is held: scontrol release starts it",
    "JobHeldAdmin": "an administrator holds it",
    "JobHoldMaxRequeue": "it was requeued too often, and is held",
    "JobArrayTaskLimit": "as many tasks of its array run as may",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition starts nothing now",
    "PartitionNodeLimit": "its partition has not as many nodes, or they are down",
    "PartitionTimeLimit": "it asks for more time than its partition allows",
    "PartitionConfig": "its partition does not take such a job",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "NodeDown": "a node that it needs is down",
    "FrontEndDown": "the front end is down",
    "PowerNotAvail": "there is not enough power for it",
    "PowerReserved": "the power that it needs is reserved",
    "BadConstraints": "no node has what it asks for",
    "Constraints": "no node has the features that it asks for",
    "MaxMemPerLimit": "it asks for more memory on a core or a node than there may be",
    "NvidiaImexChannels": "all channels between NVIDIA GPUs of several nodes are in use",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": "its reservation was deleted",
    "ReservationInvalid": "its reservation is not valid",
    "Licenses": "licenses that it needs are in use",
    "BurstBufferResources": "the burst buffer that it needs is in use",
    "BurstBufferStageIn": "its files are being brought into the burst buffer",
    "BurstBufferOperation": "something went wrong with its burst buffer",
    "InvalidAccount": "its account is not valid",
    "AccountNotAllowed": "its partition does not take its account",
    "AccountingPolicy": "the accounting does not allow it",
    "AssociationJobLimit": "its account has as many jobs as it may",
    "AssociationResourceLimit": "its account is at a limit",
    "AssociationTimeLimit": "its account has used up its time",
    "InvalidQOS": "its QOS is not valid",
    "QOSNotAllowed": "its partition or account does not take its QOS",
    "QOSUsageThreshold": "its account has used more than its QOS wants of one",
    "QOSJobLimit": "its QOS has as many jobs as it may",
    "QOSResourceLimit": "its QOS is at a limit",
    "QOSTimeLimit": "its QOS has used up its time",
    "FedJobLock": "another cluster of the federation looks at it",
    "Cleaning": "its last run is being cleaned up",
    "SystemFailure": "a part of Slurm failed",
    "JobLaunchFailure": "it could not be started",
    "BlockMaxError": "its block of nodes has too many faults",
    "BlockFreeAction": "its block of nodes is being freed",
    "NonZeroExitCode": "it failed before",
    "RaisedSignal": "a signal ended it before",
    "TimeLimit": "it ran longer than its time limit before",
    "InactiveLimit": "it was ended before as it did nothing",
    "OutOfMemory": "it ran out of memory before",
}
"""By Slurm's reason codes, but for those of limits."""

_NODES = ("Nodes_required_for_job", "Nodes required for job", "ReqNodeNotAvail")
"""How Slurm begins when it tells more of nodes than a code."""

_LIMIT = re.compile(
    r"(?P<whose>QOS|Assoc|)(?P<bound>Grp|Max|Min)"
    r"(?P<what>Cpu|CPU|SubmitJobs?|Jobs|Memory|Mem|Node|WallDuration|Wall|GRES|License|BB|Energy|Billing"
    r"|Unknown)"
    r"(?P<time>Minutes|RunMinutes|RunMins)?(Per(?P<each>Job|Node|User|Account))?(Limit|NotSatisfied)?"
)
_WHAT = {
    "CPU": "cores",
    "SUBMITJOB": "submitted jobs",
    "SUBMITJOBS": "submitted jobs",
    "JOBS": "jobs",
    "MEM": "memory",
    "MEMORY": "memory",
    "NODE": "nodes",
    "WALL": "time",
    "WALLDURATION": "time",
    "GRES": "GPUs or other GRES",
    "LICENSE": "licenses",
    "BB": "burst buffer",
    "ENERGY": "energy",
    "BILLING": "billing units",
    "UNKNOWN": "something that it asks for",
}


def waits(id: str, code: str, words: str = "") -> str:
    """Why the job that Slurm calls `id` waits at the site; `words` is what Slurm says beside the code."""
    name = code.strip() or "None"
    known = CODES.get("ReqNodeNotAvail" if name.startswith(_NODES) else name) or _limit(name)
    said = words.strip() if words.strip().startswith(_NODES) else name
    return f"waits in Slurm as job {id}: {f'{known} ({said})' if known else said}"


def _limit(name: str) -> str:
    """What the limit is that a code stands for; empty where it stands for none."""
    found = _LIMIT.fullmatch(name)
    if found is None:
        return ""
    whose, each = "its account" if found["whose"] == "Assoc" else "its QOS", found["each"]
    what = _WHAT[found["what"].upper()]
    if found["time"]:
        what = f"minutes of {what}"
    if found["bound"] == "Min":
        return f"it asks for less than {whose} wants of a job: {what}"
    if found["bound"] == "Grp":
        ahead = " for what runs" if found["time"] == "RunMinutes" else ""
        return f"all jobs of {whose} together have as much as they may{ahead}: {what}"
    if each in ("Job", "Node"):
        where = "" if each == "Job" else " on a node"
        return f"it asks for more than {whose} gives a job{where}: {what}"
    if each in ("User", "Account"):
        return f"its {each.lower()} has as much as {whose} gives one: {what}"
    return f"{whose} has as much as it may: {what}"
