"""The commands about the journal: store check, backup, restore, compact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raysched.cli.options import AsJson
from raysched.cli.output import Output

app = typer.Typer(
    name="store",
    help="Check, back up, restore and compact the journal.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="sqlite:///PATH or postgresql://USER@HOST/DATABASE; by default the journal of raysched.yaml.",
    ),
]


@app.command()
def check(store: Store = None, as_json: AsJson = False) -> int:
    """Read the whole journal and say what is wrong with it.

    The exit code is 1 if something is wrong. Nothing is changed, and a ledger may write meanwhile.
    """
    from raysched.cli.store_lines import check_lines
    from raysched.store.check import check

    output = Output(as_json)
    found = check(_url(store)).document()
    output.answer(found, check_lines(found, output.width))
    return int(not found["ok"])


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup, a file that is not there yet.")],
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Write all of the journal into one file, while the ledger runs or not."""
    from raysched.cli.store_lines import backup_lines
    from raysched.store.backup import backup

    _answer(as_json, backup(_url(store), file), backup_lines)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")],
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the journal's place; the old journal is kept aside.

    Refused while a ledger uses the journal: run `raysched down` first.
    """
    from raysched.cli.store_lines import restore_lines
    from raysched.store.backup import restore

    _answer(as_json, restore(file, _url(store)), restore_lines)


@app.command()
def compact(store: Store = None, as_json: AsJson = False) -> None:
    """Pack what is old, without losing any of it, and give the room back.

    While the ledger runs the room is only used again, not given back.
    """
    from raysched.cli.store_lines import compact_lines
    from raysched.store.compact import compact

    _answer(as_json, compact(_url(store)), compact_lines)


def _answer(as_json: bool, answer: dict[str, Any], lines: Any) -> None:
    output = Output(as_json)
    output.answer(answer, lines(answer, output.width))


def _url(store: str | None) -> str:
    from raysched.store.usual import usual_url

    return store or usual_url()
