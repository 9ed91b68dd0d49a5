"""A real podman for tests: its own storage, and an image that no registry has."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines import need

INSTALL = "apt-get install podman runc busybox-static catatonit"
IMAGE = "localhost/raysched-test:1"
COMMANDS = (
    "sh",
    "cat",
    "echo",
    "env",
    "false",
    "ls",
    "mkdir",
    "ps",
    "setsid",
    "sleep",
    "test",
    "touch",
    "true",
)
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Podman:
    """Its variables are `env`: whoever has them uses this storage."""

    def __init__(self, folder: Path) -> None:
        storage = folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        conf = folder / "containers.conf"
        conf.write_text(CONTAINERS_CONF)
        self.env = {"CONTAINERS_CONF": str(conf), "CONTAINERS_STORAGE_CONF": str(storage)}
        self.run("import", "-", IMAGE, stdin=_image())

    def run(self, *arguments: str, stdin: bytes = b"") -> str:
        """What `podman ARGUMENTS` prints."""
        command = ["podman", *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self.env}, input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return done.stdout.decode()

    def containers(self) -> list[str]:
        """The names of all containers, also of those that have ended."""
        return self.run("ps", "--all", "--format", "{{.Names}}").split()


def _image() -> bytes:
    """A root folder with nothing but busybox, as a tar."""
    content = Path("/bin/busybox").read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        busybox = tarfile.TarInfo("bin/busybox")
        busybox.size, busybox.mode = len(content), 0o755
        archive.addfile(busybox, io.BytesIO(content))
        for name in COMMANDS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        temporary = tarfile.TarInfo("tmp")
        temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(temporary)
    return buffer.getvalue()


@contextmanager
def podman() -> Iterator[Podman]:
    """A podman whose storage is gone afterwards. Skips the test where there is none."""
    installed = all(map(shutil.which, ("podman", "runc", "busybox", "catatonit")))
    need(installed and os.geteuid() == 0, f"{INSTALL}; run as root")
    folder = Path(tempfile.mkdtemp(prefix="rs-podman-", dir="/tmp"))
    try:
        made = Podman(folder)
        yield made
        made.run("rm", "--all", "--force", "--time", "0")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
