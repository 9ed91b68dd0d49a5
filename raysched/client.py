"""Speaks to a running raysched from Python or the command line: HTTP, standard library only.

    client = Client.from_environment()
    (job,) = submit_file(client, Path("job.yaml"))
    for piece in client.logs(job["id"], follow=True): ...

Answers are the JSON objects of docs/api.md. Every call is repeated while a gateway that was just there does
not answer, and raises a class of raysched.errors otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from raysched.discovery import find_access
from raysched.errors import NotFound
from raysched.transport import PATIENCE, Ask, Query, StreamIdle, StreamLost, Transport

if TYPE_CHECKING:
    from raysched.specs.job import JobSpec

Json = dict[str, Any]

IDLE = 60.0
"""Seconds without a byte after which a stream is opened anew, in case the other side is gone."""


def _tell(message: str) -> None:
    print(f"raysched: {message}", file=sys.stderr, flush=True)


class Client:
    """One gateway. `patience` is for how many seconds a gateway that does not answer is tried again, and
    `notice` is called with one sentence when that takes long."""

    def __init__(
        self,
        address: str,
        token: str,
        *,
        patience: float = PATIENCE,
        notice: Callable[[str], None] = _tell,
    ) -> None:
        self._notice = notice
        self._transport = Transport(address, token, patience, notice)

    @classmethod
    def from_environment(cls, notice: Callable[[str], None] = _tell) -> Client:
        """The client of the system that this process is meant to use (see `discovery.find_access`)."""
        access = find_access()
        return cls(access.address, access.token, patience=PATIENCE if access.expected else 0, notice=notice)

    @property
    def address(self) -> str:
        """The gateway's URL."""
        return self._transport.address

    def status(self) -> Json:
        """What runs: version, since when, simulated or not, counts."""
        return self._get("/v1/status")

    def jobs(self, *, state: str | None = None, group: str | None = None) -> list[Json]:
        """All jobs that the ledger remembers, the newest last."""
        return self._get("/v1/jobs", {"state": state, "group": group})["jobs"]

    def job(self, job: str) -> list[Json]:
        """The job with that id, name or `name[3]`; all elements for an array. Raises NotFound."""
        return self._get(_of(job))["jobs"]

    def cancel(self, job: str) -> list[Json]:
        """End a job or all elements of an array; one that has ended stays as it is. Raises NotFound."""
        return self._command(_of(job, "cancel"), {"user": user()})["jobs"]

    def explain(self, job: str) -> Json:
        """Why a job waits, what it is short of, and what would start it."""
        return self._get(_of(job, "explain"))

    def queue(self) -> list[Json]:
        """What waits, in the order in which it is looked at."""
        return self._get("/v1/queue")["waiting"]

    def gpus(self) -> Json:
        """Nodes, their GPUs and the tenants of each."""
        return self._get("/v1/gpus")

    def sharing(self, cluster: str | None = None) -> Json:
        """What shares the GPUs of a Kubernetes cluster, and what requests would become; where there are
        several it has to be named. Raises NotFound."""
        return self._get("/v1/k8s/sharing", {"cluster": cluster} if cluster else None)

    def usage(self, by: str = "queue", since: float = 604_800) -> Json:
        """What was granted and used in the last `since` seconds, by queue, user, job or gpu."""
        return self._get("/v1/usage", {"by": by, "since": str(since)})

    def advice(self, since: float = 604_800) -> Json:
        """Which jobs could take a smaller share, by what was measured in the last `since` seconds."""
        return self._get("/v1/advice", {"since": str(since)})

    def cordon(self, node: str, *, on: bool = True) -> Json:
        """Start nothing new on a node, or use it again; the node. Raises NotFound and Refused."""
        return self._command(_node(node, "cordon"), {"on": on, "user": user()})

    def drain(
        self, node: str, *, force: bool = False, delete_emptydir_data: bool = False, plan: bool = False
    ) -> Json:
        """Cordon a node and have what runs there leave, as far as it may now: the `node`, and who is `left`.
        With `plan` nothing is changed. Raises NotFound and Refused."""
        how = {"force": force, "delete_emptydir_data": delete_emptydir_data, "plan": plan}
        return self._command(_node(node, "drain"), {**how, "user": user()})

    def share(self, node: str, to: Json, **how: bool) -> Json:
        """Bring a node of a Kubernetes cluster one step further to sharing its GPUs so: `to` has `kind`, and
        `replicas` or `layout`; `how` is `drain`, `force`, `delete_emptydir_data` and `plan`. Asked again
        until its `state` is done. Raises NotFound and Refused."""
        return self._post(f"/v1/k8s/nodes/{quote(node, safe='')}/sharing", {**to, **how})

    def label(self, node: str, labels: Mapping[str, str | None]) -> dict[str, str]:
        """Give a node of a Kubernetes cluster labels, or (None) take them away; all that it has then. Raises
        NotFound and Refused."""
        return self._command(_node(node, "labels"), {"labels": dict(labels)})["labels"]

    def hosts(self) -> list[Json]:
        """The machines that SSH reaches."""
        return self._get("/v1/hosts")["hosts"]

    def add_host(self, host: Json) -> Json:
        """Use a machine over SSH, with the fields of the configuration's `backends.vm.hosts`; its view."""
        return self._command("/v1/hosts", {"host": host})

    def check_host(self, name: str, *, accept_new: bool = False) -> Json:
        """Connect to a host anew: `ok`, and the `reason` why not. Raises NotFound."""
        return self._post(f"/v1/hosts/{quote(name, safe='')}/check", {"accept_new": accept_new})

    def remove_host(self, name: str) -> list[Json]:
        """Use a machine no more, once nobody holds anything there; all hosts that are left."""
        return self._command(f"/v1/hosts/{quote(name, safe='')}/remove", {})["hosts"]

    def set_layout(self, gpu: str, profiles: Sequence[str] | None, *, plan: bool = False) -> Json:
        """Cut a GPU, named by NODE/INDEX or the beginning of its UUID, so that it has exactly these MIG
        instances, or (None) no MIG mode; what is done for it, and the job that does it. With `plan` nothing
        is changed. Raises NotFound, Refused and Conflict."""
        names = None if profiles is None else list(profiles)
        body = {"profiles": names, "plan": plan, "user": user()}
        return self._command(f"/v1/gpus/{quote(gpu, safe='')}/layout", body)

    def plan(self, specs: Sequence[Json], *, script: bool = False) -> list[Json]:
        """Where each job would run and why; with `script` also what would be sent to a site. Nothing is
        changed."""
        jobs = [{"spec": spec, "package": None} for spec in specs]
        body = {"jobs": jobs, "user": user(), "script": script}
        return self._post("/v1/plan", body)["jobs"]

    def submit(
        self, specs: Sequence[Json], packages: Sequence[str | None], key: str | None = None
    ) -> list[Json]:
        """Submit all jobs or none. `packages` has the digest of each one's uploaded working directory. A
        `key` that was used before gives the answer of the first time; without one each call is new."""
        jobs = [{"spec": spec, "package": digest} for spec, digest in zip(specs, packages, strict=True)]
        return self._command("/v1/jobs", {"jobs": jobs, "user": user()}, key)["jobs"]

    def upload(self, digest: str, archive: Path) -> None:
        """Bring a packed working directory to the gateway, unless it is there already."""
        path = f"/v1/packages/{digest}"
        there = self._transport.request(Ask("HEAD", path))
        if there.status < 300:
            return
        if there.status != 404:
            raise self._transport.error(there)
        answer = self._transport.request(Ask("PUT", path, body=archive))
        if answer.status >= 300:
            raise self._transport.error(answer)

    def logs(
        self,
        job: str,
        *,
        follow: bool = False,
        offset: int = 0,
        attempt: int | None = None,
        rank: int | None = None,
    ) -> Iterator[bytes]:
        """A job's output from byte `offset`, as it comes. `follow` goes on until the job ends, also over a
        restart of the gateway: no byte is lost or repeated."""

        def from_here() -> Iterator[bytes]:
            query = {"follow": "true" if follow else None, "offset": offset, "attempt": attempt, "rank": rank}
            return self._transport.stream(_of(job, "logs"), query, IDLE)

        for piece in self._resumed(from_here):
            if piece:
                offset += len(piece)
                yield piece

    def events(
        self, *, job: str | None = None, after: int | None = None, tick: float = IDLE
    ) -> Iterator[Json | None]:
        """What happens, as it happens and without an end; those after number `after` first. None comes
        whenever `tick` seconds went by without an event."""
        rest = b""

        def from_here() -> Iterator[bytes]:
            return self._transport.stream("/v1/events", {"job": job, "after": after}, tick)

        for piece in self._resumed(from_here, endless=True):
            if not piece:
                rest = b""
                yield None
                continue
            *lines, rest = (rest + piece).split(b"\n")
            for line in filter(None, map(bytes.strip, lines)):
                event = json.loads(line)
                after = event["seq"]
                yield event

    def _get(self, path: str, query: Query | None = None) -> Json:
        return self._transport.call(Ask("GET", path, query or {}))

    def _command(self, path: str, body: Json, key: str | None = None) -> Json:
        """What changes something. The transport repeats it where the answer was lost, and by its key the
        ledger knows that it did it already."""
        import secrets

        return self._post(path, body, {"Idempotency-Key": key or secrets.token_hex(16)})

    def _post(self, path: str, body: Json, headers: dict[str, str] | None = None) -> Json:
        kind = {"Content-Type": "application/json"} | (headers or {})
        return self._transport.call(Ask("POST", path, body=json.dumps(body).encode(), headers=kind))

    def _resumed(self, from_here: Callable[[], Iterator[bytes]], endless: bool = False) -> Iterator[bytes]:
        """The pieces of a stream that is opened again where it broke, within the client's patience. An empty
        piece marks each new start."""
        good, told = time.monotonic(), False
        while True:
            try:
                for piece in from_here():
                    good, told = time.monotonic(), False
                    yield piece
                if not endless:
                    return
            except StreamIdle:
                good = time.monotonic()
            except StreamLost:
                if not told:
                    told = True
                    self._notice("the connection broke; taking it up again")
            if time.monotonic() - good > self._transport.patience:
                raise self._transport.lost("the connection breaks again and again")
            time.sleep(0.2)
            yield b""


def user() -> str:
    """Who submits: the login name, or the number where there is no name."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def submit_file(client: Client, path: Path, text: bytes | None = None) -> list[Json]:
    """Submit the jobs of a file (or `text`, read in its place), all or none, with their working directories,
    which are relative to the file's folder. Raises SpecError, FileMissing and what the client does."""
    from raysched.specs.job import load_jobs

    return submit_specs(client, load_jobs(path, text), path.absolute().parent)


def submit_specs(client: Client, specs: Sequence[JobSpec], base: Path) -> list[Json]:
    """Submit checked jobs, all or none, with their working directories, which are relative to `base`."""
    packages = _upload_all(client, specs, base)
    bodies = [spec.as_json() for spec in specs]
    return client.submit(bodies, packages, _key_in_ray_job(bodies, packages))


def check_folders(specs: Sequence[JobSpec], base: Path) -> None:
    """Raise what submitting the jobs would raise for a working directory that can't be packed."""
    from raysched.package import check

    for folder in {spec.working_dir for spec in specs if spec.working_dir is not None}:
        check(base / folder)


def _upload_all(client: Client, specs: Sequence[JobSpec], base: Path) -> list[str | None]:
    """Pack each different working directory once, upload it, and give each job's digest."""
    import tempfile

    from raysched.package import pack

    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="raysched-") as scratch:
        for folder in {spec.working_dir for spec in specs if spec.working_dir is not None}:
            archive = Path(scratch) / "package.tar.gz"
            digests[folder] = pack(base / folder, archive)
            client.upload(digests[folder], archive)
    return [None if spec.working_dir is None else digests[spec.working_dir] for spec in specs]


def _key_in_ray_job(specs: Sequence[Json], packages: Sequence[str | None]) -> str | None:
    """Inside a `ray job submit` job the key of a submission follows from Ray's submission id and what is
    submitted, so that Ray running the entrypoint once more submits nothing twice."""
    try:
        config = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        submission = config["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return None
    import hashlib

    content = json.dumps([submission, specs, packages], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _node(name: str, what: str) -> str:
    return f"/v1/nodes/{quote(name, safe='')}/{what}"


def _of(job: str, what: str | None = None) -> str:
    if not job:
        raise NotFound("no job has an empty name: `raysched status` lists those that are known")
    path = f"/v1/jobs/{quote(os.fsencode(job), safe='')}"
    return path if what is None else f"{path}/{what}"
