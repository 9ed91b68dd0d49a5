"""The HTTP API of docs/api.md, as an application around a ledger."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response, Security
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer

from raysched import __version__
from raysched.actors.gateway import answers, node_answers
from raysched.actors.gateway.errors import RESPONSES, install_errors
from raysched.actors.gateway.guard import Guard
from raysched.core.jobs import JobState
from raysched.core.usage import By
from raysched.package import PackageStore

View = dict[str, Any]

PIECE = 1 << 18
"""Bytes of a log that are read at a time."""
LOOK_S = 0.2
"""Time between two looks for more output."""
LOCATE_S = 1.0
"""Longest time between two looks whether a job that prints nothing has ended."""
HEARTBEAT_S = 15.0
"""Time after which a stream of events without any carries an empty line, so that a dead peer is noticed."""


WEEK_S = 604_800.0
Since = Annotated[float, Query(gt=0, le=1e9, description="How many seconds back.")]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="A repetition with the same key does nothing more and gets the first answer.",
    ),
]


class Ledger(Protocol):
    """What the API needs of a running system. Each call raises the classes of raysched.errors."""

    async def submit(self, key: str, user: str, jobs: list[View]) -> list[View]:
        """Accept all jobs or none; a repeated key gets the first answer."""
        ...

    async def plan(self, user: str, jobs: list[View], script: bool) -> View:
        """What would happen to these jobs."""
        ...

    async def view(self, what: str, **args: Any) -> View:
        """One of the views: status, jobs, job, queue, hosts, gpus, sharing, explain."""
        ...

    async def usage(self, by: By, seconds: float) -> View:
        """What was granted and used in the last so many seconds."""
        ...

    async def advice(self, seconds: float) -> View:
        """Which jobs could take a smaller share, by the last so many seconds."""
        ...

    async def cancel(self, key: str, job: str, by: str) -> View:
        """End a job or an array; a repeated key ends the same ones."""
        ...

    async def cordon(self, key: str, node: str, on: bool, by: str) -> View:
        """Start nothing new on a node, or use it again, once under a key; its view."""
        ...

    async def drain(self, key: str, node: str, by: str, how: View) -> View:
        """Cordon a node and have what runs there leave, as far as it may now: the node, and who is left."""
        ...

    async def share(self, node: str, to: View, how: View) -> View:
        """Bring a node of a Kubernetes cluster one step further to sharing its GPUs so."""
        ...

    async def label(self, node: str, labels: dict[str, str | None]) -> View:
        """Give a node labels, or (null) take them away; all that it has then."""
        ...

    async def add_host(self, key: str, host: View) -> View:
        """Use a machine over SSH, once under a key; its view."""
        ...

    async def remove_host(self, key: str, name: str) -> View:
        """Use a machine no more once nobody holds anything there; the view of all."""
        ...

    async def check_host(self, name: str, accept_new: bool) -> View:
        """Connect to a host anew."""
        ...

    async def set_layout(self, key: str, user: str, gpu: str, profiles: list[str] | None, plan: bool) -> View:
        """Cut a GPU, or say what would be done for it."""
        ...

    async def latest(self) -> int:
        """The number of the last event so far."""
        ...

    async def events(self, after: int, job: str | None, timeout: float) -> list[View]:
        """The events after that number, at least one unless the time in seconds ends first."""
        ...

    async def locate(self, job: str, attempt: int | None, rank: int) -> View:
        """Which run's output is meant: `run`, `backend` (null before it started), `ended`."""
        ...

    async def logs(self, backend: str, run: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        ...


def build_app(ledger: Ledger, packages: PackageStore, token: str) -> FastAPI:
    """The application. Everything but the health check and the description of the API needs the token."""
    app = FastAPI(
        title="raysched",
        version=__version__,
        summary="Shares GPUs.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.add_middleware(Guard, token=token)
    install_errors(app)
    app.include_router(_health())
    bearer = Security(HTTPBearer(auto_error=False, description="The token of gateway.json."))
    parts = (_system, _nodes, _hosts, _streams, _jobs)
    for routes in (*(part(ledger) for part in parts), _packages(packages)):
        app.include_router(routes, prefix="/v1", dependencies=[bearer], responses=RESPONSES)
    return app


def _health() -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/health", response_model=answers.Health, summary="Whether the gateway answers")
    async def health() -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    return routes


# ------------------------------------------------------------ the system as a whole


def _system(ledger: Ledger) -> APIRouter:
    routes = APIRouter(tags=["system"])

    @routes.get("/status", response_model=answers.Status, summary="What runs")
    async def status() -> Response:
        return JSONResponse(await ledger.view("status"))

    @routes.get("/queue", response_model=answers.Queue, summary="What waits, and why")
    async def queue() -> Response:
        return JSONResponse(await ledger.view("queue"))

    @routes.get("/gpus", response_model=answers.GPUs, summary="Every GPU and who holds what of it")
    async def gpus() -> Response:
        return JSONResponse(await ledger.view("gpus"))

    @routes.get("/k8s/sharing", response_model=answers.ClusterSharing, summary="What shares a cluster's GPUs")
    async def sharing(cluster: str | None = None) -> Response:
        return JSONResponse(await ledger.view("sharing", cluster=cluster))

    @routes.get("/usage", response_model=answers.Usage, summary="What was granted and what was used of it")
    async def usage(by: By = "queue", since: Since = WEEK_S) -> Response:
        return JSONResponse(await ledger.usage(by, since))

    @routes.get("/advice", response_model=answers.Advices, summary="Which jobs could take a smaller share")
    async def advice(since: Since = WEEK_S) -> Response:
        return JSONResponse(await ledger.advice(since))

    @routes.post("/gpus/{gpu:path}/layout", response_model=answers.NewLayout, summary="Cut a GPU by MIG")
    async def layout(gpu: str, body: answers.WantedLayout, key: Key = None) -> Response:
        user = body.user or "the API"
        done = await ledger.set_layout(key or _new_key(), user, gpu, body.profiles, body.plan)
        return JSONResponse(done)

    return routes


def _nodes(ledger: Ledger) -> APIRouter:
    routes = APIRouter(tags=["nodes"])

    @routes.post("/nodes/{node}/cordon", response_model=answers.Node, summary="Start nothing new on a node")
    async def cordon(node: str, body: node_answers.Cordoning | None = None, key: Key = None) -> Response:
        on, by = (True, None) if body is None else (body.on, body.user)
        return JSONResponse(await ledger.cordon(key or _new_key(), node, on, by or "the API"))

    @routes.post("/nodes/{node}/drain", response_model=node_answers.Drained, summary="Have what runs leave")
    async def drain(node: str, body: node_answers.Draining | None = None, key: Key = None) -> Response:
        body = body or node_answers.Draining()
        how = body.model_dump(exclude={"user"})
        return JSONResponse(await ledger.drain(key or _new_key(), node, body.user or "the API", how))

    @routes.post("/k8s/nodes/{node}/sharing", response_model=node_answers.Resharing, summary="Share GPUs so")
    async def share(node: str, body: node_answers.WantedSharing) -> Response:
        to = body.model_dump(include={"kind", "replicas", "layout"})
        return JSONResponse(await ledger.share(node, to, body.model_dump(exclude=set(to))))

    @routes.post("/nodes/{node}/labels", response_model=node_answers.NodeLabels, summary="Label a node")
    async def label(node: str, body: node_answers.NewLabels) -> Response:
        return JSONResponse(await ledger.label(node, body.labels))

    return routes


def _hosts(ledger: Ledger) -> APIRouter:
    routes = APIRouter(tags=["hosts"])

    @routes.get("/hosts", response_model=answers.Hosts, summary="The machines that SSH reaches")
    async def hosts() -> Response:
        return JSONResponse(await ledger.view("hosts"))

    @routes.post("/hosts", response_model=answers.Host, summary="Use a machine over SSH")
    async def add(body: answers.NewHost, key: Key = None) -> Response:
        return JSONResponse(await ledger.add_host(key or _new_key(), body.host))

    @routes.post("/hosts/{host}/check", response_model=answers.HostCheck, summary="Connect to a host anew")
    async def check(host: str, body: answers.Checking | None = None) -> Response:
        return JSONResponse(await ledger.check_host(host, body is not None and body.accept_new))

    @routes.post("/hosts/{host}/remove", response_model=answers.Hosts, summary="Use a machine no more")
    async def remove(host: str, key: Key = None) -> Response:
        return JSONResponse(await ledger.remove_host(key or _new_key(), host))

    return routes


def _packages(packages: PackageStore) -> APIRouter:
    routes = APIRouter(tags=["packages"])

    @routes.head("/packages/{digest}", summary="Whether a packed working directory is there")
    async def has(digest: str) -> Response:
        there = await asyncio.to_thread(packages.has, digest)
        return Response(status_code=200 if there else 404)

    @routes.put(
        "/packages/{digest}",
        response_model=answers.Kept,
        status_code=201,
        summary="Upload a packed working directory",
        description="The body is the `.tar.gz`, the digest its SHA-256 in hex.",
    )
    async def put(digest: str, request: Request) -> Response:
        await _keep(packages, digest, request.stream())
        return JSONResponse({"digest": digest}, status_code=201)

    return routes


async def _keep(packages: PackageStore, digest: str, stream: AsyncIterator[bytes]) -> None:
    """Write a package in a thread while its bytes arrive."""
    loop = asyncio.get_running_loop()

    async def next_piece() -> bytes:
        return await anext(stream, b"")

    def pieces() -> Iterator[bytes]:
        while piece := asyncio.run_coroutine_threadsafe(next_piece(), loop).result():
            yield piece

    await asyncio.to_thread(packages.put, digest, pieces())


# ------------------------------------------------------------ jobs


def _jobs(ledger: Ledger) -> APIRouter:
    routes = APIRouter(tags=["jobs"])

    @routes.post("/jobs", response_model=answers.Jobs, summary="Submit jobs, all or none")
    async def submit(body: answers.Submission, key: Key = None) -> Response:
        return JSONResponse({"jobs": await ledger.submit(key or _new_key(), body.user, _specs(body))})

    @routes.post("/plan", response_model=answers.Plan, summary="What would happen to jobs; changes nothing")
    async def plan(body: answers.Planning) -> Response:
        return JSONResponse(await ledger.plan(body.user, _specs(body), body.script))

    @routes.get("/jobs", response_model=answers.Jobs, summary="All jobs that are remembered")
    async def jobs(state: JobState | None = None, group: str | None = None) -> Response:
        return JSONResponse(await ledger.view("jobs", state=state, group=group))

    @routes.post("/jobs/{job:path}/cancel", response_model=answers.Jobs, summary="End a job or an array")
    async def cancel(job: str, body: answers.Cancellation | None = None, key: Key = None) -> Response:
        by = body.user if body else None
        return JSONResponse(await ledger.cancel(key or _new_key(), job, by or "the API"))

    @routes.get("/jobs/{job:path}/explain", response_model=answers.Explanation, summary="Why a job waits")
    async def explain(job: str) -> Response:
        return JSONResponse(await ledger.view("explain", job=job))

    # The last one: the name of a job may hold slashes, so this path matches those above too.
    @routes.get("/jobs/{job:path}", response_model=answers.Jobs, summary="A job, or the elements of an array")
    async def job(job: str) -> Response:
        return JSONResponse(await ledger.view("job", job=job))

    return routes


def _new_key() -> str:
    return secrets.token_hex(16)


def _specs(body: answers.Submission) -> list[View]:
    return [job.model_dump() for job in body.jobs]


# ------------------------------------------------------------ streams


def _streams(ledger: Ledger) -> APIRouter:
    routes = APIRouter(tags=["jobs"])

    @routes.get(
        "/jobs/{job:path}/logs",
        response_class=StreamingResponse,
        summary="The output of a job as bytes",
        description="Of the last attempt unless one is named. `follow` goes on until that attempt has ended.",
    )
    async def logs(
        job: str,
        follow: bool = False,
        offset: Annotated[int, Query(ge=0)] = 0,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        rank: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        source = _Output(ledger, job, attempt, rank)
        await source.locate()
        return StreamingResponse(source.read(offset, follow), media_type="application/octet-stream")

    @routes.get(
        "/events",
        response_class=StreamingResponse,
        summary="What happens, one JSON object a line",
        description="From now on, or after number `after`. An empty line says that nothing happened.",
    )
    async def events(after: Annotated[int | None, Query(ge=0)] = None, job: str | None = None) -> Response:
        one = None if job is None else await _group_or_id(ledger, job)
        start = await ledger.latest() if after is None else after
        return StreamingResponse(_events(ledger, start, one), media_type="application/x-ndjson")

    return routes


class _Output:
    """The output of one run. Which run is fixed once the job has started: an offset counts in its bytes."""

    def __init__(self, ledger: Ledger, job: str, attempt: int | None, rank: int) -> None:
        self._ledger = ledger
        self._job = job
        self._attempt = attempt
        self._rank = rank
        self._where: View = {}

    async def locate(self) -> None:
        """Look where the output is, and whether it may still grow. Raises NotFound for an unknown job."""
        self._where = await self._ledger.locate(self._job, self._attempt, self._rank)
        if self._where["backend"] is not None:
            self._attempt = int(self._where["run"].rsplit(".", 2)[1])

    async def read(self, offset: int, follow: bool) -> AsyncIterator[bytes]:
        """The bytes from `offset`; with `follow` on until the run has ended."""
        looked = time.monotonic()
        while True:
            # Asked before the read, so that what was written until the end is read.
            over = self._where["ended"] or not follow
            while piece := await self._piece(offset):
                offset += len(piece)
                yield piece
            if over:
                return
            await asyncio.sleep(LOOK_S)
            if time.monotonic() - looked >= LOCATE_S or self._where["backend"] is None:
                looked = time.monotonic()
                await self.locate()

    async def _piece(self, offset: int) -> bytes:
        if self._where["backend"] is None:
            return b""
        return await self._ledger.logs(self._where["backend"], self._where["run"], offset, PIECE)


async def _group_or_id(ledger: Ledger, job: str) -> str:
    """The id of a job, or of an array. Raises NotFound."""
    found = (await ledger.view("job", job=job))["jobs"]
    return found[0]["id"] if len(found) == 1 else found[0]["group"]


async def _events(ledger: Ledger, after: int, job: str | None) -> AsyncIterator[str]:
    while True:
        found = await ledger.events(after, job, HEARTBEAT_S)
        yield "".join(f"{json.dumps(event)}\n" for event in found) or "\n"
        after = max([after, *(event["seq"] for event in found)])
