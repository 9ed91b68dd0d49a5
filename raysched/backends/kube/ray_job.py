"""A Ray job in Kubernetes' words: a RayJob, for which KubeRay makes a Ray of a head and workers, all alike,
and a pod that submits the driver to it and then writes what the driver writes. Pure.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from raysched.backends.kube.command import as_is
from raysched.backends.kube.names import ROLE

ENTRYPOINT = "raysched.io/entrypoint"
"""The annotation of the head with the script that starts the driver."""
SCRIPT = "/raysched/entrypoint"
"""The folder in which the head finds it, as `run`."""
GROUP = "/tmp/raysched-driver"
"""The file in the head with the process group of the driver."""
SUBMIT = f"""\
import asyncio, logging, os, signal, sys, time
from ray.job_submission import JobSubmissionClient

id, told = os.environ["RAY_JOB_SUBMISSION_ID"], []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
logging.disable(logging.INFO)

def submitted():
    client = JobSubmissionClient("http://" + os.environ["RAY_DASHBOARD_ADDRESS"])
    try:
        client.get_job_status(id)
    except RuntimeError:
        client.submit_job(entrypoint="sh {SCRIPT}/run", submission_id=id)
    return client

for tries in range(60):
    try:
        client = submitted()
        break
    except Exception as error:
        if told or tries == 59:
            sys.exit("the driver could not be submitted to its Ray: " + str(error))
        time.sleep(1)

shown = 0

async def follow():
    global shown
    at = 0
    async for part in client.tail_job_logs(id):
        at += len(part)
        if at > shown:
            sys.stdout.write(part[shown - at:])
            sys.stdout.flush()
            shown = at

while True:
    try:
        asyncio.run(follow())
        if client.get_job_status(id).is_terminal():
            break
    except Exception:
        if told:
            break
    time.sleep(1)
"""
"""Submits the driver, unless that was done, and writes what it writes, over connections that break too. It is
told the address and the id by KubeRay. How the driver ended, KubeRay asks Ray itself."""
END = f"""\
group=$(cat {GROUP}) && kill -TERM "-$group" && {{
  while kill -0 "-$group" 2>/dev/null; do sleep 0.2; done
  sleep 3
}}
true
"""
"""What happens in the head before it is ended, as long as the pod's grace lasts: the driver may finish, and
Ray, which looks each second, hand on the last that it wrote."""

Manifest = dict[str, Any]


def ray_job(
    metadata: Manifest,
    template: Manifest,
    submits: Manifest,
    entrypoint: str | tuple[str, ...],
    nodes: int,
    gpus: int,
) -> Manifest:
    """The RayJob of a driver on so many pods, each with `gpus` devices. `template` is that of a Job's pod
    with the same resources, `submits` that of one which is put somewhere as the submitter shall be. It is
    suspended until its record knows of it, and Kueue, where it has a say, lets it go."""
    parameters = {"num-gpus": str(gpus)}
    main = template["spec"]["containers"][0]
    group: Manifest = {
        "groupName": "workers",
        "replicas": nodes - 1,
        "minReplicas": nodes - 1,
        "maxReplicas": nodes - 1,
        "rayStartParams": parameters,
        "template": _member(template, "worker"),
    }
    head = _head(_member(template, "head"), script(entrypoint, main["workingDir"]))
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "suspend": True,
            "jobId": metadata["name"],
            "entrypoint": f"sh {SCRIPT}/run",
            "submissionMode": "K8sJobMode",
            # What failed is neither started nor submitted again: the ledger decides about attempts.
            "backoffLimit": 0,
            "submitterConfig": {"backoffLimit": 0},
            "shutdownAfterJobFinishes": True,
            "submitterPodTemplate": _submitter(submits),
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": parameters, "template": head},
                **({"workerGroupSpecs": [group]} if nodes > 1 else {}),
            },
        },
    }


def script(entrypoint: str | tuple[str, ...], folder: str) -> str:
    """What `sh` runs in the head as the driver of the job, in its working directory."""
    line = entrypoint if isinstance(entrypoint, str) else f"exec {shlex.join(entrypoint)}"
    return f"cut -d' ' -f5 /proc/$$/stat >{GROUP}\ncd {folder} || exit\n{line}\n"


def _with_role(template: Manifest, role: str) -> Manifest:
    metadata: Mapping[str, Any] = template["metadata"]
    return {**metadata, "labels": {**metadata["labels"], ROLE: role}}


def _member(template: Manifest, role: str) -> Manifest:
    """The pod of a head or of a worker: KubeRay sets the command."""
    main, *others = template["spec"]["containers"]
    main = {name: value for name, value in main.items() if name != "command"}
    return {
        "metadata": _with_role(template, role),
        "spec": {**template["spec"], "containers": [main, *others]},
    }


def _head(template: Manifest, script: str) -> Manifest:
    """With the script of the driver, and time for it to finish."""
    metadata, spec = template["metadata"], template["spec"]
    main, *others = spec["containers"]
    source = {"path": "run", "fieldRef": {"fieldPath": f"metadata.annotations['{ENTRYPOINT}']"}}
    main = {
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", END]}}},
        **main,
        "volumeMounts": [
            *main["volumeMounts"],
            {"name": "raysched-entrypoint", "mountPath": SCRIPT, "readOnly": True},
        ],
    }
    return {
        "metadata": {**metadata, "annotations": {**metadata["annotations"], ENTRYPOINT: script}},
        "spec": {
            **spec,
            "containers": [main, *others],
            "volumes": [
                *spec["volumes"],
                {"name": "raysched-entrypoint", "downwardAPI": {"items": [source]}},
            ],
        },
    }


def _submitter(template: Manifest) -> Manifest:
    """The pod that submits the driver: of the job's image, where its own pods may be too."""
    spec = template["spec"]
    main = spec["containers"][0]
    kept = ("imagePullSecrets", "tolerations", "serviceAccountName", "schedulerName", "priorityClassName")
    return {
        "metadata": _with_role(template, "submitter"),
        "spec": {
            **{name: spec[name] for name in kept if name in spec},
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": main["name"],
                    "image": main["image"],
                    "command": ["python", "-c", as_is(SUBMIT)],
                    "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
                }
            ],
        },
    }
