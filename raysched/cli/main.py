"""The `raysched` command: its commands, and how errors reach the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from raysched.cli import (
    cluster_commands,
    job_commands,
    k8s_commands,
    lease_command,
    mig_commands,
    node_commands,
    store_commands,
    system_commands,
    usage_commands,
    vm_commands,
)
from raysched.cli.output import Output, say
from raysched.errors import RayschedError

USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
CLICK_ERROR: type[Exception] = next(k for k in typer.BadParameter.__mro__ if k.__name__ == "ClickException")
"""The base of errors in the command line itself; typer gives it no public name."""

PANELS: dict[str, list[Callable[..., Any] | typer.Typer]] = {
    "Run jobs": [
        job_commands.plan,
        job_commands.submit,
        job_commands.logs,
        job_commands.cancel,
        lease_command.lease,
    ],
    "See what goes on": [
        job_commands.status,
        job_commands.queue,
        system_commands.gpus,
        mig_commands.app,
        usage_commands.top,
        usage_commands.usage,
        usage_commands.advise,
        job_commands.explain,
    ],
    "Run raysched": [
        system_commands.up,
        system_commands.down,
        system_commands.doctor,
        node_commands.app,
        vm_commands.app,
        cluster_commands.app,
        k8s_commands.app,
        store_commands.app,
        system_commands.schema,
        usage_commands.grafana,
    ],
}


def name_of(command: Callable[..., Any] | typer.Typer) -> str:
    """What is typed for a command, or for a group of commands."""
    return str(command.info.name) if isinstance(command, typer.Typer) else command.__name__


class Sections(typer.core.TyperGroup):
    """Lists the commands under the headings of `PANELS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section a heading."""
        for heading, commands in PANELS.items():
            names = [name_of(command) for command in commands]
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(100)) for name in names])


app = typer.Typer(
    name="raysched",
    cls=Sections,
    rich_markup_mode=None,
    help="Share GPUs: whole, by fraction or by memory, for jobs on Ray, machines, Slurm and Kubernetes.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (command for commands in PANELS.values() for command in commands):
    if isinstance(command, typer.Typer):
        app.add_typer(command)
    else:
        app.command()(command)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options before a command."""
    if version:
        from raysched import __version__

        print(f"raysched {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors are one sentence on stderr, or with --json an object
    on stdout; the traceback of a fault in raysched itself is shown where RAYSCHED_DEBUG is set."""
    try:
        code = typer.main.get_command(app).main(list(arguments), prog_name="raysched", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            return 0
        # Whoever read our output, such as head, has enough. typer and rich turn that into SystemExit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except RayschedError as error:
        return _fail(arguments, error.code, str(error), error.exit_code)
    except CLICK_ERROR as error:
        return _fail(arguments, "usage", _usage(error), USAGE)
    except Exception as error:
        if os.environ.get("RAYSCHED_DEBUG"):
            raise
        return _fail(arguments, "internal", _fault(error), RayschedError.exit_code)


def _fail(arguments: Sequence[str], code: str, message: str, exit_code: int) -> int:
    if "--json" in arguments:
        Output(as_json=True).document({"error": {"code": code, "message": message}})
    else:
        say(f"error: {message}")
    return exit_code


def _usage(error: Exception) -> str:
    message: str = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "raysched"
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} See `{path} --help`."


def _fault(error: Exception) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"raysched itself failed ({what}); set RAYSCHED_DEBUG=1 to see where"
