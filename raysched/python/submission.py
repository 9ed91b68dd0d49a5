"""`raysched.submit`: jobs from Python, with the fields of a job file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysched.client import Client, submit_file, submit_specs
from raysched.errors import SpecError
from raysched.specs.job import check_job

POLL_S = 0.5
"""Time between two looks at a job that is waited for, where no event comes."""

ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job, or one element of an array. `info` is the Job of docs/api.md."""

    id: str
    name: str
    client: Client

    def info(self) -> dict[str, Any]:
        """All that is known of the job now."""
        return self.client.job(self.id)[0]

    @property
    def state(self) -> str:
        """waiting, starting, running, stopping, succeeded, failed or cancelled."""
        return self.info()["state"]

    def wait(self, timeout: float | None = None) -> str:
        """Wait for the job's end and return the state that it ended in. Raises TimeoutError after `timeout`
        seconds; the job goes on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (state := self.state) not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} ({self.id}) is {state} after {timeout:g} s")
            time.sleep(POLL_S)
        return state

    def logs(self, follow: bool = False, rank: int | None = None) -> Iterator[bytes]:
        """The output, piece by piece; with `follow` until the job ends. Of a job on several nodes it is that
        of rank 0, or of `rank`."""
        return self.client.logs(self.id, follow=follow, rank=rank)

    def cancel(self) -> None:
        """End the job; silent for one that has ended."""
        self.client.cancel(self.id)


def submit(job: str | os.PathLike[str] | Mapping[str, Any] | None = None, /, **fields: Any) -> list[Job]:
    """Submit the jobs of a file, or one job given as a dictionary or as keyword arguments with the same
    fields, and return them: the elements of an array each, in order.

    `working_dir` is relative to the file's folder, else to the current one. Raises SpecError, FileMissing,
    Refused, Unreachable and Unauthorized.
    """
    client = Client.from_environment()
    if isinstance(job, (str, os.PathLike)):
        if fields:
            raise SpecError("submit takes a file, or fields, not both")
        found = submit_file(client, Path(job))
    else:
        found = submit_specs(client, [check_job({**(job or {}), **fields})], Path.cwd())
    return [Job(each["id"], each["display"], client) for each in found]
