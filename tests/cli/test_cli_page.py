"""docs/cli.md has every command with every option, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from raysched import errors
from raysched.cli.main import PANELS, app, name_of

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTIONS = {
    found[1]: found[2]
    for found in re.finditer(r"^### `raysched (\w+)[^\n]*\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
}
EVERYWHERE = {"--json", "--help", "-h"}


def test_every_command_is_documented() -> None:
    assert set(SECTIONS) == {name_of(command) for commands in PANELS.values() for command in commands}


def whole(command: Any) -> Iterator[Any]:
    """A command, and those that it is a group of."""
    yield command
    for one in getattr(command, "commands", {}).values():
        yield from whole(one)


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_options_are_those_of_the_command(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    parameters = [parameter for one in whole(command) for parameter in one.params]
    options = {option for parameter in parameters for option in parameter.opts if option.startswith("-")}
    written = set(re.findall(r"`(--?[a-z-]+)", SECTIONS[name]))
    assert written - EVERYWHERE == options - EVERYWHERE


def test_every_exit_code_is_documented() -> None:
    table = PAGE[PAGE.index("| code |") : PAGE.index("A job that is followed")]
    codes = {
        int(code) for row in table.strip().splitlines()[2:] for code in re.findall(r"\d+", row.split("|")[1])
    }
    kinds = [kind for kind in errors.RayschedError.__subclasses__() if kind is not errors.LeaseLost]
    assert {kind.exit_code for kind in kinds} <= codes
