"""The configuration file, `raysched.yaml`. With no file at all everything has a default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from raysched.errors import ConfigError, FileMissing, Problem
from raysched.specs.document import Document, read_file, read_yaml
from raysched.specs.fields import Contradiction, Fields, problems_of
from raysched.specs.inventory import HostSpec
from raysched.specs.k8s import K8sBackend
from raysched.specs.problems import listing, quoted
from raysched.specs.simulation import Simulation
from raysched.specs.slurm import SlurmBackend
from raysched.specs.values import Duration, Text, WholeNumber, filled

_RAY_ADDRESS = re.compile(r"auto|[^\s/:]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")
_STORE = re.compile(r"sqlite:////[^?]+|postgres(ql)?(\+psycopg)?://[^/]*/[^/?]+(\?.*)?")
_PASSWORD = re.compile(r"(://[^/@]*?):[^/@]*@")

SHORTEST_SILENCE = 15_000
SHORTEST_SAMPLE = 1_000

Part = TypeVar("Part", bound=Fields)
Section = Annotated[Part, BeforeValidator(filled)]
"""A part of the file; one with nothing in it has its defaults."""


def parse_folder(value: str) -> str:
    """A folder, with `~` for the user's home. Raises ValueError for one that depends on where one stands."""
    if not Path(value).expanduser().is_absolute():
        raise ValueError(f"{quoted(value)} must start with / or ~/")
    return value


def parse_store(value: str) -> str:
    """The URL of a journal. Raises ValueError."""
    if not _STORE.fullmatch(value):
        said = _PASSWORD.sub(r"\1:***@", value)
        raise ValueError(
            f"{quoted(said)} names no journal: write sqlite:///PATH, where PATH starts with /, or "
            "postgresql://USER@HOST/DATABASE"
        )
    return value


def parse_ray_address(value: str) -> str:
    """`auto` or HOST:PORT. Raises ValueError."""
    if not _RAY_ADDRESS.fullmatch(value):
        raise ValueError(f"must be auto (a Ray that runs on this machine) or HOST:PORT, not {quoted(value)}")
    return value


def check_silence(milliseconds: int) -> int:
    """Programs are heard of every few seconds. Raises ValueError for less than that needs."""
    if milliseconds < SHORTEST_SILENCE:
        raise ValueError(
            f"must be at least {SHORTEST_SILENCE // 1000}s, or programs that are alive lose GPUs"
        )
    return milliseconds


def check_sample(milliseconds: int) -> int:
    """What a GPU tells is a mean over up to a second. Raises ValueError for less than that."""
    if milliseconds < SHORTEST_SAMPLE:
        raise ValueError(f"must be at least {SHORTEST_SAMPLE // 1000}s: a GPU tells nothing more often")
    return milliseconds


class Store(Fields):
    """Where the journal, packages and runs are kept."""

    folder: Annotated[Text, AfterValidator(parse_folder)] | None = Field(
        default=None, description="The folder; RAYSCHED_HOME goes before it. null: the state folder."
    )
    url: Annotated[Text, AfterValidator(parse_store)] | None = Field(
        default=None,
        description="The journal: sqlite:///PATH or postgresql://USER@HOST/DATABASE. null: in the folder.",
    )


class Gateway(Fields):
    """Where the HTTP API listens."""

    host: Text = Field(
        default="127.0.0.1", description="The address to listen at; by default this machine only."
    )
    port: WholeNumber = Field(default=8274, ge=0, le=65535, description="The port; 0: any free one.")


class RayBackend(Fields):
    """The Ray cluster."""

    address: Annotated[Text, AfterValidator(parse_ray_address)] | None = Field(
        default=None, description="auto or HOST:PORT of a running Ray; null: one is started."
    )


class VMBackend(Fields):
    """Plain machines: this one, and those that SSH reaches."""

    hosts: tuple[HostSpec, ...] = Field(default=(), description="The machines that SSH reaches.")

    def contradictions(self) -> Iterator[Contradiction]:
        """No two hosts have one name, or are one machine."""
        names = [host.name for host in self.hosts]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Contradiction(("hosts",), f"two hosts are named {quoted(name)}")
        ways: dict[tuple[str, int | None, str | None], str] = {}
        for host in self.hosts:
            first = ways.setdefault((host.address or host.name, host.port, host.jump), host.name)
            if first != host.name:
                text = f"{first} and {host.name} have one address: a machine is one host"
                yield Contradiction(("hosts",), text)


class Backends(Fields):
    """What launches work."""

    ray: Section[RayBackend] = Field(default=RayBackend(), description="The Ray cluster.")
    vm: Section[VMBackend] = Field(default=VMBackend(), description="This machine and others.")
    slurm: SlurmBackend | None = Field(default=None, description="A Slurm site; null: none.")
    k8s: K8sBackend | None = Field(default=None, description="Kubernetes clusters; null: none.")


class Watchdog(Fields):
    """What is done about those who use more of a GPU than they have."""

    sample: Annotated[Duration, AfterValidator(check_sample)] = Field(
        default=2_000, description="How often each GPU is measured.", examples=["1s", "10s"]
    )
    over_memory: Literal["report", "warn", "end"] = Field(
        default="warn",
        description="A tenant that holds more memory than it has: report it, warn its owner, or end the job.",
    )
    orphans: Literal["report", "end"] = Field(
        default="end", description="Processes on a GPU whose lease is over: report or end them."
    )
    without_lease: Literal["report", "end"] = Field(
        default="report", description="Processes on a GPU that never had a lease: report or end them."
    )
    grace: Duration = Field(
        default=60_000,
        description="The time from the first sight to the end.",
        examples=["60s", "5m"],
    )


class Policy(Fields):
    """Rules of the ledger."""

    watchdog: Section[Watchdog] = Field(
        default=Watchdog(), description="What is done about those who use more of a GPU than they have."
    )

    replicas: WholeNumber = Field(
        default=4, ge=1, le=64, description="How many tenants take turns on a GPU that is time-sliced."
    )
    silence: Annotated[Duration, AfterValidator(check_silence)] = Field(
        default=60_000,
        description="How long a program that holds leases may be stopped, suspended or cut off.",
        examples=["60s", "5m"],
    )


class Config(Fields):
    """All settings."""

    store: Section[Store] = Field(default=Store(), description="Where files are kept.")
    gateway: Section[Gateway] = Field(default=Gateway(), description="The HTTP API.")
    backends: Section[Backends] = Field(default=Backends(), description="What launches work.")
    policy: Section[Policy] = Field(default=Policy(), description="Rules of the ledger.")
    simulate: Simulation | None = Field(
        default=None, description="GPUs to make up on this machine, such as 2xA100-80GB; null: the real ones."
    )


def load_config(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration in `path`, else in the file that RAYSCHED_CONFIG names, else in raysched.yaml of the
    user's configuration folder, else the defaults.

    Raises ConfigError with every problem of the file, and FileMissing where one that was named is not there.
    """
    if path is not None:
        return _checked(path, read_file(path))
    if named := environment.get("RAYSCHED_CONFIG"):
        try:
            return load_config(Path(named).expanduser())
        except FileMissing as error:
            raise FileMissing(f"RAYSCHED_CONFIG: {error}") from None
    usual = _usual_file(environment)
    return _checked(usual, read_file(usual)) if usual.exists() else Config()


def _usual_file(environment: Mapping[str, str]) -> Path:
    folder = environment.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "raysched" / "raysched.yaml"


def _checked(file: Path, text: bytes) -> Config:
    reading = read_yaml(text, str(file))
    problems = list(reading.problems)
    if len(reading.documents) > 1:
        line = reading.documents[1].place(()).line
        problems.append(Problem("a second document starts here: keep one", file=str(file), line=line))
    document = reading.documents[0] if reading.documents else Document({}, {})
    config = Config()
    try:
        config = Config.model_validate(document.value)
    except ValidationError as error:
        problems += problems_of(error, str(file), document)
    if problems:
        raise ConfigError(listing(problems), problems)
    return config
