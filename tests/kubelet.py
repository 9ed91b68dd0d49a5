"""A real node for a control plane of the tests: containerd and a kubelet that run real pods, with made-up
devices.

All of it is in a mount, a pid and a network namespace of its own, which a pair of interfaces joins to this
machine: with their first process the pods go, and all mounts, addresses and rules. Only empty cgroups would
stay.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from engines import need
from kube_cluster import INSTALL, RANGE, KubeCluster, is_ready, tools
from pod_image import IMAGE, PAUSE, pack, runtime_spec, write_pause, write_root
from running import wait_until

HERE = Path(__file__).parent
NODE = "real-1"
PROGRAMS = ("containerd", "ctr", "runc", "catatonit", "ip", "nsenter", "wget")
PLUGINS = Path("/usr/lib/cni")
PACKAGES = "apt-get install containerd runc containernetworking-plugins catatonit iproute2 wget"
LONG = 120
APART = "--mount --propagation private --net --pid --fork --kill-child --mount-proc"
"""What `unshare` is told. Its child ends with it, and it with us."""
INIT = """\
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mount -t tmpfs tmpfs /var/lib
mkdir -p /run/netns /var/lib/kubelet
mount --bind {folder}/kubelet /var/lib/kubelet
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
touch {folder}/begun
while :; do sleep 3600; done
"""
"""Bash reaps what it did not start itself."""
CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "/run/containerd"
[grpc]
address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{folder}/spec.json"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{folder}/cni"
"""


def why_none() -> str:
    """Why this machine can't run a kubelet; empty where it can: whether runc runs a container with a limit of
    memory in namespaces of its own."""
    if os.geteuid() != 0:
        return "a kubelet runs as root only"
    name = f"raysched-probe-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir="/tmp"))
    try:
        write_root(folder / "rootfs")
        spec = runtime_spec()
        spec["process"]["args"] = ["/bin/true"]
        spec["linux"]["cgroupsPath"] = f"/{name}/container"
        spec["linux"]["resources"] = {"memory": {"limit": 2**26}}
        (folder / "config.json").write_text(json.dumps(spec))
        script = f"mount --make-rshared / && mount -t tmpfs tmpfs /run && runc run --bundle {folder} {name}"
        done = subprocess.run(
            ["unshare", *APART.split(), "sh", "-c", script],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=LONG,
        )
        return "" if done.returncode == 0 else f"runc runs no container here: {done.stderr.decode().strip()}"
    finally:
        _remove_cgroups(f"{name}/container")
        shutil.rmtree(folder, ignore_errors=True)


class RealNode:
    """The node `real-1`, not yet part of a cluster. `address` is where it finds this machine."""

    def __init__(self) -> None:
        need((tools() / "kubelet").exists(), INSTALL)
        need(all(map(shutil.which, PROGRAMS)) and PLUGINS.is_dir(), PACKAGES)
        if reason := why_none():
            pytest.skip(f"this machine can run no kubelet: {reason}")
        self.folder = Path(tempfile.mkdtemp(prefix="node-", dir="/tmp"))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in ("kubelet", "cni", "log", "images"):
                (self.folder / name).mkdir()
            self._start_apart()
            self._join_networks()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ apart from this machine

    def _start_apart(self) -> None:
        (self.folder / "init.sh").write_text(INIT.format(folder=self.folder))
        self._apart = self._popen("init", "unshare", *APART.split(), "bash", str(self.folder / "init.sh"))
        wait_until((self.folder / "begun").exists, "its namespaces are there", LONG)
        children = Path(f"/proc/{self._apart.pid}/task/{self._apart.pid}/children").read_text()
        self._init = int(children.split()[0])

    def _join_networks(self) -> None:
        """By interfaces and addresses that nobody else has."""
        number = next(number for number in range(64) if self._linked(f"rskube{number}"))
        self._link = f"rskube{number}"
        self.address, self._own = f"{RANGE}.{number}.253", f"{RANGE}.{number}.254"
        self._pods = f"{RANGE}.{number}.0/25"
        for words in (
            f"ip addr add {self.address}/30 dev {self._link}",
            f"ip link set {self._link} up",
        ):
            subprocess.run(words.split(), check=True)
        for words in (
            f"ip addr add {self._own}/30 dev out",
            "ip link set out up",
            f"ip route add default via {self.address}",
        ):
            subprocess.run(["nsenter", "-t", str(self._init), "-n", *words.split()], check=True)
        subprocess.run(f"ip route add {self._pods} via {self._own}".split(), check=True)

    def _linked(self, link: str) -> bool:
        words = f"ip link add {link} type veth peer name out netns {self._init}"
        done = subprocess.run(words.split(), check=False, capture_output=True)
        assert done.returncode == 0 or b"File exists" in done.stderr, done.stderr
        return done.returncode == 0

    def _popen(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "log" / name, "ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command],  # nothing outlives tests that are killed
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def _start(self, name: str, *command: str) -> None:
        """Start a program in it."""
        inside = ["nsenter", "-t", str(self._init), "-m", "-n", "-p", *command]
        self._running[name] = self._popen(name, *inside)

    def _ctr(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = ["ctr", "-a", f"{self.folder}/containerd.sock", "-n", "k8s.io", *words]
        return subprocess.run(command, check=False, capture_output=True)

    # ------------------------------------------------------------ part of a cluster

    def join(self, cluster: KubeCluster, labels: Mapping[str, str]) -> None:
        """Become a node of a cluster, with these labels."""
        self.cluster = cluster
        self._write_files()
        self._start("containerd", "containerd", "--config", str(self.folder / "containerd.toml"))
        wait_until(lambda: self._ctr("version").returncode == 0, "containerd is ready", LONG)
        for image in (self.folder / "images").iterdir():
            done = self._ctr("images", "import", str(image))
            assert done.returncode == 0, done.stderr
        self._start("dns", sys.executable, str(HERE / "kube_dns.py"), self._own, str(cluster.kubeconfig))
        told = ",".join(f"{key}={value}" for key, value in labels.items())
        self._start(
            "kubelet",
            str(tools() / "kubelet"),
            f"--config={self.folder}/kubelet.yaml",
            f"--kubeconfig={cluster.kubeconfig}",
            f"--hostname-override={NODE}",
            f"--node-ip={self._own}",
            f"--node-labels={told}",
        )

    def offer(self, devices: Mapping[str, list[str]]) -> None:
        """Have a device plugin that offers these, by resource; returns when the node says so."""
        if (before := self._running.pop("device-plugin", None)) is not None:
            before.kill()
            before.wait()
        words = [f"{resource}={','.join(ids)}" for resource, ids in devices.items()]
        self._start("device-plugin", sys.executable, str(HERE / "device_plugin.py"), *words)

        def offered() -> bool:
            assert all(process.poll() is None for process in self._running.values()), "a program ended"
            node = self.cluster.get(f"/api/v1/nodes/{NODE}")
            room = (node or {}).get("status", {}).get("allocatable", {})
            there = {resource: int(room.get(resource, 0)) for resource in devices}
            return is_ready(node) and there == {resource: len(ids) for resource, ids in devices.items()}

        try:
            wait_until(offered, f"{NODE} offers its devices", LONG)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from None

    def said(self) -> str:
        """The last lines that its programs wrote."""
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)

    def _write_files(self) -> None:
        folder = self.folder
        write_root(folder / "rootfs")
        write_pause(folder / "pause")
        pack(IMAGE, folder / "rootfs", ["/bin/bash"], folder / "images" / "ray.tar")
        pack(PAUSE, folder / "pause", ["/pause", "-P"], folder / "images" / "pause.tar")
        (folder / "spec.json").write_text(json.dumps(runtime_spec()))
        toml = CONTAINERD.format(folder=folder, pause=PAUSE, plugins=PLUGINS)
        (folder / "containerd.toml").write_text(toml)
        addresses = {
            "type": "host-local",
            "dataDir": f"{folder}/addresses",
            "ranges": [[{"subnet": self._pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": addresses}]}
        (folder / "cni" / "pods.conflist").write_text(json.dumps(network))
        (folder / "resolv.conf").write_text(f"nameserver {self._own}\n")
        (folder / "kubelet.yaml").write_text(json.dumps(self._kubelet()))

    def _kubelet(self) -> dict[str, object]:
        """Its configuration: it may be told what to do by this machine alone, which only its link reaches."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self._own,
            "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{self.folder}/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "failCgroupV1": False,
            "oomScoreAdj": 0,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "clusterDNS": [self._own],
            "clusterDomain": "cluster.local",
            "resolvConf": f"{self.folder}/resolv.conf",
            "volumePluginDir": f"{self.folder}/volumes",
            "nodeStatusUpdateFrequency": "2s",
        }

    # ------------------------------------------------------------ ending

    def close(self) -> None:
        """Switch it off; nothing of it is left."""
        if hasattr(self, "_apart"):
            with suppress(ProcessLookupError):
                os.killpg(self._apart.pid, signal.SIGKILL)
            for process in (self._apart, *self._running.values()):
                process.kill()
                process.wait()
            wait_until(lambda: not Path(f"/sys/class/net/{self._link}").exists(), "its link is gone", LONG)
            ran = self.folder.glob("containerd/io.containerd.runtime.*/k8s.io/*")
            groups = ["k8s.io/none", *(f"k8s.io/{container.name}" for container in ran)]
            _remove_cgroups(*groups)
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove_cgroups(*names: str) -> None:
    """Remove these groups, whose processes are gone or about to go, of all hierarchies, and those above them
    that are empty then."""

    def gone() -> bool:
        left = [group for name in names for group in Path("/sys/fs/cgroup").glob(f"**/{name}")]
        for group in left:
            with suppress(OSError):
                group.rmdir()
        return not left

    wait_until(gone, f"the cgroups {names} are gone", LONG)
    for above in {Path(name).parent for name in names}:
        for group in Path("/sys/fs/cgroup").glob(f"**/{above}"):
            with suppress(OSError):
                group.rmdir()
