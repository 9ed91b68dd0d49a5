"""The part of raysched that goes to a host: the modules that `serve.py` needs, found by their imports, and
NVIDIA's module pynvml, in one zip file named by its content."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
START = "raysched.backends.ssh.serve"
MAIN = f"from {START} import main\n\nmain()\n"
VENDORED = "pynvml"
_STAMP = (1980, 1, 1, 0, 0, 0)
"""The time of every file in it: the same modules are the same bytes."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """`digest` is the SHA-256 of `data`, a zip file."""

    digest: str
    data: bytes


@cache
def bundle() -> Bundle:
    """The bundle of this version, made once."""
    files = {str(path.relative_to(ROOT)): path.read_bytes() for path in modules()}
    files["__main__.py"] = MAIN.encode()
    files[f"{VENDORED}.py"] = _vendored().read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _STAMP), files[name], zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    return Bundle(hashlib.sha256(data).hexdigest(), data)


def _vendored() -> Path:
    found = importlib.util.find_spec(VENDORED)
    assert found is not None, f"{VENDORED} is a dependency of raysched"
    assert found.origin is not None
    return Path(found.origin)


def modules() -> set[Path]:
    """The files of all modules of raysched that the serving end imports anywhere."""
    found: set[Path] = set()
    waiting = [START]
    while waiting:
        for path in _files(waiting.pop()):
            if path not in found:
                found.add(path)
                waiting += [name for name in imported(path) if name.split(".")[0] == "raysched"]
    return found


def _files(name: str) -> Iterator[Path]:
    """The file of a module, and of each package that it lies in; nothing for a name inside a module."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:depth])
        if path.is_dir():
            yield path / "__init__.py"
        elif path.with_suffix(".py").exists():
            yield path.with_suffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every name that a file imports, but for those that only a type checker needs."""
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            waiting += ast.iter_child_nodes(node)
