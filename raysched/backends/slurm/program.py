"""What runs inside a job: files that stand alone, copied to where the nodes see them."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from raysched.backends import runner
from raysched.backends.slurm import batch, local_ray, ray_nodes

MODULES = (runner, batch, ray_nodes, local_ray)


def program(root: Path) -> Path:
    """The path of batch.py in the copy below `root`. Another version has another copy, so that jobs which
    wait find theirs."""
    sources = [Path(module.__file__ or "") for module in MODULES]
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = root / f".program-{version}"
    if not folder.exists():
        new = root / f".program-{uuid.uuid4().hex}"
        new.mkdir(mode=0o700)
        for source in sources:
            shutil.copyfile(source, new / source.name)
        with suppress(OSError):  # somebody else was quicker
            new.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
    return folder / "batch.py"
