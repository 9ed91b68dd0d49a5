"""What the real KubeRay operator makes of Ray jobs, whatever happens to it and to their objects. No Ray runs:
`RayDashboard` answers KubeRay, and the tests do what the pods would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kube_cluster import KubeCluster
from orders import NAMESPACE, SOON, KubeHands, ordered
from running import wait_until
from test_kube_backend import GPU, Dies

from raysched.backends.base import Backend, EngineRefused
from raysched.backends.kube.cluster import Access
from raysched.core.commands import Placed
from raysched.core.site import NOWHERE
from raysched.core.work import Launch, Run
from raysched.errors import Unreachable
from raysched.testing import RayDashboard
from raysched.testing.conformance import new_launch

RAY = f"/apis/ray.io/v1/namespaces/{NAMESPACE}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
LONG = 120


def order(**fields: Any) -> Launch:
    return ordered(new_launch("python train.py", NOWHERE), ray=True, **fields)


def pods(hands: KubeHands, run: Run, role: str = "") -> list[Any]:
    """The pods of a run that are not being deleted."""
    found = [pod for pod in hands.pods(run) if "deletionTimestamp" not in pod["metadata"]]
    return [pod for pod in found if role in ("", pod["metadata"]["labels"]["raysched.io/role"])]


def rayjob(hands: KubeHands, run: Run) -> Any:
    (found,) = [job for job in hands.cluster.items(f"{RAY}/rayjobs") if of_run(job, run)]
    return found


def of_run(thing: Any, run: Run) -> bool:
    return (thing["metadata"].get("annotations") or {}).get("raysched.io/run") == str(run)


def begun(hands: KubeHands, dashboard: RayDashboard, run: Run) -> Any:
    """The submitter of a run that runs, whose driver has begun."""
    hands.until(run, "running")
    dashboard.begin(rayjob(hands, run)["metadata"]["name"])
    (submitter,) = pods(hands, run, "submitter")
    return submitter


def drives(hands: KubeHands, dashboard: RayDashboard, run: Run, code: int) -> None:
    """Let the driver of a run end, and then its submitter."""
    submitter = begun(hands, dashboard, run)
    dashboard.end(rayjob(hands, run)["metadata"]["name"], code)
    hands.cluster.end(submitter, 0)


def nothing_is_left(hands: KubeHands, run: Run, name: str) -> None:
    def gone() -> bool:
        rays = [ray for ray in hands.cluster.items(f"{RAY}/rayclusters") if name in ray["metadata"]["name"]]
        return not rays and not [
            pod for pod in hands.pods(run) if pod["status"]["phase"] in ("Pending", "Running")
        ]

    wait_until(gone, f"nothing of {run} is left", LONG)


@contextmanager
def without_operator(cluster: KubeCluster) -> Iterator[None]:
    cluster.kill("ray-operator")
    try:
        yield
    finally:
        cluster.start_operator()


def test_without_kuberay_it_is_said_how_to_get_it(refused: EngineRefused) -> None:
    assert refused.final
    assert "needs the KubeRay operator" in refused.reason


def test_a_ray_job_ends_as_its_driver_does(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    """On as many pods as it has nodes, with what it writes, and nothing of its Ray stays."""
    kuberay.output.write_text("2026-01-01T00:00:00Z stdout F epoch 1\n")
    runs = {code: hands.start(order(nodes=2 if code else 1)) for code in (0, 3, -9)}
    for run in runs.values():
        begun(hands, dashboard, run)
    assert [len(pods(hands, run, "worker")) for run in runs.values()] == [0, 1, 1]
    assert [len(pods(hands, run, "head")) for run in runs.values()] == [1, 1, 1]
    names = {run: rayjob(hands, run)["metadata"]["name"] for run in runs.values()}
    for code, run in runs.items():
        drives(hands, dashboard, run, code)
    for code, run in runs.items():
        seen = hands.until(run, "exited")
        assert seen.code == {0: 0, 3: 3, -9: 137}[code]
        assert seen.started is not None
        assert seen.ended is not None
        assert hands.output(run) == b"epoch 1\n"
        nothing_is_left(hands, run, names[run])
    hands.do(hands.backend.forget(frozenset(runs.values())))
    wait_until(
        lambda: (
            not [job for job in kuberay.items(f"{RAY}/rayjobs") if job["metadata"]["name"] in names.values()]
        ),
        "KubeRay lets go of them",
        LONG,
    )


def test_the_ledger_learns_where_head_and_workers_are(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    """Not the pod that only submits. Who wants to get in gets into the head."""
    with kuberay.node("two", resources={GPU: "2"}):
        run = hands.start(order(nodes=2, kind="gpu", count=1, resource=GPU, share=10_000))
        begun(hands, dashboard, run)
        told = hands.do(hands.backend.mirror())  # type: ignore[attr-defined]
        (placed,) = [command for command in told if isinstance(command, Placed)]
        assert placed.lease == f"{run.job}.{run.attempt}"
        assert [(place.node, len(place.slices)) for place in placed.places] == [("two", 1), ("two", 1)]
        assert len({slice.gpu for place in placed.places for slice in place.slices}) == 2
        (head,) = pods(hands, run, "head")
        way_in = hands.backend.way_in(run)  # type: ignore[attr-defined]
        assert way_in == f"kubectl exec -it -n {NAMESPACE} {head['metadata']['name']} -c main -- sh"
        hands.stop(run)
        hands.until(run, "exited")


def test_a_ray_job_that_is_stopped_ends_with_all_its_pods(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    """Whether or not KubeRay runs: what it can do, raysched does too."""
    late, early = hands.start(order(nodes=2)), hands.start(order())
    for run in (late, early):
        begun(hands, dashboard, run)
    names = {run: rayjob(hands, run)["metadata"]["name"] for run in (late, early)}
    hands.stop(early)
    assert hands.until(early, "exited").code == 143
    nothing_is_left(hands, early, names[early])
    with without_operator(kuberay):
        hands.stop(late)
        assert hands.until(late, "exited").code == 143
        nothing_is_left(hands, late, names[late])


def test_a_rayjob_that_is_deleted_by_hand_is_lost_and_never_made_again(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    """Also where KubeRay is down, and so nobody else ends its pods."""
    first, second = order(), order()
    for launch in (first, second):
        hands.start(launch)
        begun(hands, dashboard, launch.run)
    names = {launch.run: rayjob(hands, launch.run)["metadata"]["name"] for launch in (first, second)}
    kuberay.call("DELETE", f"{RAY}/rayjobs/{names[first.run]}")
    assert "deleted in Kubernetes, not by raysched" in hands.until(first.run, "lost").reason
    with without_operator(kuberay):
        kuberay.call("DELETE", f"{RAY}/rayjobs/{names[second.run]}")
        hands.until(second.run, "lost")
        nothing_is_left(hands, second.run, names[second.run])
    for launch in (first, second):
        nothing_is_left(hands, launch.run, names[launch.run])
        hands.start(launch)
        assert hands.until(launch.run, "lost")
        assert not pods(hands, launch.run)


def test_a_ray_job_waits_for_an_operator_that_is_down(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    with without_operator(kuberay):
        run = hands.start(order())
        assert hands.until_reason(run, "waits for the KubeRay operator").state == "queued"
    drives(hands, dashboard, run, 0)
    assert hands.until(run, "exited").code == 0


def test_a_ray_job_whose_head_is_evicted_was_taken_away(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    """KubeRay would make another head; the driver is gone with the first, and is started only once."""
    evicted, killed = hands.start(order()), hands.start(order())
    for run in (evicted, killed):
        begun(hands, dashboard, run)
    names = {run: rayjob(hands, run)["metadata"]["name"] for run in (evicted, killed)}
    (head,) = pods(hands, evicted, "head")
    name = head["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    kuberay.call("POST", f"{PODS}/{name}/eviction", eviction)
    kuberay.end(pods(hands, killed, "head")[0], 137, "OOMKilled")
    assert "EvictionByEvictionAPI" in hands.until(evicted, "taken").reason
    assert "the head of its Ray ended: ran out of memory" in hands.until(killed, "lost").reason
    for run in (evicted, killed):
        nothing_is_left(hands, run, names[run])


def test_a_ray_job_whose_heads_node_dies_was_taken_away(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    """Once Kubernetes has waited long enough for the node."""
    with kuberay.node("doomed", labels={"doomed": "yes"}):
        run = hands.start(order(node_selector={"doomed": "yes"}, pod={"tolerations": [SOON]}))
        begun(hands, dashboard, run)
        name = rayjob(hands, run)["metadata"]["name"]
        seen = hands.until_node_is_lost(run, "doomed")
        assert "from doomed (DeletionByTaintManager)" in seen.reason
        nothing_is_left(hands, run, name)


def test_a_ray_job_that_others_stop_is_told_so(
    hands: KubeHands, kuberay: KubeCluster, dashboard: RayDashboard
) -> None:
    suspended, stopped = hands.start(order()), hands.start(order())
    for run in (suspended, stopped):
        submitter = begun(hands, dashboard, run)
    dashboard.stop(rayjob(hands, stopped)["metadata"]["name"])
    kuberay.end(submitter, 0)
    name = rayjob(hands, suspended)["metadata"]["name"]
    kuberay.patch(f"{RAY}/rayjobs/{name}", {"spec": {"suspend": True}})
    assert "suspended in Kubernetes" in hands.until(suspended, "taken").reason
    assert "stopped in Ray, not by raysched" in hands.until(stopped, "lost").reason
    nothing_is_left(hands, suspended, name)


def test_a_full_quota_lets_a_ray_job_wait(hands: KubeHands, kuberay: KubeCluster) -> None:
    quotas = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas"
    kuberay.call("POST", quotas, {"metadata": {"name": "few"}, "spec": {"hard": {"requests.memory": "1Gi"}}})
    try:
        full = lambda: (kuberay.get(f"{quotas}/few") or {}).get("status", {}).get("hard")  # noqa: E731
        wait_until(full, "the quota counts", LONG)
        run = hands.start(order(memory=2048))
        hands.until_reason(run, "quota is full", "requests.memory")
    finally:
        kuberay.call("DELETE", f"{quotas}/few")
    hands.stop(run)
    hands.until(run, "exited")


def test_a_ray_job_starts_once_wherever_its_start_is_cut_off(
    make: Callable[..., Backend], access: Access, kuberay: KubeCluster
) -> None:
    hands = KubeHands(make, kuberay)
    runs: list[Run] = []
    for after, made in ((0, True), (1, False), (1, True), (2, True), (3, True)):
        launch = order()
        dying = make(Dies(access, after, made=made))
        with suppress(Unreachable):
            hands.do(dying.start(launch))
        hands.do(dying.close())
        hands.restart()
        hands.start(launch)
        hands.start(launch)
        runs.append(launch.run)
    for run in runs:
        hands.until(run, "running")
        assert [len(pods(hands, run, role)) for role in ("head", "submitter")] == [1, 1]
        hands.stop(run, 0)
    hands.close()
