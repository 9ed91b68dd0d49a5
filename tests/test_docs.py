"""The documentation is true: every block of code in it runs, every link leads somewhere.

What follows the language of a block tells what happens with it:

    ```yaml                  a job file: it has to be valid
    ```yaml job.yaml         the same, and kept as a file for the blocks below it
    ```yaml config           a configuration
    ```yaml cluster          the file of a cluster
    ```python                runs; all of a page's blocks are one program
    ```python train.py       is kept as a file for the blocks below it
    ```sh                    runs; a command that fails, fails the test
    ```console               runs what follows `$ ` on a terminal of 80 columns, and compares what it prints
                             there, but for notices, with what stands in the page
    ```sh norun: WHY         does not run, for the reason given

Two outputs are the same if their words are: numbers, ids, bars and spaces may differ, a line `...` stands for
any lines, and `node-a` and `ana` for this machine and this user.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATIENCE = 200
"""Seconds that one command may take."""
RUNNABLE = {"sh", "console", "python"}


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is where its text begins, `name` the file that it is kept as."""

    language: str
    name: str
    excuse: str
    body: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in RUNNABLE and not self.excuse and not (self.language == "python" and self.name)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        head, _, excuse = found["info"].strip().partition("norun:")
        language, _, name = head.strip().partition(" ")
        yield Block(
            language, name.strip(), excuse.strip(), found["body"], text[: found.start("body")].count("\n")
        )


def words(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"[█▓▒░━╸╺─]+", " ", line)
    return " ".join(re.sub(r"\S*\d\S*", "N", line).split())


def says_the_same(shown: str, printed: str) -> bool:
    """Whether `printed` has the words of `shown`, line by line."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else re.escape(words(line)) + r"\n"
        for line in shown.splitlines()
        if line.strip()
    )
    text = "".join(f"{words(line)}\n" for line in printed.splitlines() if line.strip())
    return re.fullmatch(pattern, text) is not None


class Desk:
    """Where a page's blocks run: an empty folder, and the environment of a running raysched."""

    def __init__(self, folder: Path, page: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.page = page
        self.environment = environment | {"NO_COLOR": "1", "TERM": "dumb"}

    def run(self, *command: str, what: str) -> None:
        """A command that has to succeed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{self.page.name}, {what}: exit code {done.returncode}\n{done.stdout}"

    def see(self, command: str) -> str:
        """What a command that has to succeed prints on a terminal of 80 columns."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with (self.folder / ".notices").open("w+b") as notices:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdin=slave,
                stdout=slave,
                stderr=notices,
            )
            os.close(slave)
            printed = b""
            with open(master, "rb", buffering=0) as terminal, suppress(OSError):  # EIO at its end
                while piece := terminal.read(1 << 16):
                    printed += piece
            process.wait(PATIENCE)
            notices.seek(0)
            told = notices.read().decode()
        text = printed.decode().replace("\r\n", "\n")
        assert process.returncode == 0, f"`{command}`: exit code {process.returncode}\n{text}{told}"
        return text

    def perform(self, block: Block) -> None:
        """Keep or run one block."""
        if block.name and block.name != "config":
            (self.folder / block.name).write_text(block.body, encoding="utf-8")
        elif block.language == "sh" and block.runs:
            self.run("bash", "-euo", "pipefail", "-c", block.body, what=f"line {block.line}")
        elif block.language == "console" and block.runs:
            self.converse(block)

    def converse(self, block: Block) -> None:
        """Run the commands of a transcript and compare what they print."""
        for step in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
            command, _, text = step.partition("\n")
            shown = re.sub(r"^raysched: .*\n", "", text, flags=re.MULTILINE)
            shown = shown.replace("node-a", socket.gethostname().partition(".")[0])
            shown = re.sub(r"\bana\b", getpass.getuser(), shown)
            printed = self.see(command)
            assert says_the_same(shown, printed), (
                f"{self.page.name}: `{command}` now prints\n{printed}\nnot\n{shown}"
            )

    def program(self, page_blocks: list[Block]) -> None:
        """Run a page's Python as one program, each line at the number that it has in the page."""
        lines: list[str] = []
        for block in page_blocks:
            if block.language == "python" and block.runs:
                lines += [""] * (block.line - len(lines)) + block.body.splitlines()
        if lines:
            script = self.folder / f"{self.page.stem}.py"
            script.write_text("\n".join(lines) + "\n", encoding="utf-8")
            self.run(sys.executable, script.name, what="its Python")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_the_page_shows_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every block, in the order of the page."""
    page_blocks = list(blocks(page))
    if not any(block.runs for block in page_blocks):
        return
    system: Any = request.getfixturevalue("system")
    desk = Desk(tmp_path, page, dict(system.env))
    for block in page_blocks:
        desk.perform(block)
    desk.program(page_blocks)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_files_that_the_page_shows_are_valid(page: Path, tmp_path: Path) -> None:
    """Job files, configurations and files of clusters."""
    from raysched.machines.file import load as load_cluster
    from raysched.specs.config import load_config
    from raysched.specs.job import load_jobs

    for block in blocks(page):
        if block.language != "yaml" or block.excuse:
            continue
        if block.name == "config":
            path = tmp_path / "raysched.yaml"
            path.write_text(block.body, encoding="utf-8")
            load_config(path)
        elif block.name == "cluster":
            path = tmp_path / "cluster.yaml"
            path.write_text(block.body, encoding="utf-8")
            load_cluster(path)
        else:
            load_jobs(Path(block.name or "job.yaml"), block.body.encode())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files of the tree."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_a_block_that_does_not_run_says_why() -> None:
    for page in PAGES:
        for found in FENCE.finditer(page.read_text(encoding="utf-8")):
            assert "norun" not in found["info"] or re.search(r"norun: \w+", found["info"]), found["info"]


def test_outputs_are_compared_by_their_words() -> None:
    assert says_the_same("job-1  hpo  3m\n", "job-77   hpo  12s\n")
    assert says_the_same("first\n...\nlast\n", "first\na\nb\nlast\n")
    assert not says_the_same("1 waits\n", "1 runs\n")


def test_the_readme_has_every_exit_code() -> None:
    """With the words of errors.py."""
    from raysched import errors

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^ +[├└]── (\w+) +(\d+) +(.+)$", errors.__doc__ or "", re.MULTILINE)
    kinds = {kind.__name__: str(kind.exit_code) for kind in errors.RayschedError.__subclasses__()}
    assert {name: code for name, code, _ in listed} == kinds
    for _, code, meaning in listed:
        assert f"| {code} | {meaning} |" in readme


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert not [name for name in pages if f"({name})" not in index]
