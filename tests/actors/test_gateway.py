"""The gateway of a real system: the shapes of docs/api.md, restarts, what it tells nobody."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from running import System, wait_until

from raysched.actors.gateway import answers

pytestmark = pytest.mark.ray


def get(system: System, path: str, method: str = "GET", body: Any = None, key: str | None = None) -> Any:
    """The JSON that the gateway answers, with the token, and the idempotency key that is given."""
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=60)
    headers = {"Authorization": f"Bearer {system.token}", "Content-Type": "application/json"}
    headers |= {"Idempotency-Key": key} if key else {}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def pid_of(system: System, actor: str) -> int:
    """The process of an actor, as Ray knows it."""
    listed = system.ray("list", "actors", "--detail", "--format=json", "--filter", f"class_name={actor}")
    (found,) = (row for row in json.loads(listed.stdout) if row["state"] == "ALIVE")
    return found["pid"]


def test_every_answer_has_the_shape_that_the_description_gives_it(system: System) -> None:
    job = system.submit("shapes", "sleep 1000", resources={"gpu_fraction": 0.5})
    waits = system.submit("waits", "true", resources={"gpus": 2})
    try:
        wait_until(lambda: system.client().job(job)[0]["state"] == "running", "the job runs")
        body = {"jobs": [{"spec": {"entrypoint": "true"}}], "user": "ana"}
        shapes: list[tuple[type[BaseModel], Any]] = [
            (answers.Status, get(system, "/v1/status")),
            (answers.Jobs, get(system, "/v1/jobs")),
            (answers.Jobs, get(system, f"/v1/jobs/{job}")),
            (answers.Jobs, get(system, "/v1/jobs?state=waiting")),
            (answers.Queue, get(system, "/v1/queue")),
            (answers.GPUs, get(system, "/v1/gpus")),
            *[(answers.Usage, get(system, f"/v1/usage?by={by}")) for by in ("queue", "user", "job", "gpu")],
            (answers.Usage, get(system, "/v1/usage?since=0.001")),
            (answers.Advices, get(system, "/v1/advice")),
            (answers.Explanation, get(system, f"/v1/jobs/{waits}/explain")),
            (answers.Explanation, get(system, f"/v1/jobs/{job}/explain")),
            (answers.Plan, get(system, "/v1/plan", "POST", body)),
            (answers.ErrorAnswer, get(system, "/v1/jobs/nobody")),
        ]
        for shape, answer in shapes:
            shape.model_validate_json(json.dumps(answer), strict=True)
        assert [one["id"] for one in get(system, "/v1/jobs?state=waiting")["jobs"]] == [waits]
        assert get(system, "/v1/gpus")["nodes"][0]["gpus"][0]["tenants"][0]["job"] == job
    finally:
        for one in (waits, job):
            cancelled = get(system, f"/v1/jobs/{one}/cancel", "POST", {"user": "ana"})
            answers.Jobs.model_validate_json(json.dumps(cancelled), strict=True)
        free = lambda: get(system, "/v1/status")["gpus"]["free"] == 2  # noqa: E731
        wait_until(free, "the GPUs are free again")


def test_events_tell_a_job_from_its_submission_to_its_end(system: System) -> None:
    job = system.submit("told", "true", resources={"gpus": 0})
    told: list[str] = []
    for event in system.client().events(job=job, after=0):
        if event is not None:
            told.append(event["event"])
            if event["event"] == "ended":
                break
    assert told[:2] == ["submitted", "granted"]
    assert "started" in told


def test_a_followed_log_goes_on_to_the_last_byte(system: System, tmp_path: Path) -> None:
    go = tmp_path / "go"
    line = f"echo first; while ! test -e {go}; do sleep 0.1; done; echo last"
    job = system.submit("talks", line, resources={"gpus": 0})
    stream = system.client().logs(job, follow=True)
    assert next(stream) == b"first\n"
    go.touch()
    assert b"".join(stream) == b"last\n"


def test_a_gateway_that_is_killed_comes_back_at_the_same_place_and_no_byte_is_lost(system: System) -> None:
    """The stream is taken up again where it broke, and the token is the one from before."""
    token, address = system.token, system.address
    job = system.submit("talks", "for i in $(seq 100); do echo line $i; sleep 0.1; done")
    read: list[bytes] = []
    client = system.client()
    reader = threading.Thread(target=lambda: read.extend(client.logs(job, follow=True)))
    reader.start()
    wait_until(lambda: b"line 5\n" in b"".join(read), "the job talks")
    before = pid_of(system, "Gateway")
    system.kill_process(before)
    wait_until(lambda: pid_of(system, "Gateway") != before, "the gateway is another process")
    assert client.status()["nodes"] == 1
    assert (system.token, system.address) == (token, address)
    reader.join(120)
    assert b"".join(read).decode().split() == [word for i in range(1, 101) for word in ("line", str(i))]


def test_a_ledger_that_is_killed_is_waited_for(system: System) -> None:
    job = system.submit("busy", "sleep 1000")
    wait_until(lambda: system.client().job(job)[0]["state"] == "running", "the job runs")
    system.kill_process(pid_of(system, "Ledger"))
    assert get(system, f"/v1/jobs/{job}")["jobs"][0]["state"] == "running"
    system.cli("cancel", job)


def test_a_repeated_command_gets_the_first_answer(system: System) -> None:
    """Also after the ledger was killed; the same key for something else is a conflict."""

    def send(path: str, body: dict[str, Any], key: str) -> str:
        (job,) = get(system, path, "POST", body, key)["jobs"]
        return job["id"]

    def body(entrypoint: str) -> dict[str, Any]:
        spec = {"name": "once", "entrypoint": entrypoint, "working_dir": None, "resources": {"gpus": 0}}
        return {"jobs": [{"spec": spec, "package": None}], "user": "ana"}

    sleep, cancel = body("sleep 600"), "/v1/jobs/once/cancel"
    first = send("/v1/jobs", sleep, "repeated-1")
    assert send(cancel, {}, "repeated-2") == first
    assert system.kill("ray::Ledger")
    assert send("/v1/jobs", sleep, "repeated-1") == first
    later = send("/v1/jobs", sleep, "repeated-3")
    assert send(cancel, {}, "repeated-2") == first
    assert not system.client().job(later)[0]["ended"]
    for path, other in (("/v1/jobs", body("true")), (cancel, {})):
        error = get(system, path, "POST", other, "repeated-1")["error"]
        assert error["code"] == "conflict"
        assert "'repeated-1' was used for something else" in error["message"]
    assert send(cancel, {}, "repeated-4") == later
    wait_until(lambda: all(job["ended"] for job in system.client().jobs()), "nothing runs")


def test_no_file_but_the_owners_holds_the_token(system: System) -> None:
    system.cli("status")
    token = system.token.encode()
    private = {system.home / "gateway.json"}
    for path in system.folder.rglob("*"):
        if path.is_file() and path not in private:
            assert token not in path.read_bytes(), path
