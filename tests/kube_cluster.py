"""A real Kubernetes control plane for tests: etcd, API server, controller manager and scheduler, and the
KubeRay operator for who asks for it, with nodes and pods that KWOK makes up, on ports and in a folder of its
own, gone afterwards. No pod runs a process: a test says how one ends (`end`). `kube_stages.yaml` says what
the nodes do.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from engines import need
from running import free_ports, wait_until

HERE = Path(__file__).parent
TOOLS = HERE / "kube_tools.sh"
INSTALL = "make kube-tools, and apt-get install --no-install-recommends etcd-server"
RANGE = "10.77"
"""Addresses of pods and services. Nothing of it is ever connected to, but for a real node's pods."""
NODE_STAGES = ("node-initialize", "node-heartbeat-with-lease")


def tools() -> Path:
    """The folder of the programs, whether or not they are there."""
    done = subprocess.run([TOOLS, "--where"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _etcd() -> str:
    return shutil.which("etcd", path=f"{tools()}:{os.environ.get('PATH', os.defpath)}") or ""


class KubeError(Exception):
    """What the API server refused; `code` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class KubeCluster:
    """One control plane without nodes; `kubeconfig` is its administrator's. `address` is where the API server
    listens; a real node reaches only its link to this machine. Its controllers and its scheduler make at most
    `requests` a second each (None: as Kubernetes has it, 20 and 50)."""

    def __init__(self, address: str = "127.0.0.1", *, requests: int | None = None) -> None:
        self._address = address
        self._pace = [f"--kube-api-qps={requests}", f"--kube-api-burst={requests}"] if requests else []
        self.tools = tools()
        need((self.tools / "kwok").exists() and _etcd(), INSTALL)
        self.folder = Path(tempfile.mkdtemp(prefix="kube-", dir="/tmp"))
        self.kubeconfig = self.folder / "kubeconfig"
        self.output = self.folder / "output.log"
        """What each pod seems to have written."""
        self._first = free_ports(9)
        self._token = secrets.token_hex(16)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._make_files()
            self._start_all()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return f"https://{self._address}:{self._first}"

    @property
    def etcd_url(self) -> str:
        """Where its store listens."""
        return f"http://127.0.0.1:{self._first + 1}"

    # ------------------------------------------------------------ starting

    def _make_files(self) -> None:
        for name in ("log", "pki"):
            (self.folder / name).mkdir()
        self.output.write_bytes(b"")
        key = self.folder / "pki" / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        public = ["openssl", "rsa", "-in", key, "-pubout", "-out", key.with_suffix(".pub")]
        subprocess.run(public, check=True, capture_output=True)
        tokens = f"{self._token},admin,admin,system:masters\n"
        (self.folder / "pki" / "tokens.csv").write_text(tokens)
        self.kubeconfig.write_text(json.dumps(self._access()))
        own = (HERE / "kube_stages.yaml").read_text().replace("@OUTPUT@", str(self.output))
        stages = yaml.safe_load_all((self.tools / "kwok-stages.yaml").read_text())
        kept = [stage for stage in stages if stage["metadata"]["name"] in NODE_STAGES]
        (self.folder / "stages.yaml").write_text(f"{yaml.safe_dump_all(kept)}---\n{own}")

    def _access(self) -> dict[str, Any]:
        authority = str(self.folder / "pki" / "apiserver.crt")
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "test", "cluster": {"server": self.url, "certificate-authority": authority}}
            ],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }

    def _start_all(self) -> None:
        port, pki = self._first, self.folder / "pki"
        store, peers = self.etcd_url, f"http://127.0.0.1:{port + 2}"
        self._start(
            _etcd(),
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={store}",
            f"--advertise-client-urls={store}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self.start_api_server()
        self._start_program(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={port + 3}",
            f"--cert-dir={pki}/manager",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/apiserver.crt",
            *self._pace,
        )
        self._start_program(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={port + 4}",
            f"--cert-dir={pki}/scheduler",
            *self._pace,
        )
        self._start_program(
            "kwok",
            f"--kubeconfig={self.kubeconfig}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-ip=127.0.0.1",
            f"--node-port={port + 5}",
            f"--server-address=127.0.0.1:{port + 5}",
            f"--cidr={RANGE}.64.0/18",
            "--node-lease-duration-seconds=10",
            f"--config={self.folder}/stages.yaml",
        )
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_until(lambda: self.get(account) is not None, "the controllers run", 60)

    def start_api_server(self) -> None:
        """Start the API server, and wait until it answers."""
        pki = self.folder / "pki"
        self._start_program(
            "kube-apiserver",
            f"--etcd-servers={self.etcd_url}",
            f"--secure-port={self._first}",
            f"--bind-address={self._address}",
            f"--advertise-address={RANGE}.255.1",
            f"--cert-dir={pki}",
            f"--service-cluster-ip-range={RANGE}.128.0/20",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={pki}/tokens.csv",
            "--authorization-mode=RBAC",
            "--feature-gates=WatchList=false",  # Debian's etcd tells no progress of a watch
            "--kubelet-preferred-address-types=InternalIP",
        )
        wait_until(self._is_ready, "the API server is ready", 120)

    def _is_ready(self) -> bool:
        assert self._running["kube-apiserver"].poll() is None, self._log("kube-apiserver")
        try:
            return self._send("GET", "/readyz") == b"ok"
        except (OSError, KubeError):
            return False

    def _start_program(self, name: str, *options: str) -> None:
        self._start(str(self.tools / name), *options)

    def _start(self, program: str, *options: str, **variables: str) -> None:
        name = Path(program).name
        with open(self.folder / "log" / name, "ab") as log:
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", program, *options],  # nothing outlives tests that are killed
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **variables},
                start_new_session=True,
            )

    def _log(self, name: str) -> str:
        return (self.folder / "log" / name).read_text(errors="replace")[-3000:]

    def add_ray(self, proxy: str | None = None) -> None:
        """Have it run RayJobs: the operator asks each Ray by this HTTP proxy (`raysched.testing`), or, where
        that is a real one, through the API server."""
        need((self.tools / "ray-crds.yaml").exists(), INSTALL)
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for crd in (self.tools / "ray-crds.yaml").read_bytes().split(b"---\n")[1:]:
            self._send("POST", crds, crd, "application/yaml")
        for kind in ("rayclusters", "rayjobs", "rayservices"):
            wait_until(
                lambda kind=kind: self.get(f"/apis/ray.io/v1/{kind}") is not None, f"{kind} are there", 60
            )
        self._ray_proxy = proxy
        self.start_operator()

    def start_operator(self) -> None:
        """Start the KubeRay operator."""
        port = self._first + 6
        way = ("--use-kubernetes-proxy",) if self._ray_proxy is None else ()
        self._start(
            str(self.tools / "ray-operator"),
            f"--metrics-addr=127.0.0.1:{port}",
            f"--health-probe-bind-address=127.0.0.1:{port + 1}",
            "--enable-leader-election=false",
            *way,
            KUBECONFIG=str(self.kubeconfig),
            HTTP_PROXY=self._ray_proxy or "",
        )
        wait_until(lambda: _answers(f"http://127.0.0.1:{port + 1}/readyz"), "KubeRay is ready", 120)

    # ------------------------------------------------------------ ending

    def kill(self, name: str) -> None:
        """kill -9 one of its programs."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """End it; nothing of it is left."""
        for name in reversed(list(self._running)):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------ what tests do with it

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """An answer of the API server. Raises KubeError."""
        return json.loads(self._send(method, path, None if body is None else json.dumps(body).encode(), kind))

    def _send(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", body, method=method)
        request.add_header("Authorization", f"Bearer {self._token}")
        request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.trusted()) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise KubeError(error.code, error.read().decode(errors="replace")) from None

    def trusted(self) -> ssl.SSLContext:
        """What trusts the API server."""
        return ssl.create_default_context(cafile=str(self.folder / "pki" / "apiserver.crt"))

    def get(self, path: str) -> Any:
        """An object or a list; None where it is not there."""
        try:
            return self.call("GET", path)
        except KubeError as error:
            if error.code != 404:
                raise
            return None

    def items(self, path: str) -> list[Any]:
        """The objects of a list."""
        return self.call("GET", path)["items"]

    def patch(self, path: str, body: Any) -> Any:
        """Merge `body` into an object."""
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def add_node(
        self,
        name: str,
        resources: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        taints: list[dict[str, str]] | None = None,
    ) -> None:
        """Add a made-up node, and wait until it is ready."""
        room = {"cpu": "16", "memory": "64Gi", "pods": "1000", **(resources or {})}
        fake = {"kwok.x-k8s.io/node": "fake"}
        told = {"kubernetes.io/hostname": name, **(labels or {})}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": told, "annotations": fake},
            "spec": {"taints": taints or []},
            "status": {"capacity": room, "allocatable": room},
        }
        self.call("POST", "/api/v1/nodes", node)
        wait_until(lambda: is_ready(self.get(f"/api/v1/nodes/{name}")), f"node {name} is ready", 60)

    def delete_node(self, name: str) -> None:
        """Take a node away."""
        self.call("DELETE", f"/api/v1/nodes/{name}")

    @contextmanager
    def node(self, name: str, **fields: Any) -> Generator[None]:
        """A node (`add_node`), gone afterwards."""
        self.add_node(name, **fields)
        try:
            yield
        finally:
            self.delete_node(name)

    @contextmanager
    def made(self, *things: tuple[str, Any]) -> Generator[None]:
        """Objects at their paths, gone afterwards."""
        done: list[str] = []
        try:
            for path, thing in things:
                self.call("POST", path, thing)
                done.append(f"{path}/{thing['metadata']['name']}")
            yield
        finally:
            for path in reversed(done):
                self.call("DELETE", path)

    def add_namespace(self, name: str) -> None:
        """Make a namespace, and wait until pods can run in it."""
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda: self.get(account) is not None, f"namespace {name} is ready", 60)

    def pods(self, namespace: str) -> list[Any]:
        """The pods of a namespace."""
        return self.items(f"/api/v1/namespaces/{namespace}/pods")

    def jobs(self, namespace: str) -> list[Any]:
        """The Jobs of a namespace."""
        return self.items(f"/apis/batch/v1/namespaces/{namespace}/jobs")

    def end(self, pod: Any, code: int, reason: str = "") -> None:
        """Let a pod's containers end with this exit code."""
        told = {"raysched.test/exit": str(code), **({"raysched.test/reason": reason} if reason else {})}
        where = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self.patch(where, {"metadata": {"annotations": told}})


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def is_ready(node: Any) -> bool:
    """Whether a node, None where there is none, runs pods."""
    conditions = node["status"].get("conditions", []) if node else []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
