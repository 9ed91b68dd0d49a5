"""A real Slurm for tests: a site of three nodes on this machine, with made-up devices, on ports and in a
folder of its own, gone afterwards.

    n1, n2    two a100 each, four shards a GPU, MPS
    n3        seven MIG instances 1g.10gb and two 3g.40gb

Partition `main` is the default one; what runs in `low` is taken away for it. No accounting.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from engines import need
from running import free_ports, is_free, wait_until

INSTALL = "apt-get install --no-install-recommends slurm-wlm slurm-wlm-basic-plugins munge"
REST = "apt-get install --no-install-recommends slurmrestd"
NODES = ("n1", "n2", "n3")
PORTS = 8
"""How many ports one site needs, one after the other."""

CONF = """
ClusterName=fake
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/sock/m,cred_expire=5
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={folder}/jwt.key
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu,mps,shard
ReturnToService=2
SlurmdTimeout={patience}
KillWait=5
SchedulerParameters=sched_interval=1,sched_min_interval=1000,batch_sched_delay=0,bf_interval=2
MaxArraySize=1001
MaxJobCount=5000
DefMemPerCPU=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs=16 RealMemory=64000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} Gres=gpu:a100:2,shard:a100:8,mps:a100:200
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} Gres=gpu:a100:2,shard:a100:8,mps:a100:200
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={n3} Gres=gpu:1g.10gb:7,gpu:3g.40gb:2
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
"""
GRES = """
AutoDetect=off
NodeName=n1,n2 Name=gpu Type=a100 File={dev}/nvidia[0-1]
NodeName=n1,n2 Name=shard Count=8
NodeName=n1,n2 Name=mps Count=200
NodeName=n3 Name=gpu Type=1g.10gb File={dev}/nvidia[0-6]
NodeName=n3 Name=gpu Type=3g.40gb File={dev}/nvidia[7-8]
"""


def _program(name: str) -> str:
    """The path of a program of Slurm's; its daemons lie where a user's PATH may not lead."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or ""


class SlurmSite:
    """One Slurm. `patience` is after how many silent seconds a node counts as down, `grace` how many seconds
    a job has that is taken away; with `memory` jobs are held to theirs by cgroups (root, version 1)."""

    def __init__(self, patience: int = 30, *, grace: int = 0, memory: bool = False) -> None:
        need(all(map(_program, ("slurmctld", "slurmd", "munged"))), INSTALL)
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)  # munge wants no folder above it that others can't enter
        self.port = free_ports(PORTS)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }
        self._rest: subprocess.Popen[bytes] | None = None
        self._make_files(patience, grace)
        if memory:
            self._hold_memory()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._start_munge()
        self.start_controller(clean=True)
        for node in NODES:
            self.start_node(node)
        wait_until(
            lambda: len(self.run("sinfo", "-hN", "-t", "idle", "-p", "main").splitlines()) == 3, "idle", 60
        )

    def _make_files(self, patience: int, grace: int) -> None:
        for name in ("run", "log", "state", "dev", "munge", "sock", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o700)
        for index in range(9):
            _device(self.folder / "dev" / f"nvidia{index}")
        for name in ("munge/key", "jwt.key"):
            (self.folder / name).write_bytes(os.urandom(128))
            (self.folder / name).chmod(0o600)
        ports = {node: self.port + number for number, node in enumerate(NODES, 1)}
        host = socket.gethostname().partition(".")[0]
        words = {"folder": self.folder, "port": self.port, "host": host, "user": getpass.getuser()}
        conf = CONF.format(**words, **ports, patience=patience, grace=grace)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(GRES.format(dev=self.folder / "dev"))
        (self.folder / "cgroup.conf").write_text("ConstrainDevices=no\n")

    def _hold_memory(self) -> None:
        conf = self.folder / "slurm.conf"
        text = conf.read_text().replace("proctrack/linuxproc", "proctrack/cgroup")
        conf.write_text(text.replace("TaskPlugin=task/none", "TaskPlugin=task/cgroup"))
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nConstrainDevices=no\nConstrainCores=no\nConstrainRAMSpace=yes\n"
            "ConstrainSwapSpace=yes\n"
        )

    def _start_munge(self) -> None:
        names = {
            "key-file": "munge/key",
            "socket": "sock/m",
            "pid-file": "munge/pid",
            "log-file": "munge/log",
        }
        options = [f"--{name}={self.folder / path}" for name, path in names.items()]
        subprocess.run(
            [_program("munged"), "--force", f"--seed-file={self.folder}/munge/seed", *options], check=True
        )

    # ------------------------------------------------------------ what tests do with it

    def run(self, *command: str, check: bool = True) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_controller(self, *, clean: bool = False) -> None:
        """Start slurmctld and wait until it answers; `clean` forgets all jobs."""
        subprocess.run([_program("slurmctld"), *(["-c"] if clean else [])], env=self.env, check=True)
        wait_until(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld is up", 60)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        subprocess.run([_program("slurmd"), "-N", node], env=self.env, check=True)

    def kill_controller(self) -> None:
        """kill -9 slurmctld."""
        self._kill(self._pid("run/slurmctld.pid"))

    def stop_controller(self) -> None:
        """Have slurmctld end, which first writes down what it knows."""
        self._kill(self._pid("run/slurmctld.pid"), signal.SIGTERM)

    def lose_node(self, node: str) -> None:
        """kill -9 everything on a node, as a loss of power does."""
        self.kill_node(node)
        steps = [pid for pid in self._left() if f"SLURMD_NODENAME={node}\0".encode() in _environment(pid)]
        parents = [int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in steps]
        for pid in [*(pid for pid in parents if b"slurmstepd" in _name(pid)), *steps]:
            self._kill(pid)

    def kill_node(self, node: str) -> None:
        """kill -9 a node's slurmd; what runs there goes on."""
        self._kill(self._pid(f"run/slurmd-{node}.pid"))

    def rest(self) -> str:
        """The URL of a slurmrestd, started once; it runs as nobody where this is root, which it refuses."""
        if self._rest is None:
            need(_program("slurmrestd"), REST)
            address = f"127.0.0.1:{self.port + PORTS - 1}"
            nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            command = [*(nobody if os.geteuid() == 0 else []), _program("slurmrestd"), "-a", "rest_auth/jwt"]
            self._rest = subprocess.Popen(
                [*command, "-s", f"openapi/{'v0.0.38' if self.version < (23, 11) else 'slurmctld'}", address],
                env={**self.env, "SLURM_JWT": "daemon"},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_until(lambda: not is_free(self.port + PORTS - 1), "slurmrestd listens", 60)
        return f"http://127.0.0.1:{self.port + PORTS - 1}"

    @property
    def version(self) -> tuple[int, ...]:
        """Of this Slurm, as (22, 5)."""
        return tuple(int(part) for part in self.run("sinfo", "--version").split()[1].split(".")[:2])

    def token(self) -> str:
        """A token for slurmrestd."""
        return self.run("scontrol", "token", "lifespan=3600").strip().removeprefix("SLURM_JWT=")

    def jobs(self, form: str = "%i %j %T") -> list[str]:
        """The lines of squeue for all jobs."""
        return self.run("squeue", "-h", "-t", "all", "-o", form).splitlines()

    def close(self) -> None:
        """End it with all its jobs; nothing of it is left."""
        try:
            self.run("scancel", "--user", getpass.getuser(), check=False)
            ending = ("squeue", "-h", "-t", "R,CG,PD")
            with suppress(AssertionError):
                wait_until(lambda: not self.run(*ending, check=False).strip(), "its jobs are gone", 20)
            daemons = ("run/slurmctld.pid", *(f"run/slurmd-{node}.pid" for node in NODES), "munge/pid")
            for name in daemons:
                self._kill(self._pid(name))
            for pid in self._left():
                self._kill(pid)
            if self._rest is not None:
                self._rest.kill()
                self._rest.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            for node in NODES:
                for group in Path("/sys/fs/cgroup").glob(f"*/slurm_{node}"):
                    for folder, _, _ in os.walk(group, topdown=False):
                        with suppress(OSError):
                            os.rmdir(folder)

    def _pid(self, name: str) -> int | None:
        try:
            return int((self.folder / name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _left(self) -> list[int]:
        """Processes of its jobs, and what looks after them: they outlive slurmd."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if f"SLURM_CONF={self.folder}/".encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def _kill(self, pid: int | None, by: signal.Signals = signal.SIGKILL) -> None:
        """A file may name a daemon that is gone, and another process may have its number since."""
        if pid is None or str(self.folder).encode() not in _environment(pid) + _command(pid):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, by)
        wait_until(lambda: _gone(pid), f"process {pid} is gone", 20)


def _environment(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _name(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes()
    return b""


def _gone(pid: int) -> bool:
    try:
        return "(zombie)" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def _device(path: Path) -> None:
    """A character device, as Slurm wants for a GPU; a link to one where none can be made."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(195, int(path.name.removeprefix("nvidia"))))
    except PermissionError:
        path.symlink_to("/dev/null")
