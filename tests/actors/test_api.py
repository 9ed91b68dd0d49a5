"""The HTTP API around a ledger of the test's own: the token, sizes, errors, streams."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from raysched import errors
from raysched.actors.gateway import guard
from raysched.actors.gateway.api import build_app
from raysched.package import PackageStore

TOKEN = "the-token"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
JOB = {"spec": {"entrypoint": "true"}}
BODY = {"jobs": [JOB], "user": "ana"}


class ScriptedLedger:
    """Notes each call, and answers with what the test put into `answers` by the method's name."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}
        self.keys: list[str] = []

    async def _answer(self, method: str, *args: Any) -> Any:
        self.calls.append((method, *args))
        answer = self.answers.get(method, {})
        if isinstance(answer, list) and method in ("locate", "logs"):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit(self, key: str, user: str, jobs: list[Any]) -> Any:
        return await self._answer("submit", key, user, jobs)

    async def plan(self, user: str, jobs: list[Any], script: bool) -> Any:
        return await self._answer("plan", user, jobs, script)

    async def view(self, what: str, **args: Any) -> Any:
        return await self._answer("view", what, args)

    async def cancel(self, key: str, job: str, by: str) -> Any:
        self.keys.append(key)
        return await self._answer("cancel", job, by)

    async def set_layout(self, key: str, user: str, gpu: str, profiles: list[str] | None, plan: bool) -> Any:
        return await self._answer("set_layout", user, gpu, profiles, plan)

    async def cordon(self, key: str, node: str, on: bool, by: str) -> Any:
        self.keys.append(key)
        return await self._answer("cordon", node, on, by)

    async def drain(self, key: str, node: str, by: str, how: Any) -> Any:
        self.keys.append(key)
        return await self._answer("drain", node, by, how)

    async def share(self, node: str, to: Any, how: Any) -> Any:
        return await self._answer("share", node, to, how)

    async def label(self, node: str, labels: Any) -> Any:
        return await self._answer("label", node, labels)

    async def add_host(self, key: str, host: Any) -> Any:
        self.keys.append(key)
        return await self._answer("add_host", host)

    async def remove_host(self, key: str, name: str) -> Any:
        self.keys.append(key)
        return await self._answer("remove_host", name)

    async def check_host(self, name: str, accept_new: bool) -> Any:
        return await self._answer("check_host", name, accept_new)

    async def latest(self) -> int:
        return await self._answer("latest")

    async def events(self, after: int, job: str | None, timeout: float) -> Any:
        return await self._answer("events", after, job)

    async def locate(self, job: str, attempt: int | None, rank: int) -> Any:
        return await self._answer("locate", job, attempt, rank)

    async def logs(self, backend: str, run: str, offset: int, limit: int) -> Any:
        return await self._answer("logs", backend, run, offset)


@pytest.fixture
def ledger() -> ScriptedLedger:
    return ScriptedLedger()


@pytest.fixture
def app(ledger: ScriptedLedger, tmp_path: Path) -> FastAPI:
    return build_app(ledger, PackageStore(tmp_path / "packages"), TOKEN)


@pytest.fixture
def ask(app: FastAPI) -> Callable[..., httpx2.Response]:
    """Make one request, with the token unless other headers are given."""

    async def request(method: str, path: str, **options: Any) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
            options.setdefault("headers", WITH_TOKEN)
            return await client.request(method, path, **options)

    return lambda *args, **options: asyncio.run(request(*args, **options))


Ask = Callable[..., httpx2.Response]


def error(answer: httpx2.Response) -> dict[str, str]:
    """The error of an answer, which has nothing else in it."""
    body = answer.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message"]
    return body["error"]


# ------------------------------------------------------------ the token


def test_every_call_but_the_health_check_needs_the_token(
    app: FastAPI, ask: Ask, ledger: ScriptedLedger
) -> None:
    paths = app.openapi()["paths"]
    calls = [(method, path) for path, methods in paths.items() for method in methods]
    assert len(calls) == 26
    for method, path in calls:
        if path == "/v1/health":
            continue
        where = (
            path.replace("{node}", "a")
            .replace("{host}", "h")
            .replace("{gpu}", "a")
            .replace("{job}", "one")
            .replace("{digest}", "0" * 64)
        )
        for headers, status in (
            ({}, 401),
            ({"Authorization": TOKEN}, 401),
            ({"Authorization": "Basic dXNlcg=="}, 401),
            ({"Authorization": "Bearer wrong"}, 403),
            ({"Authorization": "Bearer wröng".encode()}, 403),
        ):
            answer = ask(method, where, headers=headers)
            assert answer.status_code == status, (method, path, headers)
            if method != "head":
                assert error(answer)["code"] == "unauthorized"
    assert ledger.calls == []


def test_hosts_are_added_checked_and_removed(ask: Ask, ledger: ScriptedLedger) -> None:
    headers = WITH_TOKEN | {"Idempotency-Key": "k"}
    ask("get", "/v1/hosts", headers=headers)
    ask("post", "/v1/hosts", headers=headers, json={"host": {"name": "a"}})
    ask("post", "/v1/hosts/a/check", headers=headers)
    ask("post", "/v1/hosts/a/check", headers=headers, json={"accept_new": True})
    ask("post", "/v1/hosts/a/remove", headers=headers)
    assert ledger.calls == [
        ("view", "hosts", {}),
        ("add_host", {"name": "a"}),
        ("check_host", "a", False),
        ("check_host", "a", True),
        ("remove_host", "a"),
    ]
    assert ledger.keys == ["k", "k"]


def test_the_health_check_and_the_description_need_no_token(ask: Ask) -> None:
    assert ask("GET", "/v1/health", headers={}).json()["status"] == "ok"
    assert ask("GET", "/openapi.json", headers={}).json()["info"]["title"] == "raysched"
    assert ask("GET", "/docs", headers={}).status_code == 200


def test_paths_that_are_not_there_say_so_only_with_the_token(ask: Ask) -> None:
    assert ask("GET", "/v1/nothing", headers={}).status_code == 401
    answer = ask("GET", "/v1/nothing")
    assert answer.status_code == 404
    assert error(answer)["code"] == "not_found"
    assert ask("DELETE", "/v1/jobs").status_code == 405


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (errors.SpecError("gpus: no"), 422, "spec_error"),
        (errors.NotFound("no job one"), 404, "not_found"),
        (errors.Refused("no node has 9 GPUs"), 409, "refused"),
        (errors.Conflict("two jobs have that name"), 409, "conflict"),
        (errors.StorageError("the disk is full"), 507, "storage_error"),
        (errors.Unreachable("the ledger does not answer"), 503, "unreachable"),
    ],
)
def test_an_error_of_the_ledger_arrives_with_its_code(
    ask: Ask, ledger: ScriptedLedger, raised: Exception, status: int, code: str
) -> None:
    ledger.answers["submit"] = raised
    answer = ask("POST", "/v1/jobs", json=BODY)
    assert answer.status_code == status
    assert error(answer) == {"code": code, "message": str(raised)}


def test_a_fault_of_ours_is_an_answer_without_a_traceback(ask: Ask, ledger: ScriptedLedger) -> None:
    ledger.answers["view"] = KeyError("secret")
    answer = ask("GET", "/v1/status")
    assert answer.status_code == 500
    assert "secret" not in error(answer)["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"jobs": [], "user": "ana"}, ["jobs"]),
        ({"user": "ana"}, ["jobs"]),
        ({"jobs": [JOB], "user": ""}, ["user"]),
        ({"jobs": [{"spec": 3}], "user": "ana"}, ["jobs.0.spec"]),
        ({"jobs": [JOB | {"extra": 1}], "user": "ana", "more": 2}, ["jobs.0.extra", "more"]),
    ],
)
def test_a_submission_that_is_wrong_names_its_fields(
    ask: Ask, ledger: ScriptedLedger, body: Any, words: list[str]
) -> None:
    answer = ask("POST", "/v1/jobs", json=body)
    assert answer.status_code == 422
    assert error(answer)["code"] == "spec_error"
    assert all(word in error(answer)["message"] for word in words)
    assert ledger.calls == []


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_body_that_is_no_submission_is_refused(ask: Ask, body: bytes) -> None:
    headers = WITH_TOKEN | {"Content-Type": "application/json"}
    answer = ask("POST", "/v1/jobs", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert error(answer)["code"] == "spec_error"


# ------------------------------------------------------------ submissions


def test_the_idempotency_key_is_handed_on_and_made_where_there_is_none(
    ask: Ask, ledger: ScriptedLedger
) -> None:
    ledger.answers["submit"] = [{"id": "a"}]
    assert ask("POST", "/v1/jobs", json=BODY, headers=WITH_TOKEN | {"Idempotency-Key": "k"}).json() == {
        "jobs": [{"id": "a"}]
    }
    ask("POST", "/v1/jobs", json=BODY)
    ask("POST", "/v1/jobs", json=BODY)
    keys = [call[1] for call in ledger.calls]
    assert keys[0] == "k"
    assert len(set(keys)) == 3
    assert ledger.calls[0][2:] == ("ana", [{"spec": JOB["spec"], "package": None}])


def test_every_command_has_a_key(ask: Ask, ledger: ScriptedLedger) -> None:
    """The caller's, or one of its own."""
    for path in ("/v1/nodes/node-a/cordon", "/v1/nodes/node-a/drain", "/v1/jobs/one/cancel"):
        ask("POST", path, headers=WITH_TOKEN | {"Idempotency-Key": "k"})
        ask("POST", path)
    assert ledger.keys[::2] == ["k", "k", "k"]
    assert len(set(ledger.keys)) == 4


def test_a_gpu_is_cut_or_only_planned_to_be(ask: Ask, ledger: ScriptedLedger) -> None:
    ask("POST", "/v1/gpus/node-a/0/layout", json={"profiles": ["3g.40gb"], "plan": True})
    ask("POST", "/v1/gpus/GPU-3f2a/layout", json={"profiles": None, "user": "ann"})
    assert ledger.calls == [
        ("set_layout", "the API", "node-a/0", ["3g.40gb"], True),
        ("set_layout", "ann", "GPU-3f2a", None, False),
    ]


def test_a_node_is_cordoned_and_used_again(ask: Ask, ledger: ScriptedLedger) -> None:
    ask("POST", "/v1/nodes/node-a/cordon")
    ask("POST", "/v1/nodes/node-a/cordon", json={"on": False, "user": "ana"})
    assert ledger.calls == [("cordon", "node-a", True, "the API"), ("cordon", "node-a", False, "ana")]


def test_a_node_is_drained_as_far_as_is_said(ask: Ask, ledger: ScriptedLedger) -> None:
    ask("POST", "/v1/nodes/node-a/drain")
    ask("POST", "/v1/nodes/node-a/drain", json={"user": "ana", "force": True, "plan": True})
    careful = {"force": False, "delete_emptydir_data": False, "plan": False}
    assert ledger.calls == [
        ("drain", "node-a", "the API", careful),
        ("drain", "node-a", "ana", {**careful, "force": True, "plan": True}),
    ]


def test_a_node_is_labelled(ask: Ask, ledger: ScriptedLedger) -> None:
    ask("POST", "/v1/nodes/node-a/labels", json={"labels": {"team": "vision", "old": None}})
    assert ledger.calls == [("label", "node-a", {"team": "vision", "old": None})]
    assert ask("POST", "/v1/nodes/node-a/labels", json={"labels": {}}).status_code == 422


def test_the_gpus_of_a_node_are_to_be_shared(ask: Ask, ledger: ScriptedLedger) -> None:
    ask("POST", "/v1/k8s/nodes/n/sharing", json={"kind": "mps", "replicas": 4, "drain": True})
    how = {"drain": True, "force": False, "delete_emptydir_data": False, "plan": False}
    assert ledger.calls == [("share", "n", {"kind": "mps", "replicas": 4, "layout": ""}, how)]
    assert ask("POST", "/v1/k8s/nodes/n/sharing", json={"kind": "mps", "replicas": 0}).status_code == 422


def test_cancel_tells_who_ended_it(ask: Ask, ledger: ScriptedLedger) -> None:
    ask("POST", "/v1/jobs/hpo[3]/cancel", json={"user": "ana"})
    ask("POST", "/v1/jobs/one/cancel")
    assert ledger.calls == [("cancel", "hpo[3]", "ana"), ("cancel", "one", "the API")]


# ------------------------------------------------------------ sizes and packages


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * (1 << 20)


def test_a_body_without_an_end_is_cut_off(
    ask: Ask, ledger: ScriptedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_LIMIT", 2 << 20)
    headers = WITH_TOKEN | {"Content-Type": "application/json"}
    answer = ask("POST", "/v1/jobs", content=_pieces(4), headers=headers)
    assert answer.status_code == 413
    assert "2 MiB" in error(answer)["message"]
    announced = ask("POST", "/v1/jobs", content=b" " * (3 << 20), headers=headers)
    assert announced.status_code == 413
    assert ledger.calls == []


def test_a_package_is_kept_under_its_digest(ask: Ask, tmp_path: Path) -> None:
    content = b"packed" * 1000
    digest = hashlib.sha256(content).hexdigest()
    assert ask("HEAD", f"/v1/packages/{digest}").status_code == 404
    assert ask("PUT", f"/v1/packages/{digest}", content=content).status_code == 201
    assert ask("HEAD", f"/v1/packages/{digest}").status_code == 200
    assert (tmp_path / "packages" / f"{digest}.tar.gz").read_bytes() == content


def test_a_package_with_another_digest_is_refused_and_not_kept(ask: Ask, tmp_path: Path) -> None:
    answer = ask("PUT", f"/v1/packages/{'0' * 64}", content=b"other")
    assert answer.status_code == 422
    assert error(answer)["code"] == "spec_error"
    assert list((tmp_path / "packages").iterdir()) == []


@pytest.mark.parametrize("digest", ["..%2F..%2Fescape", "abc", "A" * 64])
def test_what_is_no_digest_names_no_file(ask: Ask, tmp_path: Path, digest: str) -> None:
    assert ask("PUT", f"/v1/packages/{digest}", content=b"x").status_code in (404, 422)
    assert not list(tmp_path.rglob("*escape*"))


def test_a_package_that_is_too_large_leaves_nothing(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PACKAGE_LIMIT", 2 << 20)
    assert ask("PUT", f"/v1/packages/{'0' * 64}", content=_pieces(4)).status_code == 413
    assert list((tmp_path / "packages").iterdir()) == []


# ------------------------------------------------------------ streams


def test_logs_are_the_bytes_as_they_are(ask: Ask, ledger: ScriptedLedger) -> None:
    ledger.answers["locate"] = [{"run": "a.2.0", "backend": "vm", "ended": False}]
    ledger.answers["logs"] = [b"\xff\x00one\r\n", b"two", b""]
    answer = ask("GET", "/v1/jobs/a/logs?offset=7")
    assert answer.content == b"\xff\x00one\r\ntwo"
    assert [call[3] for call in ledger.calls if call[0] == "logs"] == [7, 14, 17]


def test_logs_of_a_job_that_did_not_start_are_empty(ask: Ask, ledger: ScriptedLedger) -> None:
    ledger.answers["locate"] = [{"run": "a.0.0", "backend": None, "ended": False}]
    assert ask("GET", "/v1/jobs/a/logs").content == b""


def test_follow_waits_for_the_start_keeps_to_the_attempt_and_reads_what_came_before_the_end(
    ask: Ask, ledger: ScriptedLedger
) -> None:
    ledger.answers["locate"] = [
        {"run": "a.0.0", "backend": None, "ended": False},
        {"run": "a.1.0", "backend": "vm", "ended": False},
        {"run": "a.1.0", "backend": "vm", "ended": True},
    ]
    ledger.answers["logs"] = [b"one", *[b""] * 5, b"two", b""]
    assert ask("GET", "/v1/jobs/a/logs?follow=true").content == b"onetwo"
    assert [call[2] for call in ledger.calls if call[0] == "locate"] == [None, None, 1]


def test_logs_of_an_unknown_job_are_an_error_and_no_stream(ask: Ask, ledger: ScriptedLedger) -> None:
    ledger.answers["locate"] = [errors.NotFound("no job a")]
    assert error(ask("GET", "/v1/jobs/a/logs?follow=true"))["code"] == "not_found"


def test_events_begin_after_the_last_one_seen(app: FastAPI, ledger: ScriptedLedger) -> None:
    """The stream has no end, so the first lines are read from the application itself."""
    ledger.answers |= {"latest": 41, "events": [{"seq": 42}, {"seq": 43}]}
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) > 2:
            raise OSError("the client went away")
        await asyncio.sleep(0)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""} if not sent else await asyncio.Event().wait()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "GET",
        "path": "/v1/events",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
    }
    answered: Awaitable[None] = app(scope, receive, send)
    with pytest.raises(BaseException):  # noqa: B017
        asyncio.run(asyncio.wait_for(answered, 10))
    assert [json.loads(line)["seq"] for line in sent[1].splitlines()] == [42, 43]
    assert [call[1] for call in ledger.calls if call[0] == "events"][:2] == [41, 43]


def test_a_name_with_slashes_reaches_the_ledger_whole(ask: Ask, ledger: ScriptedLedger) -> None:
    ledger.answers["locate"] = [{"run": "a.1.0", "backend": None, "ended": True}]
    for method, what in (("GET", ""), ("POST", "/cancel"), ("GET", "/explain"), ("GET", "/logs")):
        assert ask(method, f"/v1/jobs/a%2Fb%20c{what}").status_code == 200
    assert ledger.calls == [
        ("view", "job", {"job": "a/b c"}),
        ("cancel", "a/b c", "the API"),
        ("view", "explain", {"job": "a/b c"}),
        ("locate", "a/b c", None, 0),
    ]
