"""Hosts for tests: network namespaces with addresses of their own, each with its own sshd.

A bridge in a further namespace joins them, and one interface of this machine leads there, so that links can
be cut. A host with `alone` has its own processes as well, and can lose its power.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engines import need
from running import wait_until

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
INSTALL = "apt-get install -y openssh-server iproute2, and be root"
INIT = """\
hostname {name}
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/shadow /etc/shadow
{more}
{keep}
"""
CONFIG = """\
Port 22
ListenAddress {address}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {keys}
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
MaxStartups 100
MaxSessions 100
PrintMotd no
{more}
"""
_numbers = itertools.count()


def ip(*words: str) -> None:
    """Run `ip WORDS`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class SSHHost:
    """One host; `HostWorld.add` makes it."""

    def __init__(self, world: HostWorld, name: str, number: int, alone: bool) -> None:
        self.world = world
        self.name = name
        self.alone = alone
        self.space = f"{world.id}h{number}"
        self.address = f"{world.net}.{10 + number}"
        self.folder = world.folder / name
        self.init: subprocess.Popen[bytes] | None = None

    def prepare(self, environment: Mapping[str, str], shells: Mapping[str, str], more: str) -> None:
        """Write its files. `shells` gives accounts besides `user`, each with its login shell."""
        self.folder.mkdir()
        self.new_key()
        sets = " ".join(f'"{name}={value}"' for name, value in environment.items())
        text = CONFIG.format(
            address=self.address,
            folder=self.folder,
            keys=self.world.key.with_suffix(".pub"),
            more=f"SetEnv {sets}" if sets else "",
        )
        (self.folder / "sshd_config").write_text(text)
        passwd, shadow = Path("/etc/passwd").read_text(), Path("/etc/shadow").read_text()
        for account, shell in {"user": "/bin/sh", **shells}.items():
            home = self.folder / "homes" / account
            home.mkdir(parents=True)
            passwd += f"{account}:x:0:0::{home}:{shell}\n"
            shadow += f"{account}:*:19000:0:99999:7:::\n"
        (self.folder / "passwd").write_text(passwd)
        (self.folder / "shadow").write_text(shadow)
        keep = f"{SSHD} -D -E {self.folder}/sshd.log -f {self.folder}/sshd_config"
        keep = f"{keep} & exec sleep infinity" if self.alone else f"exec {keep}"
        script = INIT.format(name=self.name, folder=self.folder, keep=keep, more=more)
        (self.folder / "init.sh").write_text(script)

    def new_key(self) -> None:
        """Give it another host key."""
        key = self.folder / "host_key"
        key.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)

    @property
    def known(self) -> str:
        """Its line in a file of known hosts."""
        return f"{self.address} {(self.folder / 'host_key.pub').read_text()}"

    def start(self) -> None:
        """Switch it on, or, where it has no processes of its own, start its sshd again."""
        if self.init is not None:
            self.init.wait()
        apart = ["--uts", "--mount"]
        if self.alone:
            apart += ["--pid", "--fork", "--mount-proc", "--kill-child"]
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
        self.init = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "unshare", *apart, "sh", str(self.folder / "init.sh")],
            env={**kept, "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.until_up()

    def until_up(self) -> None:
        """Return when its sshd listens."""
        probe = ["ip", "netns", "exec", self.space, "ss", "-Hltn", "sport = :22"]
        wait_until(lambda: subprocess.run(probe, check=True, capture_output=True).stdout, "sshd listens", 30)

    def processes(self, *words: str) -> list[int]:
        """The processes in it whose command lines have all the words."""
        done = subprocess.run(["ip", "netns", "pids", self.space], check=True, capture_output=True, text=True)
        found: list[int] = []
        for pid in map(int, done.stdout.split()):
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if line and all(word in line for word in words):
                    found.append(pid)
        return found

    def kill(self, *words: str) -> None:
        """kill -9 the processes in it whose command lines have all the words."""
        for pid in self.processes(*words):
            self.kill_one(pid)

    def kill_one(self, pid: int) -> None:
        """kill -9 one process in it."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_sshd(self) -> None:
        """kill -9 every sshd of it; what they started goes on."""
        self.kill("sshd")

    def power_off(self) -> None:
        """End all its processes at once."""
        while self.processes():
            self.kill()
        if self.init is not None:
            self.init.wait()

    def cut(self) -> None:
        """Cut its link: packets are lost, and nobody is told."""
        ip("-n", self.world.switch, "link", "set", self.space, "down")

    def start_sshd(self) -> None:
        """Start sshd on a host that is on, but for it."""
        (inner,) = self.processes("sleep", "infinity")
        command = f"{SSHD} -E {self.folder}/sshd.log -f {self.folder}/sshd_config"
        subprocess.run(["nsenter", "-t", str(inner), "-a", *command.split()], check=True)
        self.until_up()

    def heal(self) -> None:
        """Put the link together again."""
        ip("-n", self.world.switch, "link", "set", self.space, "up")


class HostWorld:
    """Hosts on one network, and a key for `user` and every other account of them."""

    def __init__(self) -> None:
        need(SSHD and shutil.which("ip") and os.geteuid() == 0, INSTALL)
        self.folder = Path(tempfile.mkdtemp(prefix="rs-ssh-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.id = f"rs{os.getpid()}w{next(_numbers)}"
        self.net = f"10.{random.randrange(64, 250)}.{random.randrange(250)}"
        self.switch = f"{self.id}s"
        self.hosts: dict[str, SSHHost] = {}
        self.home = self.folder / "home"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self.key = self.home / ".ssh" / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        ip("link", "add", f"{self.id}c", "type", "veth", "peer", "name", "ctl", "netns", self.switch)
        ip("-n", self.switch, "link", "set", "ctl", "master", "br0", "up")
        ip("addr", "add", f"{self.net}.1/24", "dev", f"{self.id}c")
        ip("link", "set", f"{self.id}c", "up")

    def add(
        self,
        name: str,
        *,
        alone: bool = False,
        environment: Mapping[str, str] | None = None,
        shells: Mapping[str, str] | None = None,
        more: str = "",
        known: bool = True,
    ) -> SSHHost:
        """A host that is on. `environment` is what sshd gives to sessions, `more` lines of its start; its key
        is among the known ones if it is `known`."""
        host = self.hosts[name] = SSHHost(self, name, len(self.hosts), alone)
        ip("netns", "add", host.space)
        ip(
            "link",
            "add",
            "e0",
            "netns",
            host.space,
            "type",
            "veth",
            "peer",
            "name",
            host.space,
            "netns",
            self.switch,
        )
        ip("-n", self.switch, "link", "set", host.space, "master", "br0", "up")
        ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "e0")
        for device in ("lo", "e0"):
            ip("-n", host.space, "link", "set", device, "up")
        host.prepare(environment or {}, shells or {}, more)
        host.start()
        if known:
            self.know(host)
        return host

    def know(self, *hosts: SSHHost) -> None:
        """Make the keys of these hosts, or of all, the known ones."""
        text = "".join(host.known for host in hosts or self.hosts.values())
        with open(self.home / ".ssh" / "known_hosts", "a" if hosts else "w", encoding="utf-8") as file:
            file.write(text)

    def processes(self, *words: str) -> list[int]:
        """The processes on all hosts whose command lines have all the words."""
        return [pid for host in self.hosts.values() for pid in host.processes(*words)]

    def close(self) -> None:
        """Switch everything off and leave nothing."""
        for host in self.hosts.values():
            host.power_off()
            ip("netns", "del", host.space)
        ip("netns", "del", self.switch)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", f"{self.id}c")
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def world() -> Iterator[HostWorld]:
    """A world that is closed afterwards."""
    made = HostWorld()
    try:
        yield made
    finally:
        made.close()


def names(hosts: Iterable[SSHHost]) -> list[str]:
    """The names of hosts."""
    return [host.name for host in hosts]
