"""The shape of the code: which part may import which, and what every file has (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raysched"
LINKS = ("actors", "backends", "specs")

INNER = {"errors", "specs", "core"}
MAY_IMPORT = {
    "errors": {"errors"},
    "specs": {"errors", "specs"},
    "core": INNER,
    "store": INNER | {"store", "folders", "__version__"},
    "gpu": INNER | {"gpu", "tasks"},
    "backends": INNER | {"backends", "gpu", "package", "tasks"},
    "tasks": set[str](),
    "testing": INNER | {"backends", "testing", "gpu", "store", "package"},
    "package": {"errors", "ignore"},
    "ignore": set[str](),
    "folders": {"errors"},
    "transport": {"errors"},
    "discovery": {"errors", "folders"},
    "client": {"errors", "discovery", "transport", "package", "specs"},
}
"""The parts of raysched that each part may import, anywhere in its files; a part that is not named: any."""

LIBRARIES = {
    "errors": set[str](),
    "specs": {"pydantic", "pydantic_core", "yaml", "typing_extensions"},
    "core": {"numpy"},
    "package": set[str](),
    "tasks": set[str](),
    "ignore": set[str](),
    "folders": set[str](),
    "transport": set[str](),
    "discovery": {"ray"},
    "client": set[str](),
}
"""The libraries that each part may import beside the standard library; a part that is not named: any."""

HEAVY = {
    "ray",
    "pandas",
    "numpy",
    "fastapi",
    "starlette",
    "uvicorn",
    "sqlalchemy",
    "kubernetes",
    "pydantic",
    "yaml",
}
"""What takes long to import: the command line and the client load none of it before they need it."""

LIGHT = [
    *(
        PACKAGE / f"{name}.py"
        for name in ("__init__", "client", "discovery", "transport", "folders", "errors")
    ),
    *(PACKAGE / "cli").rglob("*.py"),
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`raysched/core/work.py` is named raysched.core.work."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of raysched that a module belongs to: `core` of raysched.core.work."""
    return module.split(".")[1] if "." in module else ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every import below `tree`; `from raysched import client` is raysched.client."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "raysched":
                yield from ((node.lineno, f"raysched.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def top_level(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: no function bodies, nothing under `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if ast.unparse(node.test).endswith("TYPE_CHECKING"):
                return node.orelse
            return self.generic_visit(node)

    return Strip().visit(tree)


def tracked_files() -> list[Path]:
    """Every text file of the tree, as git knows it; of the folder where there is no git."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        names = [*PACKAGE.rglob("*"), *(ROOT / "docs").rglob("*"), *(ROOT / "tests").rglob("*")]
    return [path for path in names if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_go_one_way(path: Path) -> None:
    """No part imports one that stands above it."""
    part = part_of(name_of(path))
    if part not in MAY_IMPORT:
        return
    wrong = [
        f"line {line}: {name}"
        for line, name in imports(parse(path))
        if name.split(".")[0] == "raysched" and part_of(name) not in MAY_IMPORT[part]
    ]
    assert not wrong, f"{part} may import only {sorted(MAY_IMPORT[part])} of raysched"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_core_and_the_specs_stand_on_little(path: Path) -> None:
    """The inner parts need the standard library and what is named here, so that they run anywhere."""
    part = part_of(name_of(path))
    if part not in LIBRARIES:
        return
    allowed = LIBRARIES[part] | {"raysched"} | sys.stdlib_module_names
    wrong = [
        f"line {line}: {name}" for line, name in imports(parse(path)) if name.split(".")[0] not in allowed
    ]
    assert not wrong, f"{part} may import only the standard library and {sorted(LIBRARIES[part])}"


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_the_command_line_loads_nothing_heavy(path: Path) -> None:
    """`raysched status` answers in 0.4 s: heavy modules are imported inside the commands that need them."""
    found = {
        f"line {line}: {name}"
        for line, name in imports(top_level(parse(path)))
        if name.split(".")[0] in HEAVY
    }
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    """A docstring at the top; only a package's empty `__init__` needs none."""
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(parse(path)) or (path.name == "__init__.py" and not text.strip())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_too_long_to_read(path: Path) -> None:
    """One noun a file."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def test_the_links_at_the_top_lead_into_the_package() -> None:
    """A newcomer sees the parts at the top of the tree."""
    for link in LINKS:
        assert (ROOT / link).is_symlink()
        assert (ROOT / link).resolve() == PACKAGE / link


def test_nothing_imports_through_the_links() -> None:
    """The links are for people."""
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        wrong = [f"{path}:{line}" for line, name in imports(parse(path)) if name.split(".")[0] in LINKS]
        assert not wrong


def test_public_names_match_all() -> None:
    """`raysched.__all__` is exactly what `dir` shows and what can be got."""
    code = (
        "import raysched\n"
        "shown = {n for n in dir(raysched) if not n.startswith('_')}\n"
        "for name in raysched.__all__: getattr(raysched, name)\n"
        "assert shown == set(raysched.__all__) - {'__version__'}, shown ^ set(raysched.__all__)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_no_path_of_somebodys_machine_is_in_the_tree() -> None:
    """Whoever clones this has other folders."""
    machine = re.compile(rb"(?<![\w.~\-/])/(?:work|home|root)/[\w.]")
    wrong = [
        f"{path.relative_to(ROOT)}: {found.group()!r}"
        for path in tracked_files()
        if (found := machine.search(path.read_bytes())) and path != Path(__file__)
    ]
    assert not wrong


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
