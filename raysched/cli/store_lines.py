"""What the commands about the journal found and did."""

from __future__ import annotations

from rich.text import Text

from raysched.cli.tables import fields, wrap
from raysched.cli.words import count
from raysched.client import Json


def check_lines(found: Json, width: int | None) -> list[Text]:
    """What is in the journal, and a line for each thing that is wrong."""
    usable = [kept["seq"] for kept in found["snapshots"] if kept["usable"]]
    pairs = [
        ("facts", f"{found['facts']}, {found['packed']} of them packed"),
        ("jobs", f"{found['jobs']} known"),
        ("snapshots", ", ".join(f"after fact {seq}" for seq in sorted(usable)) or "none that can be used"),
        ("size", size(found["bytes"])),
    ]
    lines = [Text(f"the journal {found['journal']}", "bold"), *fields(pairs, width)]
    for problem in found["problems"]:
        lines += wrap(Text.assemble(("bad ", "bold red"), problem), width, "    ")
    return lines if found["problems"] else [*lines, Text("ok", "green")]


def backup_lines(done: Json, width: int | None) -> list[Text]:
    """Where it is and what is in it."""
    return [Text(f"{count(done['facts'], 'fact')} in {done['file']}, {size(done['bytes'])}")]


def restore_lines(done: Json, width: int | None) -> list[Text]:
    """What is there now, and where the old one is."""
    lines = [Text(f"the journal now holds the {count(done['facts'], 'fact')} of the backup")]
    return [*lines, Text(f"the old one is {done['aside']}")] if done["aside"] else lines


def compact_lines(done: Json, width: int | None) -> list[Text]:
    """What was packed, and what that gave."""
    packed = f"{count(done['packed'], 'fact')} packed"
    if done["in_use"]:
        room = "the file's free room is used again; it gets smaller when no ledger runs"
        return [Text(f"{packed}; {room}" if done["packed"] else packed)]
    return [Text(f"{packed}, {size(done['bytes_before'])} became {size(done['bytes_after'])}")]


def size(bytes: int) -> str:
    """`812 KiB`, `3.4 MiB`."""
    return f"{-(-bytes // 1024)} KiB" if bytes < 2**20 else f"{bytes / 2**20:.1f} MiB"
