"""What is said to Slurm alone: under `slurm:` of a job, and under `backends.slurm` of the configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from raysched.specs.fields import Fields
from raysched.specs.problems import quoted
from raysched.specs.values import Duration, Size, Text

OURS = (
    "account",
    "array",
    "chdir",
    "comment",
    "constraint",
    "cpus-per-task",
    "error",
    "export",
    "gpus",
    "gpus-per-node",
    "gpus-per-task",
    "gres",
    "input",
    "job-name",
    "mem",
    "mem-per-cpu",
    "mem-per-gpu",
    "nodes",
    "no-requeue",
    "ntasks",
    "ntasks-per-node",
    "output",
    "parsable",
    "partition",
    "qos",
    "requeue",
    "reservation",
    "signal",
    "time",
    "wait",
    "wrap",
)
"""Options of sbatch that raysched sets, from fields of their own."""
IDLE = ("help", "test-only", "usage", "version")
"""Options with which sbatch submits nothing."""

_OPTION = re.compile(r"--(?P<name>[a-z][a-z-]*)(=[^\x00-\x1f]+)?")
_WORD = re.compile(r"[^\s\x00-\x1f,][^\x00-\x1f]*")
_SIGNAL = re.compile(r"(?P<name>[A-Z]+[0-9]*)@(?P<seconds>[0-9]{1,5})")
_SIGNALS = ("USR1", "USR2", "HUP", "INT", "ALRM")
_URL = re.compile(r"https?://[^\s/@?#]+/?")
_LOGIN = re.compile(r"[^\s\x00-\x1f-][^\s\x00-\x1f]*")


def parse_word(value: str) -> str:
    """A name that an administrator gave. Raises ValueError."""
    if not _WORD.fullmatch(value):
        raise ValueError(f"{quoted(value)} is no name: write one line that does not begin with a space")
    return value


def parse_signal(value: str) -> str:
    """A signal and the seconds before the end at which it comes: `USR1@60`. Raises ValueError."""
    found = _SIGNAL.fullmatch(value)
    if found is None or found["name"] not in _SIGNALS:
        raise ValueError(f"{quoted(value)} must be one of {', '.join(_SIGNALS)}, then @SECONDS: USR1@60")
    return value


def parse_options(value: object) -> tuple[str, ...]:
    """Further options of sbatch, each as one text `--name=value`. Raises ValueError."""
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of options of sbatch, such as [--exclusive, --licenses=matlab:1]")
    options: list[str] = []
    for option in value:
        found = _OPTION.fullmatch(option) if isinstance(option, str) else None
        if found is None:
            raise ValueError(f"{quoted(str(option))} must be one option of sbatch on one line: --name=value")
        if problem := _misused(found["name"]):
            raise ValueError(problem)
        options.append(str(option))
    return tuple(options)


def _misused(name: str) -> str:
    """Why an option of sbatch, which takes shortened names too, can't be given; empty where it can."""
    meant = [known for known in (*OURS, *IDLE) if known.startswith(name)]
    if not meant:
        return ""
    known = name if name in meant else meant[0]
    said = f"--{name}" if known == name else f"--{name} (--{known})"
    if known in IDLE:
        return f"{said} submits nothing: remove it"
    return f"{said} is set by raysched: use the field of the job file instead"


def parse_ray(value: object) -> object:
    """Whether Ray is started on the nodes of a job, or they join one. Raises ValueError."""
    if value is True or value is False or value == "join":
        return value
    raise ValueError(f"{quoted(value)} must be true, false or join")


def parse_login(value: str) -> str:
    """A destination of ssh. Raises ValueError."""
    if not _LOGIN.fullmatch(value):
        raise ValueError(f"{quoted(value)} is no destination of ssh: write HOST or USER@HOST")
    return value


def parse_url(value: str) -> str:
    """A URL of http or https, without a path. Raises ValueError."""
    if not _URL.fullmatch(value):
        raise ValueError(f"{quoted(value)} is no URL such as http://slurm.example:6820")
    return value


def parse_shared_folder(value: str) -> str:
    """A folder that starts with / or ~/. Raises ValueError."""
    if not Path(value).expanduser().is_absolute():
        raise ValueError(f"{quoted(value)} must start with / or ~/")
    return value


Word = Annotated[Text, AfterValidator(parse_word)]
Options = Annotated[
    tuple[str, ...], BeforeValidator(parse_options, json_schema_input_type=list[str]), Field(default=())
]


class SlurmOptions(Fields):
    """What a job says to Slurm."""

    account: Word | None = Field(default=None, description="The account that is charged.")
    partition: Word | None = Field(default=None, description="The partition; null: the default one.")
    qos: Word | None = Field(default=None, description="The quality of service.")
    reservation: Word | None = Field(default=None, description="The reservation to run in.")
    constraint: Word | None = Field(default=None, description="Features that the nodes must have.")
    signal: Annotated[Text, AfterValidator(parse_signal)] | None = Field(
        default=None,
        description="A warning to the command, that many seconds before the time limit.",
        examples=["USR1@60"],
    )
    ray: Annotated[bool | Literal["join"], BeforeValidator(parse_ray)] = Field(
        default=False,
        description="Start Ray on all nodes of the job, and the entrypoint once, as its driver; join: the "
        "nodes join raysched's own Ray, and leave before max_runtime is over.",
    )
    options: Options = Field(
        default=(), description="Further options of sbatch.", examples=[["--exclusive", "--nice=100"]]
    )
    grace: Duration = Field(
        default=10_000,
        description="The time between SIGTERM and SIGKILL when a job is stopped.",
        json_schema_extra={"default": "10s"},
    )


def parse_gpu_memory(value: object) -> Any:
    """Types and sizes. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must hold types of GPUs with their memory, such as {a100: 80GiB}")
    return value


class SlurmBackend(Fields):
    """A Slurm site."""

    folder: Annotated[Text, AfterValidator(parse_shared_folder)] = Field(
        description="Where runs are kept: a folder that this machine and all nodes see under the same path."
    )
    login: Annotated[Text, AfterValidator(parse_login)] | None = Field(
        default=None, description="Where sbatch is run, as ssh knows it; null: here."
    )
    rest: Annotated[Text, AfterValidator(parse_url)] | None = Field(
        default=None, description="The URL of a slurmrestd to use instead of commands; null: none."
    )
    token_file: Annotated[Text, AfterValidator(parse_shared_folder)] | None = Field(
        default=None,
        description="The file with the token for it; null: SLURM_JWT of the shell that runs `up`.",
    )
    python: Word = Field(default="python3", description="Python 3.9 or later on the nodes.")
    account: Word | None = Field(default=None, description="For jobs that name none.")
    partition: Word | None = Field(default=None, description="For jobs that name none.")
    qos: Word | None = Field(default=None, description="For jobs that name none.")
    simulate: Word | None = Field(
        default=None,
        description="The model of the made-up GPUs that nodes have which join Ray; null: real ones.",
        examples=["A100-80GB"],
    )
    gpu_memory: Annotated[dict[str, Size], BeforeValidator(parse_gpu_memory)] = Field(
        default_factory=dict,
        description="The memory of a GPU by its type, which Slurm does not tell.",
        examples=[{"a100": "80GiB"}],
    )
