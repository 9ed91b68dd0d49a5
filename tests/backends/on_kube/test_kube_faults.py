"""An API server that is too busy for us, and one whose webhooks say no, conflict, or are away: each run
starts once all the same."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands, ordered
from running import wait_until
from test_kube_login import Robot, robot  # noqa: F401 - a fixture

from raysched.backends.base import EngineRefused
from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.cluster import Access, Cluster
from raysched.core.site import NOWHERE
from raysched.core.work import Launch
from raysched.errors import Unreachable
from raysched.testing.conformance import LASTS, new_launch

FLOW = "/apis/flowcontrol.apiserver.k8s.io/v1"
HOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def order() -> Launch:
    return ordered(new_launch(LASTS, NOWHERE))


def started(hands: KubeHands, launch: Launch) -> None:
    """Start a run as often as a reconciler would, until that has its effect; it starts once."""

    def start() -> bool:
        try:
            hands.start(launch)
        except Unreachable:
            return False
        return True

    wait_until(start, "it is started", 60)
    hands.until(launch.run, "running")
    hands.start(launch)
    assert len(hands.pods(launch.run)) == 1


# ---------------------------------------------------------------- too busy


class Counting(Cluster):
    """Counts the answers by their status."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.answers: list[int] = []

    async def _send(self, *args: Any) -> Any:
        answer = await super()._send(*args)
        self.answers.append(answer.status)
        return answer


@contextmanager
def throttled(cluster: KubeCluster, robot: Robot) -> Iterator[None]:  # noqa: F811
    """The API server has room for one request of the robot at a time: for more it answers 429, with a
    Retry-After."""
    limited = {
        "nominalConcurrencyShares": 0,
        "borrowingLimitPercent": 0,
        "limitResponse": {"type": "Reject"},
    }
    level = {"metadata": {"name": "narrow"}, "spec": {"type": "Limited", "limited": limited}}
    subject = {"kind": "ServiceAccount", "serviceAccount": {"name": "robot", "namespace": NAMESPACE}}
    anything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}
    rules = {"subjects": [subject], "resourceRules": [{**anything, "clusterScope": True}]}
    spec = {"priorityLevelConfiguration": {"name": "narrow"}, "matchingPrecedence": 2, "rules": [rules]}
    cluster.call("POST", f"{FLOW}/prioritylevelconfigurations", level)
    try:
        schema = cluster.call("POST", f"{FLOW}/flowschemas", {"metadata": {"name": "narrow"}, "spec": spec})
        uid = schema["metadata"]["uid"]
        wait_until(lambda: robot.flow() == uid, "it is throttled", 60)
        yield
    finally:
        cluster.call("DELETE", f"{FLOW}/flowschemas/narrow")
        cluster.call("DELETE", f"{FLOW}/prioritylevelconfigurations/narrow")


def test_a_server_that_is_too_busy_is_asked_again_later(
    make: Callable[..., KubeBackend],
    cluster: KubeCluster,
    robot: Robot,  # noqa: F811
) -> None:
    """By the API server's own priority and fairness."""
    client = Counting(Access(str(robot.kubeconfig()), namespace=NAMESPACE))
    with closing(KubeHands(lambda: make(client), cluster)) as hands:
        launches = [order() for _ in range(6)]

        async def start_all() -> None:
            await asyncio.gather(*map(hands.backend.start, launches), return_exceptions=True)

        hands.do(hands.backend.observe())
        with throttled(cluster, robot):
            hands.do(start_all())
            assert 429 in client.answers
        for launch in launches:
            started(hands, launch)


# ---------------------------------------------------------------- webhooks


class Webhook:
    """An admission webhook for our Jobs: `answers` are the statuses that it gives, in turn; after these it
    allows."""

    def __init__(self, cluster: KubeCluster, folder: Path) -> None:
        self.cluster = cluster
        self.answers: list[int] = []
        self.asked = 0
        key, certificate = folder / "hook.key", folder / "hook.crt"
        made = [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ]
        subprocess.run(made, check=True, capture_output=True)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        rule = {"operations": ["CREATE", "UPDATE"], "apiGroups": ["batch"], "apiVersions": ["v1"]}
        hook = {
            "name": "test.raysched.io",
            "rules": [{**rule, "resources": ["jobs"]}],
            "clientConfig": {
                "url": f"https://127.0.0.1:{self._server.server_port}/",
                "caBundle": b64encode(certificate.read_bytes()).decode(),
            },
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 5,
        }
        cluster.call("POST", HOOKS, {"metadata": {"name": "test"}, "webhooks": [hook]})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = json.dumps({**review, "response": hook.answer(review["request"])}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def answer(self, request: Any) -> Any:
        self.asked += 1
        status = self.answers.pop(0) if self.answers else 0
        words = {409: "Conflict", 403: "Forbidden"}
        no = {"code": status, "reason": words.get(status, ""), "message": "the webhook says no"}
        return {"uid": request["uid"], "allowed": not status, **({"status": no} if status else {})}

    def is_in_force(self) -> bool:
        """Whether the API server asks it: of a Job that is not really made."""
        before = self.asked
        container = {"name": "main", "image": "busybox"}
        spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
        path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs?dryRun=All"
        self.cluster.call("POST", path, {"metadata": {"name": "asked"}, "spec": spec})
        return self.asked > before

    def stop(self) -> None:
        """Answer nothing any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def close(self) -> None:
        self.take_away()
        self.stop()

    def take_away(self) -> None:
        """Have the API server ask nobody."""
        if self.cluster.get(f"{HOOKS}/test") is not None:
            self.cluster.call("DELETE", f"{HOOKS}/test")


@pytest.fixture
def webhook(cluster: KubeCluster, tmp_path: Path) -> Iterator[Webhook]:
    hook = Webhook(cluster, tmp_path)
    try:
        wait_until(hook.is_in_force, "the webhook is asked", 60)
        yield hook
    finally:
        hook.close()


def test_a_webhook_that_refuses_conflicts_or_is_away(hands: KubeHands, webhook: Webhook) -> None:
    """No is final and in its words; a conflict, when the Job is made and when it is let go, and a webhook
    that does not answer are no answer at all. (The API server itself tries a change that conflicts five times
    more.)"""
    webhook.answers = [403]
    with pytest.raises(EngineRefused, match="the webhook says no") as refused:
        hands.start(order())
    assert refused.value.final
    for allowed in (0, 1):
        launch = order()
        webhook.answers = [0] * allowed + [409] * 20
        with pytest.raises(Unreachable, match="the webhook says no"):
            hands.start(launch)
        webhook.answers = []
        started(hands, launch)
    launch = order()
    webhook.stop()
    with pytest.raises(Unreachable, match="failed calling webhook"):
        hands.start(launch)
    webhook.take_away()
    started(hands, launch)
