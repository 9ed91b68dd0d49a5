"""Records what a real Slurm answers, for tests/backends/on_slurm/answers: `python tests/slurm_answers.py`.

Slurm from 23.11 on can print in the formats of earlier versions (`--json=v0.0.44`), by the very code that
those had. So each of these is asked for, as far as the Slurm of this machine knows it; 24.11.5 (Debian 13)
was asked for those of 23.11 to 24.11, and 26.05.5 (Debian's testing) for the later ones. What raysched reads
nothing of is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from running import wait_until
from slurm_site import SlurmSite

ANSWERS = Path(__file__).parent / "backends" / "on_slurm" / "answers"
FORMATS = {
    "23.11": "v0.0.40",
    "24.05": "v0.0.41",
    "24.11": "v0.0.42",
    "25.05": "v0.0.43",
    "25.11": "v0.0.44",
    "26.05": "v0.0.45",
}
"""The newest format of each version."""
OF_A_JOB = (
    *("job_id", "array_job_id", "array_task_id", "array_task_string", "name", "comment", "job_state"),
    *("state_reason", "user_name", "nodes", "gres_detail", "cpus", "memory_per_node", "memory_per_cpu"),
    *("start_time", "end_time"),
)
OF_A_NODE = (
    *("name", "state", "state_flags", "reason", "cpus", "real_memory", "gres", "gres_used", "partitions"),
)
JOBS = (
    ("whole", "--nodelist=n1", "--gres=gpu:a100:1", "--comment=raysched é", "sleep 600"),
    ("part", "--nodelist=n2", "--gres=shard:a100:3", "--array=0-9%2", "sleep 600"),
    ("slice", "--gres=gpu:3g.40gb:1", "--mem=1024", "sleep 600"),
    ("two", "--nodes=2", "--ntasks-per-node=1", "--mem=1024", "sleep 600"),
    ("later", "--begin=now+1hour", "true"),
    ("failed", "--nodelist=n1", "exit 7"),
    ("cancelled", "--begin=now+1hour", "true"),
)


def made(site: SlurmSite) -> None:
    """Have jobs of every kind, and a node that starts nothing."""
    ids = {}
    for name, *options, command in JOBS:
        line = ["sbatch", "--parsable", "--output=/dev/null", f"--job-name={name}", *options]
        ids[name] = site.run(*line, f"--wrap={command}").strip()
    site.run("scancel", ids["cancelled"])
    done = {"whole RUNNING", "two RUNNING", "slice RUNNING", "failed FAILED", "cancelled CANCELLED"}
    wait_until(lambda: done <= set(site.jobs("%j %T")), "all are as they should be", 60)
    wait_until(lambda: site.jobs("%j %T").count("part RUNNING") == 2, "parts are in use", 60)
    site.run("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=fans broken")


def record(site: SlurmSite) -> None:
    """Write what it answers in every format that it knows."""
    known = site.run("squeue", "--json=list", check=False)
    for version, form in FORMATS.items():
        if form not in known:
            continue
        jobs = json.loads(site.run("squeue", "--states=all", "--me", f"--json={form}"))
        nodes = json.loads(site.run("scontrol", "show", "nodes", f"--json={form}"))
        told = {"jobs": (jobs, OF_A_JOB), "nodes": (nodes, OF_A_NODE)}
        for what, (answer, fields) in told.items():
            kept = {what: [_only(each, fields) for each in answer[what]], "meta": answer["meta"]["slurm"]}
            path = ANSWERS / f"{what}-{version}.json"
            path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            print(path)


def _only(record: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: record[field] for field in fields if field in record}


def main() -> None:
    """See the top."""
    site = SlurmSite()
    try:
        made(site)
        record(site)
    finally:
        site.close()


if __name__ == "__main__":
    main()
