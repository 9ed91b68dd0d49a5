"""A site that is reached over SSH, by a real sshd, whatever its login shell prints."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import need
from ordered import OrderedHands
from running import free_port, wait_until
from slurm_site import SlurmSite

from raysched.backends.base import EngineRefused
from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.commands import CommandController
from raysched.cluster import own_ray
from raysched.core.site import NOWHERE

NOISY = """#!/bin/sh
echo "Welcome to Cluster3 - maintenance on day 12"
export SLURM_CONF={conf}
shift
eval "$1"
echo "have a nice day 365"
"""


@pytest.fixture
def ssh(tmp_path: Path, site: SlurmSite) -> Iterator[str]:
    """The folder of an `ssh` that finds a login node of its own."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    need(sshd and shutil.which("ssh"), "apt-get install openssh-server openssh-client")
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    noisy = tmp_path / "noisy"
    noisy.write_text(NOISY.format(conf=site.env["SLURM_CONF"]))
    noisy.chmod(0o755)
    key = (tmp_path / "user.pub").read_text()
    forced = f'command="{noisy} -c \\"$SSH_ORIGINAL_COMMAND\\"" '
    (tmp_path / "keys").write_text(forced + key)
    port = free_port()
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "keys",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": tmp_path / "pid",
        "PermitRootLogin": "yes",
    }
    lines = [f"{name} {value}" for name, value in options.items()]
    (tmp_path / "sshd.conf").write_text("\n".join(lines) + "\n")
    server = subprocess.Popen([str(sshd), "-D", "-f", str(tmp_path / "sshd.conf")], stderr=subprocess.DEVNULL)
    host = (tmp_path / "host.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {host}")
    config = (
        f"Host login1\nHostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\n"
        f"IdentityFile {tmp_path}/user\nUserKnownHostsFile {tmp_path}/known\n"
    )
    (tmp_path / "ssh.conf").write_text(config)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh.conf "$@"\n')
    (folder / "ssh").chmod(0o755)
    reached = ["ssh", "-F", str(tmp_path / "ssh.conf"), "login1", "true"]
    wait_until(lambda: subprocess.run(reached, capture_output=True, check=False).returncode == 0, "sshd", 30)
    yield str(folder)
    server.terminate()
    server.wait()


def test_jobs_run_over_ssh_as_they_do_here(
    ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What is sent arrives byte for byte; what a login shell prints is not looked at. Temporary files lie
    where those of raysched's actors do, under a path as long."""
    scratch = own_ray._scratch(secrets.token_hex(8))
    scratch.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def make() -> SlurmBackend:
        environment = {"PATH": f"{ssh}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        controller = CommandController("login1", environment)
        return SlurmBackend(tmp_path / "it's $HOME", controller, {"PATH": os.environ["PATH"]}, tmp_path)

    hands = OrderedHands(make, NOWHERE)
    text = 'it\'s "x" $HOME `id` \\ 東京 🚀'
    assert hands.run(hands.order(f"cat <<'end'\n{text}\nend")) == f"{text}\n"
    with pytest.raises(EngineRefused, match="Invalid partition name specified"):
        hands.start(hands.order("true", partition="nowhere"))
    run = hands.start("exec sleep 600")
    hands.until(run, "running")
    hands.stop(run)
    assert hands.until(run, "exited").code == 143
    hands.close()
