"""Jobs and Ray jobs with a real Kueue, its admission webhooks included, on a real control plane with the real
KubeRay; too long to build for the suite. It wants root, Go, and no Kueue under /etc.

python tests/backends/on_kube/kueue_proof.py [FOLDER]    what was built is kept in FOLDER: it takes minutes
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from kube_cluster import KubeCluster  # noqa: E402
from orders import NAMESPACE, KubeHands, ordered  # noqa: E402
from running import free_ports, wait_until  # noqa: E402

from raysched.backends.kube.backend import KubeBackend  # noqa: E402
from raysched.backends.kube.cluster import Access, Cluster  # noqa: E402
from raysched.core.site import NOWHERE  # noqa: E402
from raysched.core.work import Launch, Run  # noqa: E402
from raysched.testing import RayDashboard  # noqa: E402
from raysched.testing.conformance import new_launch  # noqa: E402

VERSION = "v0.15.2"
API = "kueue.x-k8s.io/v1beta2"
GROUP = f"/apis/{API}"
SETTINGS = Path("/etc/kueue")
"""Where Kueue wants the certificate of its metrics."""
RAYJOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
LIMIT = 120


def built(folder: Path) -> tuple[Path, Path]:
    """Kueue's program and its sources."""
    folder.mkdir(parents=True, exist_ok=True)
    module = f"sigs.k8s.io/kueue@{VERSION}"
    told = subprocess.run(["go", "mod", "download", "-json", module], check=True, capture_output=True)
    source = folder / "source"
    shutil.copytree(json.loads(told.stdout)["Dir"], source, dirs_exist_ok=True)
    program = folder / "kueue"
    variables = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=mod"}
    subprocess.run(["chmod", "-R", "u+w", source], check=True)
    build = ["go", "build", "-trimpath", "-o", program, "./cmd/kueue"]
    subprocess.run(build, check=True, cwd=source, env=variables)
    return program, source


def add_kinds(cluster: KubeCluster, source: Path) -> None:
    """Kueue's kinds, of the version that it works with alone: none is translated."""
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for file in sorted((source / "config/components/crd/bases").glob("*.yaml")):
        crd = yaml.safe_load(file.read_text())
        (kept,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1beta2"]
        crd["spec"]["versions"] = [{**kept, "storage": True, "served": True}]
        cluster.call("POST", crds, crd)
        path = f"{GROUP}/{crd['spec']['names']['plural']}"
        wait_until(lambda path=path: cluster.get(path) is not None, f"{path} is there", LIMIT)


def add_hooks(cluster: KubeCluster, url: str, authority: bytes) -> None:
    """Kueue has its say whenever a Job is made or changed."""
    hooks = "/apis/admissionregistration.k8s.io/v1"
    bundle = base64.b64encode(authority).decode()
    for group, kinds, kind in (
        ("batch", "jobs", "job"),
        ("ray.io", "rayjobs", "rayjob"),
        ("ray.io", "rayclusters", "raycluster"),
    ):
        for verb, name, when in (
            ("mutate", "Mutating", ["CREATE"]),
            ("validate", "Validating", ["CREATE", "UPDATE"]),
        ):
            path = f"/{verb}-{group.replace('.', '-')}-v1-{kind}"
            rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": when, "resources": [kinds]}
            hook = {
                "name": f"{verb}.{kind}.kb.io",
                "clientConfig": {"url": f"{url}{path}", "caBundle": bundle},
                "rules": [rule],
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
            body = {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": f"{name}WebhookConfiguration",
                "metadata": {"name": f"kueue-{verb}-{kind}"},
                "webhooks": [hook],
            }
            cluster.call("POST", f"{hooks}/{name.lower()}webhookconfigurations", body)


@contextmanager
def kueue(cluster: KubeCluster, program: Path, source: Path) -> Generator[None]:
    """Kueue runs, with a queue of 3 CPUs."""
    add_kinds(cluster, source)
    certificates = SETTINGS / "metrics" / "certs"
    certificates.mkdir(parents=True)
    try:
        key, certificate = certificates / "tls.key", certificates / "tls.crt"
        made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kueue")
        named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
        subprocess.run([*made, *named], check=True, capture_output=True)
        port = free_ports(3)
        settings = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": "kueue-system",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{port}"},
            "metrics": {"bindAddress": f"127.0.0.1:{port + 1}"},
            "webhook": {"host": "127.0.0.1", "port": port + 2, "certDir": str(certificates)},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "integrations": {"frameworks": ["batch/job", "ray.io/rayjob", "ray.io/raycluster"]},
        }
        file = cluster.folder / "kueue.yaml"
        file.write_text(yaml.safe_dump(settings))
        log = cluster.folder / "kueue.log"
        with open(log, "wb") as writes:
            running = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=KILL", program, f"--config={file}"),
                    "--feature-gates=VisibilityOnDemand=false",
                ],
                stdin=subprocess.DEVNULL,
                stdout=writes,
                stderr=writes,
                env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
            )

        def ready() -> bool:
            assert running.poll() is None, log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False

        try:
            wait_until(ready, "Kueue is ready", LIMIT)
            add_hooks(cluster, f"https://127.0.0.1:{port + 2}", certificate.read_bytes())
            add_queue(cluster)
            yield
        finally:
            running.kill()
            running.wait()
    finally:
        shutil.rmtree(SETTINGS)


def add_queue(cluster: KubeCluster) -> None:
    """The queue of our jobs."""
    quotas = [{"name": "cpu", "nominalQuota": "3"}, {"name": "memory", "nominalQuota": "64Gi"}]
    flavors = [{"name": "usual", "resources": quotas}]
    groups = [{"coveredResources": ["cpu", "memory"], "flavors": flavors}]
    for path, kind, name, spec in (
        ("resourceflavors", "ResourceFlavor", "usual", {}),
        ("clusterqueues", "ClusterQueue", "all", {"namespaceSelector": {}, "resourceGroups": groups}),
        (f"namespaces/{NAMESPACE}/localqueues", "LocalQueue", "team-a", {"clusterQueue": "all"}),
    ):
        body = {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}
        cluster.call("POST", f"{GROUP}/{path}", body)


class Proof:
    """What is done with the backend, and what has to come of it."""

    def __init__(self, cluster: KubeCluster, dashboard: RayDashboard) -> None:
        self.cluster, self.dashboard = cluster, dashboard
        access = Access(str(cluster.kubeconfig), namespace=NAMESPACE)
        runs = cluster.folder / "runs"
        runs.mkdir()

        def make() -> KubeBackend:
            return KubeBackend(Cluster(access), "f" * 12, runs, runs, kueue={"default": "team-a"})

        self.hands = KubeHands(make, cluster)

    def start(self, *, nodes: int = 1, ray: bool) -> Run:
        launch: Launch = new_launch("python train.py", NOWHERE)
        options = {"ray": True} if ray else {}
        return self.hands.start(ordered(launch, cpus=10_000, memory=1024, nodes=nodes, **options))

    def drain(self, on: bool) -> None:
        """Have Kueue take away whatever runs, or let go again."""
        policy = {"spec": {"stopPolicy": "HoldAndDrain" if on else "None"}}
        self.cluster.patch(f"{GROUP}/clusterqueues/all", policy)

    def object(self, run: Run) -> Any:
        """The RayJob of a run."""
        found = self.cluster.items(RAYJOBS)
        of = (job["metadata"]["annotations"]["raysched.io/run"] for job in found)
        return next((job for job, one in zip(found, of, strict=True) if one == str(run)), None)

    def one_waits_for_the_other(self) -> Run:
        """The second Ray job waits for room, with Kueue's reason; it runs when the first has ended."""
        first, second = self.start(nodes=2, ray=True), self.start(nodes=2, ray=True)
        self.hands.until(first, "running")
        print(self.hands.until_reason(second, "waits in Kueue: ", "insufficient").reason)
        name = self.object(first)["metadata"]["name"]
        self.dashboard.begin(name)
        pods = self.hands.pods(first)
        (submitter,) = [pod for pod in pods if pod["metadata"]["labels"]["raysched.io/role"] == "submitter"]
        self.dashboard.end(name, 0)
        self.cluster.end(submitter, 0)
        assert self.hands.until(first, "exited").code == 0
        self.hands.until(second, "running")
        return second

    def taken_unseen(self, run: Run) -> None:
        """Kueue takes a Ray job back while nobody looks on, and is not given it a second time."""
        self.hands.do(self.hands.backend.close())
        self.drain(True)
        wait_until(lambda: self.object(run)["spec"].get("suspend"), "it is suspended", LIMIT)
        self.hands.restart()
        print(self.hands.until(run, "taken").reason)
        self.drain(False)
        wait_until(lambda: self.object(run) is None, "it is gone", LIMIT)

    def taken_and_stopped(self, *, ray: bool) -> None:
        """A job that Kueue takes back is taken away; one that is stopped is let go no second time."""
        taken = self.start(ray=ray)
        self.hands.until(taken, "running")
        self.drain(True)
        print(self.hands.until(taken, "taken").reason)
        self.drain(False)
        stopped = self.start(ray=ray)
        self.hands.until(stopped, "running")
        self.hands.stop(stopped, grace=1)
        assert self.hands.until(stopped, "exited").code == 143
        for run in (taken, stopped):
            wait_until(lambda run=run: not self._goes_on(run), f"nothing of {run} is left", LIMIT)

    def _goes_on(self, run: Run) -> bool:
        return any(pod["status"]["phase"] in ("Pending", "Running") for pod in self.hands.pods(run))


def main() -> None:
    """All of it."""
    cache = Path(sys.argv[1]) if sys.argv[1:] else Path.home() / ".cache" / "raysched" / f"kueue-{VERSION}"
    program, source = built(cache)
    cluster, dashboard = KubeCluster(), RayDashboard()
    try:
        cluster.add_node("plain")
        cluster.add_namespace(NAMESPACE)
        cluster.add_ray(dashboard.url)
        with kueue(cluster, program, source):
            proof = Proof(cluster, dashboard)
            proof.taken_unseen(proof.one_waits_for_the_other())
            for ray in (True, False):
                proof.taken_and_stopped(ray=ray)
            proof.hands.close()
    finally:
        cluster.close()
        dashboard.close()
    print(f"Kueue {VERSION}: as it should be")


if __name__ == "__main__":
    main()
