"""What a real control plane makes of runs, whatever happens to it and to their objects."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kube_cluster import KubeCluster
from orders import NAMESPACE, SOON, KubeHands, ordered
from running import wait_until

from raysched.backends.base import Backend, EngineRefused
from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.cluster import Access, Answered, Cluster
from raysched.core.site import NOWHERE
from raysched.core.work import Launch, Run
from raysched.errors import Unreachable
from raysched.testing.conformance import LASTS, new_launch, pack

WORK = f"/api/v1/namespaces/{NAMESPACE}"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
GPU = "nvidia.com/gpu"


def order(**fields: Any) -> Launch:
    return ordered(new_launch(LASTS, NOWHERE), **fields)


def objects(cluster: KubeCluster, run: Run) -> list[str]:
    """Kind and name of everything that carries a run's id."""
    paths = {"Job": JOBS, **{kind: f"{WORK}/{kind.lower()}s" for kind in ("ConfigMap", "Pod", "Service")}}
    return [
        f"{kind} {item['metadata']['name']}"
        for kind, path in paths.items()
        for item in cluster.items(path)
        if (item["metadata"].get("annotations") or {}).get("raysched.io/run") == str(run)
    ]


def job_path(cluster: KubeCluster, run: Run) -> str:
    (name,) = [name.removeprefix("Job ") for name in objects(cluster, run) if name.startswith("Job ")]
    return f"{JOBS}/{name}"


# ---------------------------------------------------------------- how it ends


def test_exit_codes_and_reasons_are_kubernetes_own(hands: KubeHands, cluster: KubeCluster) -> None:
    runs = {code: hands.start(order()) for code in (0, 3, 137)}
    for code, run in runs.items():
        cluster.end(hands.until_pod(run), code, "OOMKilled" if code == 137 else "")
    for code, run in runs.items():
        seen = hands.until(run, "exited")
        assert seen.code == code
        assert seen.started is not None
        assert seen.ended is not None
        assert ("OOMKilled" in seen.reason) == (code == 137)


def test_a_run_of_several_pods_fails_as_its_first_pod_does(hands: KubeHands, cluster: KubeCluster) -> None:
    run = hands.start(order(nodes=2))
    wait_until(lambda: hands.seen(run) and len(hands.pods(run)) == 2, "two pods", 60)
    hands.until(run, "running")
    ranks = {
        pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: pod for pod in hands.pods(run)
    }
    assert {pod["spec"]["subdomain"] for pod in ranks.values()} == {
        name.removeprefix("Service ") for name in objects(cluster, run) if name.startswith("Service")
    }
    wait_until(lambda: all(pod["status"]["phase"] == "Running" for pod in hands.pods(run)), "both run", 60)
    cluster.end(ranks["1"], 5)
    assert hands.until(run, "exited").code == 5
    assert not [pod for pod in hands.pods(run) if pod["status"]["phase"] == "Running"]


def test_an_evicted_run_was_taken_away(hands: KubeHands, cluster: KubeCluster) -> None:
    """Case kubernetes-02: by the eviction API, and as a kubelet does it where memory runs out."""
    drained, squeezed = hands.start(order()), hands.start(order())
    pod = hands.until_pod(drained)["metadata"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["name"]}}
    cluster.call("POST", f"{WORK}/pods/{pod['name']}/eviction", eviction)
    assert "EvictionByEvictionAPI" in hands.until(drained, "taken").reason
    pod = hands.until_pod(squeezed)["metadata"]
    status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    cluster.patch(f"{WORK}/pods/{pod['name']}/status", {"status": status})
    assert "(Evicted): The node was low on resource: memory." in hands.until(squeezed, "taken").reason
    assert len(hands.pods(squeezed)) <= 1


def test_the_runs_of_a_node_that_dies_were_taken_away(hands: KubeHands, cluster: KubeCluster) -> None:
    """As Kubernetes ends them, once it has waited long enough."""
    with cluster.node("doomed", labels={"doomed": "yes"}):
        run = hands.start(order(node_selector={"doomed": "yes"}, pod={"tolerations": [SOON]}))
        hands.until_pod(run)
        seen = hands.until_node_is_lost(run, "doomed")
        assert "from doomed (DeletionByTaintManager)" in seen.reason


# ---------------------------------------------------------------- why it waits


def test_a_taint_is_the_reason_until_it_is_gone(hands: KubeHands, cluster: KubeCluster) -> None:
    """Case kubernetes-01."""
    taint = {"key": "team", "value": "vision", "effect": "NoSchedule"}
    with cluster.node("tainted", resources={GPU: "1"}, taints=[taint]):
        asked = {"kind": "gpu", "count": 1, "resource": GPU}
        run = hands.start(order(**asked))
        hands.do(hands.backend.mirror())  # type: ignore[attr-defined]
        hands.until_reason(run, "taints that it does not tolerate: team=vision:NoSchedule")
        allowed = hands.start(order(**asked, tolerations=[{"key": "team", "operator": "Exists"}]))
        cluster.end(hands.until_pod(allowed), 0)
        hands.until(allowed, "exited")
        cluster.patch("/api/v1/nodes/tainted", {"spec": {"taints": []}})
        cluster.end(hands.until_pod(run), 0)
        hands.until(run, "exited")


def test_an_image_that_can_not_be_pulled_is_given_up(hands: KubeHands, cluster: KubeCluster) -> None:
    """Case kubernetes-03: never running, with the reason, and nothing is held in the end."""
    run = hands.start(order(image="no-such-image:v0"))
    seen = hands.until_reason(run, "no-such-image:v0", "ImagePullBackOff")
    assert seen.state == "queued"
    lost = hands.until(run, "lost")
    assert "no-such-image:v0 can't be pulled" in lost.reason
    assert (lost.started, lost.code) == (None, None)
    assert not [name for name in objects(cluster, run) if not name.startswith("ConfigMap")]


def test_a_run_whose_image_can_not_be_pulled_can_be_cancelled(hands: KubeHands, cluster: KubeCluster) -> None:
    """Case kubernetes-03."""
    run = hands.start(order(image="no-such-image:v0"))
    hands.until_reason(run, "no-such-image:v0")
    hands.stop(run)
    hands.until(run, "exited")
    hands.do(hands.backend.forget(frozenset({run})))
    wait_until(lambda: not objects(cluster, run), "nothing is left", 60)


def test_a_full_quota_lets_a_run_wait(hands: KubeHands, cluster: KubeCluster) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"requests.memory": "1Gi"}}}
    cluster.call("POST", f"{WORK}/resourcequotas", quota)
    try:
        full = lambda: (cluster.get(f"{WORK}/resourcequotas/few") or {}).get("status", {}).get("hard")  # noqa: E731
        wait_until(full, "the quota counts", 60)
        run = hands.start(order(memory=2048))
        hands.until_reason(run, "quota is full", "requests.memory")
    finally:
        cluster.call("DELETE", f"{WORK}/resourcequotas/few")
    hands.stop(run)
    hands.until(run, "exited")


# ---------------------------------------------------------------- what is refused


def test_what_a_policy_refuses_fails_with_its_words(hands: KubeHands, cluster: KubeCluster) -> None:
    rules = "/apis/admissionregistration.k8s.io/v1"
    kinds = [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}]
    check = {
        "expression": "!has(object.metadata.annotations) || "
        "object.metadata.annotations['raysched.io/job-name'] != 'refused-by-policy'",
        "message": "not in this cluster",
    }
    policy = {"matchConstraints": {"resourceRules": kinds}, "validations": [check]}
    cluster.call("POST", f"{rules}/validatingadmissionpolicies", {"metadata": {"name": "no"}, "spec": policy})
    binding = {"metadata": {"name": "no"}, "spec": {"policyName": "no", "validationActions": ["Deny"]}}
    cluster.call("POST", f"{rules}/validatingadmissionpolicybindings", binding)

    def refused() -> EngineRefused | None:
        launch = Launch(new_launch("", NOWHERE).run, "lease", NOWHERE, "refused-by-policy", "true", (), None)
        try:
            hands.start(ordered(launch))  # a policy takes a moment to be in force
        except EngineRefused as error:
            assert not objects(cluster, launch.run)
            return error
        return None

    try:
        error = wait_until(refused, "the policy is in force", 60)
        assert error.final
        assert "not in this cluster" in error.reason
    finally:
        cluster.call("DELETE", f"{rules}/validatingadmissionpolicybindings/no")
        cluster.call("DELETE", f"{rules}/validatingadmissionpolicies/no")


def test_an_unknown_service_account_lets_it_wait_with_the_reason(hands: KubeHands) -> None:
    run = hands.start(order(service_account="nobody-here"))
    hands.until_reason(run, "nobody-here", "not found")


def test_a_namespace_that_is_not_there_is_no_final_no(cluster: KubeCluster, tmp_path: Path) -> None:
    there = Cluster(Access(str(cluster.kubeconfig), namespace="not-there"))
    backend = KubeBackend(there, "abc", tmp_path, tmp_path / "runs")
    hands = KubeHands(lambda: backend, cluster)
    launch = order()
    with pytest.raises(EngineRefused, match="not-there") as refused:
        hands.do(backend.start(launch))
    assert not refused.value.final
    hands.close()


# ---------------------------------------------------------------- once, whatever happens


class Dies(Cluster):
    """A cluster whose client dies after so many changes, with or without the last one having been made."""

    def __init__(self, access: Access, after: int, *, made: bool) -> None:
        super().__init__(access)
        self.left = after
        self._made = made

    async def call(self, method: str, *args: Any, **named: Any) -> Any:
        if method != "GET":
            self.left -= 1
            if self.left < 0:
                if self.left == -1 and self._made:
                    await super().call(method, *args, **named)
                raise Unreachable("dead")
        return await super().call(method, *args, **named)


def test_a_run_starts_once_wherever_its_start_is_cut_off(
    make: Callable[..., KubeBackend], access: Access, cluster: KubeCluster, packages: Path
) -> None:
    """Case kubernetes-02: one Job and one pod, whichever call was the last, heard or not."""
    hands = KubeHands(make, cluster)
    digest = pack(packages, {"a": b"1"})
    for after in range(6):
        for made in (False, True):
            launch = ordered(new_launch(LASTS, NOWHERE, package=digest))
            dying = make(Dies(access, after, made=made))
            with suppress(Unreachable):
                hands.do(dying.start(launch))
            hands.do(dying.close())
            hands.restart()
            hands.start(launch)
            hands.until(launch.run, "running")
            hands.start(launch)
            assert len(hands.pods(launch.run)) == 1
            hands.stop(launch.run, 0)
    hands.close()


def test_starts_from_all_sides_make_one_job(hands: KubeHands, make: Callable[[], Backend]) -> None:
    launch = order()
    others = [make() for _ in range(3)]

    async def all_at_once() -> None:
        await asyncio.gather(*(each.start(launch) for each in (hands.backend, *others)))

    hands.do(all_at_once())
    hands.start(launch)
    hands.until(launch.run, "running")
    assert len(hands.pods(launch.run)) == 1
    for each in others:
        hands.do(each.close())


def test_a_deleted_job_is_lost_and_never_made_again(hands: KubeHands, cluster: KubeCluster) -> None:
    """Case kubernetes-02: also where raysched was not there to see it."""
    watched, unwatched = order(), order()
    for launch in (watched, unwatched):
        hands.start(launch)
        hands.until(launch.run, "running")
    gone = {"propagationPolicy": "Background"}
    cluster.call("DELETE", job_path(cluster, watched.run), gone)
    assert "deleted in Kubernetes, not by raysched" in hands.until(watched.run, "lost").reason
    hands.do(hands.backend.close())
    cluster.call("DELETE", job_path(cluster, unwatched.run), gone)
    hands.backend = hands.make()
    for launch in (watched, unwatched):
        hands.start(launch)
        hands.until(launch.run, "lost")
        hands.start(launch)
        assert not [name for name in objects(cluster, launch.run) if name.startswith(("Job", "Pod"))]


def test_a_run_of_which_everything_is_deleted_is_lost_and_never_made_again(
    cluster: KubeCluster, tmp_path: Path
) -> None:
    """Its namespace went away, and came back."""
    cluster.add_namespace("brief")
    access = Access(str(cluster.kubeconfig), namespace="brief")
    hands = KubeHands(lambda: KubeBackend(Cluster(access), "brief", tmp_path, tmp_path / "runs"), cluster)
    launch = order()
    hands.start(launch)
    hands.until(launch.run, "running")
    cluster.call("DELETE", "/api/v1/namespaces/brief")
    wait_until(lambda: cluster.get("/api/v1/namespaces/brief") is None, "the namespace is gone", 60)
    hands.until(launch.run, "lost")
    cluster.add_namespace("brief")
    for _ in range(2):
        hands.start(launch)
        assert hands.until(launch.run, "lost").reason
        assert not cluster.jobs("brief")
        hands.restart()
    hands.close()
    cluster.call("DELETE", "/api/v1/namespaces/brief")


def test_a_job_that_somebody_suspends_was_taken_away(hands: KubeHands, cluster: KubeCluster) -> None:
    """Resumed by hand it would be a second start of the same attempt."""
    run = hands.start(order())
    hands.until(run, "running")
    cluster.patch(job_path(cluster, run), {"spec": {"suspend": True}})
    assert "suspended in Kubernetes" in hands.until(run, "taken").reason
    wait_until(lambda: not [name for name in objects(cluster, run) if name.startswith("Job")], "no Job", 60)


def test_an_api_server_that_was_killed_and_forgot_its_past_changes_nothing(
    hands: KubeHands, cluster: KubeCluster
) -> None:
    """The watches are cut off, go on, and list anew where the server forgot how far they were (410)."""
    going, ending, late = hands.start(order()), hands.start(order()), order()
    before = hands.until(going, "running")
    pod = hands.until_pod(ending)
    cluster.kill("kube-apiserver")
    assert hands.seen(going) == before
    with pytest.raises(Unreachable):
        hands.start(late)
    cluster.start_api_server()
    cluster.end(pod, 4)
    compact(cluster)
    hands.start(late)
    assert hands.until(ending, "exited").code == 4
    assert hands.until(going, "running") == before
    hands.until(late.run, "running")
    assert [len(hands.pods(run)) for run in (going, late.run)] == [1, 1]


def compact(cluster: KubeCluster) -> None:
    """Let etcd forget every version but the last."""
    version = cluster.call("GET", f"{WORK}/pods")["metadata"]["resourceVersion"]
    body = json.dumps({"revision": version}).encode()
    request = urllib.request.Request(f"{cluster.etcd_url}/v3/kv/compaction", body, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_a_server_says_so_where_it_forgot_a_version(hands: KubeHands, cluster: KubeCluster) -> None:
    run = hands.start(order())
    hands.until(run, "running")
    backend: Any = hands.backend

    async def follow_old() -> None:
        async for _ in backend._objects._pods._follow("1"):
            pass

    compact(cluster)
    with pytest.raises(Answered) as told:
        hands.do(follow_old())
    assert told.value.code == 410
    hands.until(run, "running")


# ---------------------------------------------------------------- files and output


def test_the_output_arrives_and_stays(hands: KubeHands, cluster: KubeCluster) -> None:
    """Also when the pod is gone."""
    cluster.output.write_text("".join(f"2026-01-01T00:00:0{at}Z stdout F line {at}\n" for at in range(3)))
    run = hands.start(order())
    pod = hands.until_pod(run)
    assert hands.until_output(run, b"line 2\n") == b"line 0\nline 1\nline 2\n"
    cluster.end(pod, 0)
    hands.until(run, "exited")
    cluster.call("DELETE", job_path(cluster, run), {"propagationPolicy": "Background"})
    assert hands.output(run) == b"line 0\nline 1\nline 2\n"
    parts = [hands.do(hands.backend.logs(run, offset, 4)) for offset in (0, 4, 99)]
    assert parts == [b"line", b" 0\nl", b""]


def test_a_working_directory_is_in_the_cluster_as_long_as_a_run_needs_it(
    hands: KubeHands, cluster: KubeCluster, packages: Path
) -> None:
    digest = pack(packages, {"big": bytes(range(256)) * 10, "main.py": b"print(1)"})
    content = (packages / f"{digest}.tar.gz").read_bytes()
    runs = [hands.start(ordered(new_launch(LASTS, NOWHERE, package=digest))) for _ in range(2)]
    pod = hands.until_pod(runs[0])
    sources = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "raysched-files")
    (source,) = sources["projected"]["sources"]
    path = f"{WORK}/configmaps/{source['configMap']['name']}"
    assert base64.b64decode(cluster.get(path)["binaryData"]["part"]) == content
    for run, left in zip(runs, (True, False), strict=True):
        hands.stop(run)
        hands.until(run, "exited")
        hands.do(hands.backend.forget(frozenset({run})))
        assert (cluster.get(path) is not None) == left


@pytest.mark.parametrize(("name", "said"), [("0" * 64, "can't be read"), ("bad", "is damaged")])
def test_a_package_that_can_not_be_used_is_refused_for_good(
    hands: KubeHands, packages: Path, name: str, said: str
) -> None:
    (packages / "bad.tar.gz").write_bytes(b"this is no archive")
    with pytest.raises(EngineRefused, match=said) as refused:
        hands.start(ordered(new_launch("true", NOWHERE, package=name)))
    assert refused.value.final
