"""The machines that raysched reaches over SSH, as `backends.vm.hosts` of the configuration names them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from raysched.errors import SpecError
from raysched.specs.fields import Fields, problems_of
from raysched.specs.k8s import Labels
from raysched.specs.problems import listing, quoted
from raysched.specs.simulation import Simulation
from raysched.specs.values import Cores, Size, Text, WholeNumber

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ADDRESS = re.compile(r"[A-Za-z0-9_\[:][A-Za-z0-9._:%\[\]-]*")
_USER = re.compile(r"[A-Za-z0-9_][\w.@\\-]*")
_PATH = re.compile(r"(~|/|[A-Za-z0-9_.])[^\n]*")


def parse_host_name(value: str) -> str:
    """The name of a node. Raises ValueError."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is no name of a host: use letters, digits, dots, dashes and underscores, "
            "63 at most"
        )
    return value


def parse_address(value: str) -> str:
    """A host name, an IP address or an alias of the SSH configuration. Raises ValueError."""
    if not _ADDRESS.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is no address: write a host name, an IP address or an alias of ssh"
        )
    return value


def parse_user(value: str) -> str:
    """An account. Raises ValueError."""
    if not _USER.fullmatch(value):
        raise ValueError(f"{quoted(value)} is no name of an account")
    return value


def parse_jump(value: str) -> str:
    """Jump hosts, `[USER@]HOST[:PORT]`, with commas between. Raises ValueError."""
    for hop in value.split(","):
        user, at, address = hop.strip().rpartition("@")
        if (at and not _USER.fullmatch(user)) or not _ADDRESS.fullmatch(address):
            raise ValueError(
                f"{quoted(hop.strip())} is no jump host: write [USER@]HOST[:PORT], and commas between"
            )
    return value


def parse_path(value: str) -> str:
    """A path, or the name of a program. Raises ValueError."""
    if not _PATH.fullmatch(value):
        raise ValueError(f"{quoted(value)} is no path")
    return value


Path = Annotated[Text, AfterValidator(parse_path)]


class HostSpec(Fields):
    """A machine behind SSH. What is left out comes from your SSH configuration, or from the host itself."""

    name: Annotated[Text, AfterValidator(parse_host_name)] = Field(description="Its name as a node.")
    address: Annotated[Text, AfterValidator(parse_address)] | None = Field(
        default=None, description="A host name, an IP address or an alias of ssh; null: the name."
    )
    user: Annotated[Text, AfterValidator(parse_user)] | None = Field(
        default=None, description="The account; null: as ssh would."
    )
    port: WholeNumber | None = Field(
        default=None, ge=1, le=65535, description="The port; null: as ssh would."
    )
    key: Path | None = Field(default=None, description="The file of a private key; null: as ssh would.")
    jump: Annotated[Text, AfterValidator(parse_jump)] | None = Field(
        default=None, description="Hosts to go through, such as me@gate:2222; null: as ssh would."
    )
    python: Path | None = Field(
        default=None, description="Python 3.10 or later on the host; null: the first that is found."
    )
    folder: Path | None = Field(
        default=None, description="Where raysched keeps its files there; null: ~/.local/state/raysched-host."
    )
    simulate: Simulation | None = Field(
        default=None, description="GPUs to make up there, such as 2xA100-80GB; null: the real ones."
    )
    labels: Labels = Field(
        default_factory=dict, description="What jobs can ask for with vm.node_selector, such as {zone: a}."
    )
    cpus: Cores | None = Field(default=None, description="How many cores may be given away; null: all.")
    memory: Size | None = Field(default=None, description="How much memory may be given away; null: all.")


def check_host(value: object) -> HostSpec:
    """A host from outside. Raises SpecError with every problem."""
    try:
        return HostSpec.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error)
        raise SpecError(listing(problems), problems) from None
