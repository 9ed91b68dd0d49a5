"""What real hosts are like: login shells, profiles, disks, Pythons, keys, jump hosts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from engines import need
from running import System
from ssh_hosts import HostWorld, SSHHost

from raysched.backends.ssh.hosts import Hosts
from raysched.backends.ssh.remote import Remote
from raysched.core.host import Host
from raysched.core.work import Launch, Seen
from raysched.errors import Unreachable
from raysched.testing.conformance import new_launch

T = TypeVar("T")
SHELLS = {"sh": "/bin/sh", "bash": "/bin/bash", "fish": "/usr/bin/fish", "tcsh": "/usr/bin/tcsh"}
SCRIPT = """X="a b"; export X\nprintf '%s\\n' "${X:-none}" "$HOME_SET" "$(( 2 + 3 ))"\n"""
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def accounts(hosts: HostWorld) -> SSHHost:
    """A host with an account for each login shell, each with a profile that prints a banner."""
    for shell in SHELLS.values():
        need(Path(shell).exists(), "apt-get install -y fish tcsh")
    host = hosts.add("accounts", shells={f"user-{name}": path for name, path in SHELLS.items()})
    for name, files in {
        "bash": [".bashrc"],
        "tcsh": [".cshrc", ".login"],
        "fish": [".config/fish/config.fish"],
    }.items():
        for file in files:
            path = host.folder / "homes" / f"user-{name}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("echo 'Welcome! {it`s} a \"banner\"'\n")
    return host


def entry(host: SSHHost, user: str = "user", **fields: str | None) -> Host:
    defaults = {"python": PYTHON, "folder": str(host.folder / "files")}
    return Host(host.name, host.address, user, **{**defaults, **fields})  # type: ignore[arg-type]


def on(host: Host, work: Callable[[Remote], Awaitable[T]]) -> T:
    """What `work` does with a host that is connected to. Raises Unreachable where it can't be."""

    async def run() -> T:
        remote = Remote(host, "tests", asyncio.Semaphore(1), lambda: None)
        await remote.connect()
        try:
            return await work(remote)
        finally:
            await remote.hang_up()

    return asyncio.run(run())


async def ended(remote: Remote, launch: Launch) -> Seen:
    """How a run ends."""
    while True:
        found = [seen for seen in await remote.observe() if seen.run == launch.run]
        if found and found[0].state != "running":
            return found[0]
        await asyncio.sleep(0.05)


async def output_of(remote: Remote, launch: Launch) -> str:
    """What a run writes until it has ended."""
    await remote.start(launch, Path("/nowhere"))
    await ended(remote, launch)
    return (await remote.logs(launch.run, 0, 1 << 20)).decode()


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_and_its_banner(accounts: SSHHost, shell: str) -> None:
    """Case vm-03: the same log whatever the login shell; and discovery, cancel and adoption."""
    host = entry(accounts, f"user-{shell}", folder=None, simulate="1xA30")
    launch = new_launch(SCRIPT, env={"HOME_SET": "it's {set} ~ $y"})
    lasting = new_launch("exec sleep 600")

    async def work(remote: Remote) -> str:
        assert [gpu.model for gpu in (await remote.describe()).gpus] == ["A30"]
        await remote.start(lasting, Path("/nowhere"))
        return await output_of(remote, launch)

    async def again(remote: Remote) -> Seen:
        assert {seen.run for seen in await remote.observe()} == {launch.run, lasting.run}
        await remote.stop(lasting.run, 5)
        return await ended(remote, lasting)

    assert on(host, work).splitlines() == ["a b", "it's {set} ~ $y", "5"]
    assert on(host, again).code == 143
    assert (accounts.folder / "homes" / f"user-{shell}" / ".local/state/raysched-host").is_dir()


def refused(host: Host) -> str:
    """Why a host can't be connected to."""

    async def nothing(_: Remote) -> None:
        pass

    with pytest.raises(Unreachable) as error:
        on(host, nothing)
    return str(error.value)


def test_a_python_that_is_too_old_or_missing_is_named(accounts: SSHHost) -> None:
    old = accounts.folder / "old python"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *version_info*) exit 1;; esac\nexec {PYTHON} -c \''
        'import sys; sys.version = "3.6.8 (old)"; exec(sys.argv[2])\' "$@"\n'
    )
    old.chmod(0o755)
    assert "is Python 3.6.8" in refused(entry(accounts, python=str(old)))
    said = refused(entry(accounts, python="/no/such/python"))
    assert "accounts has no Python 3.10 or later" in said
    assert "/no/such/python" in said


def test_a_folder_that_can_not_be_written_is_named(accounts: SSHHost) -> None:
    said = refused(entry(accounts, folder="/proc/raysched"))
    assert "/proc/raysched" in said
    assert "another `folder`" in said


def test_a_full_disk_is_told(hosts: HostWorld) -> None:
    small = hosts.folder / "small"
    small.mkdir(exist_ok=True)
    host = hosts.add("full", more=f"mount -t tmpfs -o size=64k tmpfs {small}")
    assert "No space left on device" in refused(entry(host, folder=str(small / "files")))


def test_hosts_with_one_home_on_the_network_leave_the_runs_of_each_other_alone(hosts: HostWorld) -> None:
    """Each sees the files of the other, and not its processes."""
    folder = str(hosts.folder / "shared")
    one, two = (entry(hosts.add(name, alone=True), folder=folder) for name in ("one", "two"))
    launch = new_launch("exec sleep 600")

    async def by_one(here: Remote) -> Seen:
        await here.start(launch, Path("/nowhere"))
        await asyncio.to_thread(on, two, by_two)
        assert [seen.state for seen in await here.observe()] == ["running"]
        await here.stop(launch.run, 5)
        return await ended(here, launch)

    async def by_two(there: Remote) -> None:
        assert await there.observe() == []

    assert on(one, by_one).code == 143


def test_a_login_shell_that_runs_nothing_is_told(hosts: HostWorld) -> None:
    host = hosts.add("closed", shells={"closed": "/usr/sbin/nologin"})
    assert "closed runs no commands for us" in refused(entry(host, "closed"))


def test_an_account_that_does_not_let_us_in_is_told(accounts: SSHHost, hosts: HostWorld) -> None:
    other = hosts.folder / "other-key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    said = refused(entry(accounts, key=str(other)))
    assert "accounts (" in said
    assert "does not let us in" in said
    assert "is not there" in refused(entry(accounts, key=str(hosts.folder / "no-key")))


def test_a_host_key_that_changed_is_never_accepted(hosts: HostWorld) -> None:
    """Case vm-01: nothing is sent to it; the message says what to do."""
    host = hosts.add("remade")
    host.kill_sshd()
    host.new_key()
    host.start()
    said = refused(entry(host))
    assert "host key of remade changed" in said
    assert "does not match" in said
    assert str(hosts.home / ".ssh" / "known_hosts") in said
    assert "raysched vm check remade --accept-new" in said
    assert not (host.folder / "files").exists()

    async def accept() -> None:
        remote = Remote(entry(host), "tests", asyncio.Semaphore(1), lambda: None)
        with pytest.raises(Unreachable):
            await remote.connect(accept_new=True)  # only what is not known is accepted, nothing is replaced
        line = ["ssh-keygen", "-f", str(hosts.home / ".ssh" / "known_hosts"), "-R", host.address]
        await asyncio.to_thread(subprocess.run, line, check=True, capture_output=True)
        await remote.connect(accept_new=True)
        await remote.hang_up()

    asyncio.run(accept())
    assert on(entry(host), lambda remote: output_of(remote, new_launch("echo works"))) == "works\n"


def test_an_unknown_host_is_accepted_only_on_purpose(hosts: HostWorld) -> None:
    host = hosts.add("unknown", known=False)
    said = refused(entry(host))
    assert "host key of unknown is not known" in said
    assert "SHA256:" in said

    async def check() -> tuple[str, str]:
        inventory = Hosts()
        await inventory.use((entry(host),))
        try:
            return await inventory.check("unknown", False), await inventory.check("unknown", True)
        finally:
            await inventory.close()

    before, after = asyncio.run(check())
    assert "not known" in before
    assert after == ""


@pytest.fixture
def inner(hosts: HostWorld) -> Iterator[tuple[SSHHost, SSHHost]]:
    """A gate, and a host that accepts connections from the gate only."""
    need(shutil.which("nft"), "apt-get install -y nftables")
    known = [hosts.hosts.get(name) for name in ("gate", "inner")]
    gate, inside = (host or hosts.add(name) for host, name in zip(known, ("gate", "inner"), strict=True))
    chain = f"type filter hook input priority 0; policy accept; ip saddr {hosts.net}.1 drop;"
    rules = f"table ip t {{ chain c {{ {chain} }}; }}"
    command = ["ip", "netns", "exec", inside.space, "nft"]
    subprocess.run([*command, rules], check=True)
    yield gate, inside
    subprocess.run([*command, "delete", "table", "ip", "t"], check=True)


@pytest.mark.parametrize("way", ["named", "alias", "configured", "two hops"])
def test_hosts_behind_a_jump_host(
    hosts: HostWorld, accounts: SSHHost, inner: tuple[SSHHost, SSHHost], way: str
) -> None:
    """Case vm-02: the gate's own user and key for the gate, the target's for the target."""
    gate, inside = inner
    key = hosts.home / ".ssh" / "gate_key"
    shutil.copy(hosts.key, key)
    config = f"Host gate-alias\n  HostName {gate.address}\n  User user\n  IdentityFile {key}\n"
    if way == "configured":
        config += f"Host {inside.address}\n  ProxyJump gate-alias\n"
    (hosts.home / ".ssh" / "config").write_text(config)
    jump = {
        "named": f"user@{gate.address}:22",
        "alias": "gate-alias",
        "configured": None,
        "two hops": f"user@{accounts.address},gate-alias",
    }[way]
    host = entry(inside, jump=jump, key=str(hosts.key))
    launch = new_launch("hostname")
    assert on(host, lambda remote: output_of(remote, launch)) == "inner\n"
    assert not (gate.folder / "files").exists()
    (hosts.home / ".ssh" / "config").unlink()


def test_a_jump_host_that_is_down_is_the_one_that_is_named(
    hosts: HostWorld, inner: tuple[SSHHost, SSHHost]
) -> None:
    """Case vm-02."""
    gate, inside = inner
    gate.kill_sshd()
    try:
        said = refused(entry(inside, jump=f"user@{gate.address}"))
    finally:
        gate.start()
    assert said.startswith(gate.address)
    assert inside.address not in said


def test_nothing_secret_is_on_the_host(accounts: SSHHost, hosts: HostWorld) -> None:
    on(entry(accounts), lambda remote: output_of(remote, new_launch("true")))
    secret = hosts.key.read_bytes().splitlines()[1]
    files = [path for path in (accounts.folder / "files").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]
    assert os.stat(accounts.folder / "files").st_mode & 0o077 == 0


def test_hosts_of_the_configuration_are_checked_before_up(hosts: HostWorld) -> None:
    """By the command, with its exit code; nothing of raysched runs here."""
    for name, known in (("checked", True), ("strange-key", False)):
        hosts.add(name, known=known)
    system = System(None)
    try:
        system.env["HOME"] = str(hosts.home)
        inventory = [
            {"name": name, "address": hosts.hosts[name].address, "user": "user", "python": PYTHON}
            for name in ("checked", "strange-key")
        ]
        system.configure(json.dumps({"backends": {"vm": {"hosts": inventory}}})[1:-1])
        done = system.cli("vm", "check", "--json", check=False)
        assert done.returncode == 1, done.stderr
        assert "raysched is not up" in done.stderr
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert checks["checked"] == {"name": "checked", "ok": True, "reason": ""}
        assert "host key of strange-key is not known" in checks["strange-key"]["reason"]
        assert system.cli("vm", "check", "checked").returncode == 0
        unknown = system.cli("vm", "check", "nobody", check=False)
        assert (unknown.returncode, "no host nobody in the configuration" in unknown.stderr) == (81, True)
    finally:
        system.close()
