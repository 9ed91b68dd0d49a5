"""The job file: one YAML document a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationError

from raysched.errors import Problem, SpecError
from raysched.specs.document import Document, read_file, read_yaml
from raysched.specs.fields import Contradiction, Fields, problems_of
from raysched.specs.k8s import K8sOptions, Labels
from raysched.specs.problems import listing
from raysched.specs.resources import Resources
from raysched.specs.slurm import SlurmOptions
from raysched.specs.values import (
    Duration,
    Entrypoint,
    Env,
    Image,
    Limit,
    Name,
    QueueName,
    Text,
    WholeNumber,
    filled,
)

Backend = Literal["ray", "k8s", "slurm", "vm", "auto"]


class RunnerOptions(Fields):
    """What the ray and vm backends understand."""

    grace: Duration = Field(
        default=10_000,
        description="The time between SIGTERM and SIGKILL when a job is stopped.",
        json_schema_extra={"default": "10s"},
    )


Runner = Annotated[RunnerOptions, BeforeValidator(filled)]


class VMOptions(RunnerOptions):
    """What the vm backend understands."""

    node_selector: Labels = Field(default_factory=dict, description="Labels that the hosts must have.")


class JobSpec(Fields):
    """One job of a job file. Times in a spec are milliseconds once it was read."""

    misplaced: ClassVar[Mapping[str, str]] = {
        name: f"belongs under resources: `resources: {{{name}: ...}}`" for name in Resources.model_fields
    }

    name: Name = Field(
        default="job", description="What people call it; by default the file's name without its end."
    )
    entrypoint: Entrypoint = Field(
        description="A command line for sh; a list is run without a shell.",
        examples=["python train.py", ["python", "train.py"]],
    )
    working_dir: Text | None = Field(
        default=".",
        description="The folder to bring along, relative to the job file; null: none.",
    )
    image: Image | None = Field(
        default=None,
        description="A container image to run the entrypoint in; null: none.",
        examples=["docker.io/library/python:3.12"],
    )
    env: Env = Field(default_factory=dict, description="Environment variables.")
    array: WholeNumber = Field(
        default=1, ge=1, le=100_000, description="How many like this; RAYSCHED_ARRAY_INDEX tells them apart."
    )
    resources: Annotated[Resources, BeforeValidator(filled)] = Field(
        default=Resources(), description="What each of them asks for; by default one whole GPU."
    )
    backend: Backend = Field(default="vm", description="What launches it; auto: whichever can.")
    queue: QueueName = Field(
        default="default", description="The queue in which it waits, such as research/nlp."
    )
    priority: WholeNumber = Field(
        default=0, ge=-1000, le=1000, description="Order in the queue; higher goes first."
    )
    preemptible: StrictBool = Field(
        default=True, description="Whether it may be stopped for others and started again."
    )
    max_runtime: Limit | None = Field(
        default=None, description="The longest an attempt may run; null: no limit.", examples=["2h", "1h30m"]
    )
    retries: WholeNumber = Field(
        default=0, ge=0, description="How often it is started again after a failure."
    )
    ray: Runner = Field(default=RunnerOptions(), description="For the ray backend only.")
    k8s: Annotated[K8sOptions, BeforeValidator(filled)] = Field(
        default=K8sOptions(), description="For the k8s backend only."
    )
    slurm: Annotated[SlurmOptions, BeforeValidator(filled)] = Field(
        default=SlurmOptions(), description="For the slurm backend only."
    )
    vm: Annotated[VMOptions, BeforeValidator(filled)] = Field(
        default=VMOptions(), description="For the vm backend only."
    )

    @property
    def grace(self) -> int:
        """Milliseconds between SIGTERM and SIGKILL."""
        return {"ray": self.ray, "slurm": self.slurm, "k8s": self.k8s}.get(self.backend, self.vm).grace

    def contradictions(self) -> Iterator[Contradiction]:
        """Only Kubernetes has secrets to refer to; only whole GPUs, for a time, can join Ray."""
        for name, value in self.env.items():
            if value.startswith("secret:") and self.backend != "k8s":
                yield Contradiction(
                    ("env",), f"{name} refers to a Secret of Kubernetes, which needs `backend: k8s`"
                )
        if self.slurm.ray == "join" and self.backend == "slurm":
            yield from self._joining()

    def _joining(self) -> Iterator[Contradiction]:
        if self.max_runtime is None:
            yield Contradiction(("slurm", "max_runtime"), "ray: join needs max_runtime: for how long?")
        if self.resources.gpus and self.resources.mode != "exclusive":
            yield Contradiction(("slurm", "resources"), "ray: join takes whole GPUs, which Ray then shares")

    def as_json(self) -> dict[str, Any]:
        """The job with all its fields as JSON values, from which `check_job` makes an equal one."""
        return self.model_dump(mode="json")


def load_jobs(path: Path, text: bytes | None = None) -> list[JobSpec]:
    """The jobs of a file, or of `text` in its place.

    Raises SpecError with every problem of the file, and FileMissing where it can't be read.
    """
    if text is None:
        text = read_file(path)
    reading = read_yaml(text, str(path))
    problems = list(reading.problems)
    jobs: list[JobSpec] = []
    for document in reading.documents:
        try:
            jobs.append(JobSpec.model_validate(_named(document, path)))
        except ValidationError as error:
            problems += problems_of(error, str(path), document)
    if not jobs and not problems:
        problems.append(Problem("holds no job: write at least `entrypoint: COMMAND`", file=str(path)))
    if problems:
        problems.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
        raise SpecError(listing(problems), problems)
    return jobs


def _named(document: Document, path: Path) -> Any:
    """The document's value, with the file's name where it gives none."""
    value = document.value
    if isinstance(value, dict) and value.get("name") is None:
        return {**value, "name": path.stem}
    return value


def check_job(value: Any, field: str = "") -> JobSpec:
    """The job that a JSON object or a mapping describes; `field` is where it stands, such as `jobs[0]`.

    Raises SpecError with all that is wrong.
    """
    try:
        return JobSpec.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error, within=field)
        raise SpecError(listing(problems), problems) from None
