"""The record of a run: a small ConfigMap that says what became of it, whatever happens to its Job.

job    the uid of its Job, once that was made: where it is missing after that, somebody deleted it
stop   there once the run is to end
due    how it will have ended once nothing of it goes on: its Job is being deleted for that
end    how it ended, as JSON; after that nothing changes any more
files  the digest of its packed working directory
ray    there where its Job is a RayJob
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from raysched.backends.kube.moments import moment
from raysched.backends.kube.names import NAME, labels, name_of
from raysched.core.work import Run, Seen

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """What a record says. `created` is when it was made, in ms since 1970 by the cluster's clock."""

    run: Run
    name: str
    created: int
    job: str = ""
    stop: bool = False
    due: Seen | None = None
    end: Seen | None = None
    files: str = ""
    ray: bool = False


def new_record(run: Run, namespace: str, system: str, **data: str) -> Object:
    """The object of a run's first record."""
    name = name_of(run, system)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels(system, "record", name),
            "annotations": {NAME: str(run)},
        },
        "data": {key: value for key, value in data.items() if value},
    }


def read(told: Object) -> Record | None:
    """The record in an object; None for what is none of ours."""
    metadata, data = told["metadata"], told.get("data") or {}
    try:
        run = Run.parse(metadata["annotations"][NAME])
        due, end = (read_end(run, data[key]) if key in data else None for key in ("due", "end"))
    except (KeyError, ValueError, TypeError):
        return None
    return Record(
        run=run,
        name=metadata["name"],
        created=moment(metadata["creationTimestamp"]) or 0,
        job=data.get("job", ""),
        stop="stop" in data,
        due=due,
        end=end,
        files=data.get("files", ""),
        ray="ray" in data,
    )


def end_text(seen: Seen) -> str:
    """How a run ended, as its record has it."""
    fields = asdict(seen)
    del fields["run"]
    return json.dumps(fields)


def read_end(run: Run, text: str) -> Seen:
    """What `end_text` wrote. Raises ValueError, TypeError or KeyError on anything else."""
    fields: Any = json.loads(text)
    return Seen(run, **fields)
