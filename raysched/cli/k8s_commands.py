"""The commands about Kubernetes clusters: k8s sharing, doctor, rbac."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from raysched.cli import sharing_commands
from raysched.cli.options import AsJson
from raysched.cli.output import Output

app = typer.Typer(
    name="k8s",
    help="A Kubernetes cluster: how its GPUs are shared, doctor, rbac.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(sharing_commands.app)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The configuration; else the usual one."),
]


@app.command()
def doctor(config: ConfigFile = None, as_json: AsJson = False) -> int:
    """Say what the cluster lacks, and how to get it.

    Rights, kinds of objects, drivers on its nodes; raysched need not be up. The exit code is 1 if one is
    missing.
    """
    from raysched.cli.checks import check_lines
    from raysched.cluster import kube

    output = Output(as_json)
    checks = kube.examine(config)
    output.answer(
        {"checks": [dataclasses.asdict(check) for check in checks]}, check_lines(checks, output.width)
    )
    return int(not all(check.ok for check in checks))


@app.command()
def rbac(
    namespace: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where jobs run; else that of the configuration.")
    ] = None,
    account: Annotated[
        str, typer.Option(metavar="NAME", help="The service account that gets the rights.")
    ] = "raysched",
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Those for raysched node and k8s sharing set instead.")
    ] = False,
    plugins: Annotated[
        str, typer.Option(metavar="NAME", help="With --nodes: the namespace of NVIDIA's device plugin.")
    ] = "gpu-operator",
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the least rights that raysched needs, for kubectl apply."""
    import yaml

    from raysched.cluster import kube

    manifests = kube.rbac(config, namespace, account, plugins if nodes else None)
    if as_json:
        items = list(yaml.safe_load_all(manifests))
        Output(as_json).document({"apiVersion": "v1", "kind": "List", "items": items})
    else:
        print(manifests, end="")
