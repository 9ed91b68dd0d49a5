"""The commands about what GPUs really do: top, usage, advise, grafana."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from raysched.cli.options import AsJson
from raysched.cli.output import Output, note
from raysched.client import Client


class By(str, Enum):
    """What usage is summed up by."""

    queue = "queue"
    user = "user"
    job = "job"
    gpu = "gpu"


Since = Annotated[str, typer.Option(metavar="TIME", help="How far back, such as 12h or 30d.")]


def top(
    every: Annotated[str, typer.Option(metavar="TIME", help="Time between two looks, such as 5s.")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="Look once and end, as in a pipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show live what each GPU and each job has, and what it uses."""
    from raysched.cli.top import top_lines, watch

    client, output = Client.from_environment(), Output(as_json)
    pause = _seconds(every)
    if output.width is not None and not (as_json or once):
        output.say_if_simulated(client)
        watch(lambda width: top_lines(client.gpus(), width), pause)
    else:
        answer = client.gpus()
        output.answer(answer, top_lines(answer, output.width), client)


def usage(
    by: Annotated[By, typer.Option(help="What is summed up by.")] = By.queue,
    since: Since = "7d",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a parquet file, and print nothing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the GPU-hours granted, and how much of them was used."""
    from raysched.cli.usage_lines import frame, usage_lines, write_parquet

    client, output = Client.from_environment(), Output(as_json)
    answer = client.usage(by.value, _seconds(since))
    if parquet is not None:
        write_parquet(answer, parquet)
        note(f"wrote {parquet}")
    elif csv:
        output.say_if_simulated(client)
        frame(answer).to_csv(sys.stdout, index=False)
    else:
        output.answer(answer, usage_lines(answer, output.width), client)


def advise(since: Since = "7d", as_json: AsJson = False) -> None:
    """Show which jobs could do with less, and what that would free."""
    from raysched.cli.usage_lines import advice_lines

    client, output = Client.from_environment(), Output(as_json)
    answer = client.advice(_seconds(since))
    output.answer(answer, advice_lines(answer, output.width), client)


def grafana(as_json: AsJson = False) -> None:
    """Print a board for Grafana, on the metrics that Ray exports."""
    import json

    board = Path(__file__).with_name("grafana.json").read_text(encoding="utf-8")
    Output(as_json).document(json.loads(board))


def _seconds(text: str) -> float:
    """The seconds of a duration. Raises BadParameter."""
    from raysched.specs.units import parse_duration

    try:
        milliseconds = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if milliseconds <= 0:
        raise typer.BadParameter(f"{text} is no time: write one such as 2s or 7d")
    return milliseconds / 1000
