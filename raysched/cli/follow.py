"""Following jobs to their end: their output to stdout, what happens to them to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from raysched.cli.job_list import ENDED, by_state, where
from raysched.cli.output import note
from raysched.cli.progress import Notes, progress
from raysched.cli.words import clean, count, duration
from raysched.client import Client, Json
from raysched.rank_logs import Line, logs_of_ranks

TICK = 2.0
"""Seconds after which the jobs are looked at even if no event came."""
BETWEEN_LOOKS = 0.25
"""Shortest time in seconds between two looks at several jobs."""
AGE = {"waiting": 0, "starting": 1, "running": 2, "stopping": 3, "succeeded": 4, "failed": 4, "cancelled": 4}
CANCELLED = 143


def exit_code(job: Json) -> int:
    """What a command that followed the job exits with: the job's own code, 143 (as after SIGTERM) for one
    that was cancelled, and 1 for one that failed without a code."""
    if job["state"] == "succeeded":
        return 0
    if job["state"] == "cancelled":
        return CANCELLED
    return job["exit_code"] or 1


def follow(client: Client, jobs: Sequence[Json], output: bool = True) -> list[Json]:
    """Wait for the end of all jobs and return them as they ended. One job's output goes to stdout byte for
    byte, as it comes, or line by line with the ranks in front where it runs on several nodes; with several
    jobs, each one's is printed when it ends, its lines marked with the job's name. `output` false prints
    none. Ctrl-C ends the watching only, and says how to come back."""
    try:
        if len(jobs) == 1:
            return [_follow_one(client, jobs[0], output)]
        return _follow_many(client, jobs, output)
    except KeyboardInterrupt:
        note(_how_to_come_back(jobs))
        raise


def write_all(
    client: Client, job: Json, *, marked: bool = False, follow: bool = False, attempt: int | None = None
) -> None:
    """Print the output of a job: byte for byte, or `marked` with its name. Of one that runs on several nodes
    each line is marked with its rank."""
    if job["outputs"] > 1:
        ranks = range(job["outputs"])
        _write_ranks(
            logs_of_ranks(client, job["id"], ranks, follow=follow, attempt=attempt), job if marked else None
        )
    else:
        write_output(client.logs(job["id"], follow=follow, attempt=attempt), job if marked else None)


def _write_ranks(lines: Iterator[Line], marked_as: Json | None) -> None:
    name = f"{clean(marked_as['display'])} " if marked_as else ""
    for rank, line in lines:
        end = b"" if line.endswith((b"\n", b"\r")) else b"\n"
        sys.stdout.buffer.write(f"{name}rank {rank} | ".encode() + line + end)
        sys.stdout.buffer.flush()


def write_output(pieces: Iterator[bytes], marked_as: Json | None) -> None:
    """Print a job's output as it comes; with a job its name begins each line."""
    if marked_as is not None:
        pieces = _marked(pieces, f"{clean(marked_as['display'])} | ".encode())
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _marked(pieces: Iterator[bytes], start: bytes) -> Iterator[bytes]:
    within = False
    for piece in pieces:
        for line in piece.splitlines(keepends=True):
            yield line if within else start + line
            within = not line.endswith((b"\n", b"\r"))
    if within:
        yield b"\n"


def _follow_one(client: Client, job: Json, output: bool) -> Json:
    """Show each attempt in its turn, also one that was over before it was looked at."""
    shown = 0
    while True:
        now = _next_attempt(client, job, shown)
        if now["attempt"] == shown:
            note(_ending(now))
            return now
        shown += 1
        if now["started"] and now["attempt"] == shown:
            note(f"{clean(now['display'])} running on {where(now['lease']['places'])}")
        if output:
            write_all(client, now, follow=True, attempt=shown)


def _next_attempt(client: Client, job: Json, shown: int) -> Json:
    """Wait, telling what happens, until the attempt after the one shown has begun, or the job has ended."""
    notes = Notes()
    again = f"attempt {shown} did not succeed; it starts again" if shown else ""
    for (now,) in _looks(client, [job]):
        name = clean(now["display"])
        new, waits = now["attempt"] > shown, now["state"] == "waiting"
        if again and (new or waits):
            notes.tell(f"{name} {again}")
            again = ""
        if now["state"] in ENDED or now["attempt"] > shown + 1 or (new and now["started"] and not waits):
            return now
        if waits:
            notes.progress(f"{name} waits: {clean(client.explain(job['id'])['why'])}")
        elif new and now["lease"]:
            notes.tell(f"{name} starting on {where(now['lease']['places'])}")
    raise AssertionError("looks do not end")


def _follow_many(client: Client, jobs: Sequence[Json], output: bool) -> list[Json]:
    shown = progress()
    now = jobs
    printed: set[str] = set()
    try:
        for now in _looks(client, jobs):
            ended = [job for job in now if job["state"] in ENDED]
            fresh = [job for job in ended if output and job["id"] not in printed]
            for job in fresh:
                shown.clear()
                write_all(client, job, marked=True)
            printed |= {job["id"] for job in fresh}
            if len(ended) == len(now):
                break
            shown.show(now)
    finally:
        shown.clear()
    note(f"{count(len(now), 'job')}: {by_state(now)}")
    return list(now)


def _looks(client: Client, jobs: Sequence[Json]) -> Iterator[list[Json]]:
    """The jobs as they are now, and again whenever something happened to them."""
    alone = jobs[0]["id"] if len(jobs) == 1 else None
    watch = _Watch(client, jobs)
    yield watch.look()
    # The past events of one job are few and asked for too: none is missed between the look and the stream.
    for event in client.events(job=alone, after=0 if alone else None, tick=TICK):
        if event is None or watch.is_news(event):
            watch.rest()
            yield watch.look()


class _Watch:
    """The jobs that are followed, as they were at the last look."""

    def __init__(self, client: Client, jobs: Sequence[Json]) -> None:
        self._client = client
        self._ids = {job["id"] for job in jobs}
        self._groups = list(dict.fromkeys(job["group"] for job in jobs))
        self._ages: dict[str, int] = {}
        self._next = 0.0

    def look(self) -> list[Json]:
        """Ask for all of them."""
        began = time.monotonic()
        jobs = self._ask()
        self._ages = {job["id"]: AGE[job["state"]] for job in jobs}
        now = time.monotonic()
        self._next = now if len(self._ids) == 1 else now + max(BETWEEN_LOOKS, 4 * (now - began))
        return jobs

    def is_news(self, event: Json) -> bool:
        """Whether the event is about one of them and further on in its life than what is known."""
        known = self._ages.get(event["job"])
        return known is not None and AGE.get(event["state"], 0) > known

    def rest(self) -> None:
        """Wait a little before the next look at many jobs: longer the more work one is."""
        time.sleep(max(0, self._next - time.monotonic()))

    def _ask(self) -> list[Json]:
        if len(self._ids) == 1:
            return self._client.job(*self._ids)
        listed = [job for group in self._groups for job in self._client.jobs(group=group)]
        return [job for job in listed if job["id"] in self._ids]


def _how_to_come_back(jobs: Sequence[Json]) -> str:
    goes_on = "the job goes on" if len(jobs) == 1 else "the jobs go on"
    name = jobs[0]["id"] if len(jobs) == 1 else jobs[0]["group"]
    return f"{goes_on}; come back with `raysched logs -f {name}`, end with `raysched cancel {name}`"


def _ending(job: Json) -> str:
    after = f" after {duration(job['run_s'], parts=2)}" if job["started"] else ""
    reason = f": {clean(job['reason'])}" if job["reason"] and job["state"] != "succeeded" else ""
    return f"{clean(job['display'])} {job['state']}{after}{reason}"
