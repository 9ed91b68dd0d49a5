"""Container images for a real kubelet, made here without a registry.

The image with Ray has hardly a file of its own: the runtime shows each container this machine's /usr, its
Python, and the packages that the tests run with, all of them read-only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMAGE = "docker.io/library/ray:host"
"""With Ray."""
PAUSE = "docker.io/library/pause:1"
"""The first process of each pod; it reaps what others leave."""
FOLDERS = ("dev", "etc", "home", "opt/bin", "proc", "root", "run", "sys", "tmp", "usr", "var/tmp")
MERGED = ("bin", "sbin", "lib", "lib32", "lib64")
"""What lies in /usr."""
PATH = "/opt/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
"""Its own commands, and then those of this machine."""


def seen_folders() -> list[str]:
    """The folders of this machine that containers see: those that Python finds modules in, and /usr."""
    paths = {Path(path) for path in (sys.base_prefix, sys.prefix, *sys.path) if os.path.isdir(path)}
    wanted = {Path("/usr"), *paths, *(path.resolve() for path in paths)}
    return sorted(str(one) for one in wanted if not wanted & set(one.parents))


def runtime_spec() -> dict[str, Any]:
    """What the runtime is told of every container."""
    done = subprocess.run(["ctr", "oci", "spec"], check=True, capture_output=True)
    spec: dict[str, Any] = json.loads(done.stdout)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": most, "soft": most}]
    for folder in seen_folders():
        spec["mounts"].append(
            {"destination": folder, "source": folder, "type": "bind", "options": ["rbind", "ro"]}
        )
    return spec


def write_root(folder: Path) -> None:
    """The files of the image with Ray."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in MERGED:
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("tmp", "var/tmp"):
        (folder / name).chmod(0o1777)
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (folder / "etc" / "group").write_text("root:x:0:\n")
    shutil.copy("/etc/ld.so.cache", folder / "etc")
    for name, words in (("python", ""), ("python3", ""), ("ray", " -m ray.scripts.scripts")):
        command = folder / "opt" / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable}{words} "$@"\n')
        command.chmod(0o755)


def write_pause(folder: Path) -> None:
    """The files of the image of a pod's first process."""
    folder.mkdir()
    shutil.copy(shutil.which("catatonit") or "", folder / "pause")


def pack(name: str, root: Path, command: list[str], file: Path) -> None:
    """Make a folder an image, in the format of `docker save`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        files.add(root, ".")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        "config": {
            "Cmd": command,
            "Env": [f"PATH={PATH}", "HOME=/root"],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    parts: Mapping[str, bytes] = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer.getvalue(),
    }
    with tarfile.open(file, "w") as image:
        for part, content in parts.items():
            entry = tarfile.TarInfo(part)
            entry.size = len(content)
            image.addfile(entry, io.BytesIO(content))
