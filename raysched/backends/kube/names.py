"""How raysched's objects in a cluster are named and labelled."""

from __future__ import annotations

import hashlib
import re

from raysched.core.work import Run

MANAGER = "raysched"
"""Our field manager: whose fields are whose in an object."""
SYSTEM = "raysched.io/system"
"""The label that tells the objects of one raysched from another's."""
NAME = "raysched.io/run"
"""The label by which the objects of one run are found, and the annotation with the run itself."""
PART = "raysched.io/part"
"""The label that says what an object is for: `run`, `record` or `files`."""
ROLE = "raysched.io/role"
"""The label of a Ray job's pods: `head`, `worker` or `submitter`."""
LET_GO = "raysched.io/let-go"
"""The annotation of a Job that raysched let go: one that is suspended after that was so by somebody else."""
GOES_ON = "raysched.io/sharing"
"""The annotation of a node whose GPUs are about to be shared in another way (`sharing.py`)."""
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
"""The label with the local queue in which Kueue lets a Job wait until it is its turn."""
KAI_QUEUE = "kai.scheduler/queue"
"""The label with the leaf queue that KAI Scheduler serves a job from."""
SLUG = 28
"""Characters of a job's id in a name: with what Kubernetes puts behind it, it has to stay below 63, and a
RayJob's may have 47."""


def name_of(run: Run, system: str) -> str:
    """The name of a run's objects. It reads like the run, and no two runs of any raysched have one."""
    slug = re.sub(r"[^a-z0-9]+", "-", run.job.lower())[:SLUG].strip("-")
    mark = hashlib.sha256(f"{system}/{run}".encode()).hexdigest()[:10]
    return f"rs-{slug}-{run.attempt}-{mark}"


def files_name(digest: str, system: str, part: int) -> str:
    """The name of the ConfigMap with this part of a packed working directory."""
    mark = hashlib.sha256(f"{system}/{digest}".encode()).hexdigest()[:20]
    return f"rs-files-{mark}-{part}"


def labels(system: str, part: str, name: str = "") -> dict[str, str]:
    """The labels of an object."""
    own = {"app.kubernetes.io/managed-by": MANAGER, SYSTEM: system, PART: part}
    return {**own, NAME: name} if name else own
