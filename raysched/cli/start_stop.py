"""What `raysched up` and `down` did."""

from __future__ import annotations

from rich.text import Text

from raysched.cli.tables import fields
from raysched.cli.words import count
from raysched.client import Json

RAY_AFTERWARDS = {
    "stopped": "stopped",
    "left": "goes on, since `up` did not start it",
    "died": "was dead already; what was left of it is cleaned up",
}


def up_lines(answer: Json, width: int | None) -> list[Text]:
    """Where it is, what it has, and what Ray's own commands need."""
    ray = answer["ray"]
    needs = " ".join(f"{name}={value}" for name, value in ray["environment"].items())
    pairs = [
        ("GPUs", _gpus(answer)),
        ("Ray", f"{ray['address']}, {'started by raysched' if ray['started'] else 'which was there'}"),
        ("dashboard", ray["dashboard"] or ""),
        ("for ray", f"export {needs}" if needs else ""),
        ("files", answer["folder"]),
    ]
    return [Text(f"raysched is up at {answer['address']}", "bold"), *fields(pairs, width)]


def down_lines(answer: Json, width: int | None) -> list[Text]:
    """What became of the jobs and of Ray."""
    pairs = [
        ("cancelled", ", ".join(answer["cancelled"])),
        ("running on", ", ".join(answer["kept"])),
        ("waiting", f"{count(answer['waiting'], 'job')}, until the next `up`" if answer["waiting"] else ""),
        ("Ray", RAY_AFTERWARDS[answer["ray"]]),
    ]
    return [Text("raysched is down", "bold"), *fields(pairs, width)]


def _gpus(answer: Json) -> str:
    if not answer["gpus"]:
        return "none found; `raysched up --simulate 2xA100-80GB` makes some up"
    simulated = ", simulated" if answer["simulated"] else ""
    return f"{answer['gpus']} on {count(answer['nodes'], 'node')}{simulated}"
