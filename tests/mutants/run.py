"""Breaks one rule of raysched at a time, in a copy of it, and shows that the tests notice:
`python tests/mutants/run.py [NAME ...]`.

Each mutant (`broken_*.py`) is a piece of text that is there exactly once, and what it becomes. For each, the
tests that it names run on the broken copy; a mutant that survives them is a test that is missing. Exits with
1 where one survives, or where its tests fail without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("raysched", "tests", "pyproject.toml", "constraints.txt")
PLUGINS = ("-p", "no:cacheprovider", "-p", "no_shrinking")
LIMIT_S = 1_800
"""A mutant that hangs its tests is noticed as well."""
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "MODEL_EXAMPLES": "400"}
"""Rules that are seldom in the way take some random lives of the core beside its model."""
JOBS = min(len(MUTANTS), os.cpu_count() or 1)


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the test that noticed it, empty where none did."""

    mutant: Mutant
    killer: str
    seconds: float


def copy(folder: Path) -> None:
    """Copy what the tests need; some of them become another user, who may read it."""
    folder.chmod(0o755)
    caches = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.pyc")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=caches, symlinks=True)
        else:
            shutil.copy(source, folder / name)


def break_rule(folder: Path, mutant: Mutant) -> None:
    """Put the mutant's text into the copy. Ends the program where it isn't there exactly once."""
    path = folder / "raysched" / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        sys.exit(
            f"{mutant.name}: {mutant.file} has its text {text.count(mutant.old)} times, not once; "
            "the code changed: change the mutant as well"
        )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(folder: Path, tests: Sequence[str]) -> str:
    """Run tests on the copy in `folder`; the first that failed, empty where all passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=0"]
    try:
        done = subprocess.run(
            [*command, *PLUGINS, "--hypothesis-seed=0", "--tb=line", *tests],
            cwd=folder,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(not over after {LIMIT_S} s)"
    if done.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) tests/(?:[^ :]*/)?(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(
            f"the tests {' '.join(tests)} can't run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return failed.group(1)


def judge(mutant: Mutant) -> Verdict:
    """Run one mutant."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raysched-mutant-") as folder:
        copy(Path(folder))
        break_rule(Path(folder), mutant)
        killer = run_tests(Path(folder), mutant.tests)
    verdict = Verdict(mutant, killer, time.monotonic() - began)
    print(f"{mutant.name:44} {killer or 'SURVIVES':60} {verdict.seconds:5.1f} s", flush=True)
    return verdict


def main(names: Sequence[str]) -> int:
    """The exit code."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with ThreadPoolExecutor(JOBS) as pool:
        failed = check(chosen, pool)
        if failed:
            print(f"These fail without any mutant, mend them first: {', '.join(failed)}", file=sys.stderr)
            return 1
        verdicts = list(pool.map(judge, chosen))
    survivors = [verdict.mutant.name for verdict in verdicts if not verdict.killer]
    print(
        f"{len(verdicts)} mutants, {len(survivors)} survive{': ' if survivors else ''}{', '.join(survivors)}"
    )
    return 1 if survivors else 0


def check(mutants: Sequence[Mutant], pool: ThreadPoolExecutor) -> list[str]:
    """See that every mutant fits, and that all tests pass without any; those that fail."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="raysched-mutant-") as folder:
        copy(Path(folder))
        for mutant in mutants:
            break_rule_and_mend(Path(folder), mutant)
        return [failed for failed in pool.map(lambda test: run_tests(Path(folder), [test]), tests) if failed]


def break_rule_and_mend(folder: Path, mutant: Mutant) -> None:
    """See that a mutant fits, and that what it becomes is Python."""
    path = folder / "raysched" / mutant.file
    whole = path.read_text(encoding="utf-8")
    break_rule(folder, mutant)
    compile(path.read_text(encoding="utf-8"), mutant.file, "exec")
    path.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
