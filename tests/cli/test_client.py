"""The client against a server that breaks on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import samples
from scripted import answer, drop, pieces, scripted

from raysched import client as client_module
from raysched.client import Client
from raysched.discovery import find_access
from raysched.errors import ConfigError, NotFound, Refused, Unauthorized, Unreachable

JOBS = answer({"jobs": [samples.job()]})


def _client(address: str, told: list[str] | None = None, patience: float = 5) -> Client:
    return Client(address, "secret", patience=patience, notice=(told if told is not None else []).append)


def test_a_call_carries_the_token_and_quotes_the_job() -> None:
    with scripted(JOBS) as server:
        assert _client(server.address).job("my job/x[3]") == [samples.job()]
    assert server.asked[0].line == "GET /v1/jobs/my%20job%2Fx%5B3%5D HTTP/1.1"
    assert server.asked[0].headers["authorization"] == "Bearer secret"


def test_a_lost_answer_never_doubles_a_submission() -> None:
    """Case ray-02: the repetition has the same idempotency key."""
    with scripted(drop, JOBS) as server:
        _client(server.address).submit([{"entrypoint": "true"}], [None])
    first, second = server.asked
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


def test_a_command_is_repeated_under_its_key() -> None:
    """Where the connection broke before the answer: cancelling and cordoning too."""
    for command in (lambda client: client.cancel("x"), lambda client: client.cordon("node-a")):
        with scripted(drop, answer({"jobs": []})) as server:
            command(_client(server.address, []))
        first, second = (asked.headers["idempotency-key"] for asked in server.asked)
        assert first == second


def test_two_submissions_have_two_keys() -> None:
    with scripted(JOBS, JOBS) as server:
        for _ in range(2):
            _client(server.address).submit([{"entrypoint": "true"}], [None])
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 2


def test_in_a_ray_job_the_key_follows_from_the_submission_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case ray-02: the same entrypoint run twice by Ray submits once."""
    assert client_module._key_in_ray_job([], []) is None
    keys: set[str | None] = set()
    for submission, spec in (("run-7", "a"), ("run-7", "a"), ("run-7", "b"), ("run-8", "a")):
        config = json.dumps({"metadata": {"job_submission_id": submission}})
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", config)
        keys.add(client_module._key_in_ray_job([{"entrypoint": spec}], [None]))
    assert len(keys) == 3


def test_output_goes_on_at_the_right_byte_after_a_break() -> None:
    told: list[str] = []
    broken = pieces(b"one\n", b"tw", complete=False)
    with scripted(broken, drop, pieces(b"o\nthree\n")) as server:
        assert b"".join(_client(server.address, told).logs("x", follow=True)) == b"one\ntwo\nthree\n"
    assert server.asked[0].line == "GET /v1/jobs/x/logs?follow=true&offset=0 HTTP/1.1"
    assert server.asked[2].line == "GET /v1/jobs/x/logs?follow=true&offset=6 HTTP/1.1"
    assert told == ["the connection broke; taking it up again"]


def test_events_go_on_after_the_last_one_that_was_complete() -> None:
    lines = [json.dumps({"seq": seq, "job": "x"}).encode() + b"\n" for seq in (4, 5, 6)]
    broken = pieces(lines[0] + lines[1][:7], complete=False)
    with scripted(broken, pieces(lines[1], b"\n", lines[2], complete=False, linger=5)) as server:
        events = _client(server.address).events(job="x", after=0)
        seen: list[int] = []
        while len(seen) < 3:
            if event := next(events):
                seen.append(event["seq"])
    assert seen == [4, 5, 6]
    assert server.asked[1].line == "GET /v1/events?job=x&after=4 HTTP/1.1"


def test_a_quiet_stream_of_events_ticks() -> None:
    with scripted(pieces(complete=False, linger=5)) as server:
        assert next(_client(server.address).events(tick=0.05)) is None


def test_an_error_comes_back_as_its_class() -> None:
    body = {
        "error": {"code": "not_found", "message": "no job x: `raysched status` lists those that are known"}
    }
    with scripted(answer(body, "404 Not Found")) as server, pytest.raises(NotFound, match=r"^no job x: "):
        _client(server.address).explain("x")


def test_an_error_of_a_stream_comes_back_as_its_class() -> None:
    body = {"error": {"code": "refused", "message": "no"}}
    with scripted(answer(body, "409 Conflict")) as server, pytest.raises(Refused, match=r"^no$"):
        list(_client(server.address).logs("x"))


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_a_wrong_token_says_where_the_right_one_is(status: str) -> None:
    with scripted(answer({}, status)) as server, pytest.raises(Unauthorized, match="set RAYSCHED_TOKEN"):
        _client(server.address).queue()


def test_another_server_is_named_as_such() -> None:
    page = answer("<html>It works!</html>")
    with scripted(page) as server, pytest.raises(Unreachable, match="check that RAYSCHED_ADDRESS"):
        _client(server.address).queue()


def test_a_gateway_that_stays_away_is_unreachable_and_the_user_is_told_once() -> None:
    told: list[str] = []
    with scripted() as server:
        pass
    with pytest.raises(Unreachable, match=r"is it up\? Run `raysched up`, or set RAYSCHED_ADDRESS"):
        _client(server.address, told, patience=1.5).gpus()
    assert told == [f"{server.address} does not answer; trying for 2 s"]


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://[::1",
        "http://a host",
        "http://..",
        f"http://{'a' * 80}.example",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="write http://HOST:PORT"):
        _client(address)


@pytest.mark.parametrize("token", ["a\nb", "w\u4e2dng"])
def test_a_token_that_no_header_can_carry_is_a_wrong_one(token: str) -> None:
    with pytest.raises(Unauthorized, match="does not accept the token"):
        Client("http://127.0.0.1:1", token)


def test_a_name_that_no_job_can_have_is_not_found() -> None:
    with scripted(
        answer({"error": {"code": "not_found", "message": "no such job"}}, "404 Not Found")
    ) as server:
        with pytest.raises(NotFound):
            _client(server.address).job("\udcff")
        with pytest.raises(NotFound, match="empty"):
            _client(server.address).job("")
    assert [asked.line for asked in server.asked] == ["GET /v1/jobs/%FF HTTP/1.1"]


def test_a_package_is_uploaded_once(tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    archive.write_bytes(b"packed" * 1000)
    with scripted(answer("", "404 Not Found"), answer({}), answer("")) as server:
        _client(server.address).upload("ab" * 32, archive)
        _client(server.address).upload("ab" * 32, archive)
    assert [asked.line.split()[0] for asked in server.asked] == ["HEAD", "PUT", "HEAD"]
    assert server.asked[1].body == archive.read_bytes()


def test_the_environment_names_the_gateway_before_any_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYSCHED_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAYSCHED_ADDRESS", "RAYSCHED_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unreachable, match="run `raysched up`, or set RAYSCHED_ADDRESS"):
        find_access()
    (tmp_path / "gateway.json").write_text('{"address": "http://127.0.0.1:1", "token": "local"}')
    assert find_access().token == "local"
    monkeypatch.setenv("RAYSCHED_ADDRESS", "https://far.example")
    assert find_access().token == "", "a token is never sent to another gateway than its own"
    monkeypatch.setenv("RAYSCHED_TOKEN", "far")
    assert (find_access().address, find_access().token) == ("https://far.example", "far")


def test_where_it_was_taken_down_or_died_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYSCHED_HOME", str(tmp_path))
    monkeypatch.delenv("RAYSCHED_ADDRESS", raising=False)
    (tmp_path / "gateway.json").write_text('{"address": "http://127.0.0.1:1", "token": "local"}')
    assert not find_access().expected
    (tmp_path / "up.json").write_text('{"own": null}')
    assert find_access().expected
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "up.json").write_text(json.dumps({"own": {"pid": ended.pid}}))
    assert not find_access().expected


def test_a_damaged_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYSCHED_HOME", str(tmp_path))
    (tmp_path / "gateway.json").write_text("{")
    with pytest.raises(ConfigError, match=r"gateway\.json is damaged"):
        find_access()


def test_the_token_is_not_in_a_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCHED_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAYSCHED_TOKEN", "secret")
    assert "secret" not in repr(find_access())


def test_asking_a_question_imports_nothing_heavy() -> None:
    heavy = {"ray", "pandas", "pydantic", "fastapi", "uvicorn", "sqlalchemy", "yaml", "numpy"}
    code = "import sys, raysched.cli.main; print(*sys.modules, sep='\\n')"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert not heavy & set(modules.stdout.split())
