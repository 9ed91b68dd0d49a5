"""The types of single values: how each is read, written back, and described in the JSON schema.

Every value is read from text (a file), from numbers (JSON, Python) and from what it is written back as.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from raysched.specs import units
from raysched.specs.document import is_text
from raysched.specs.fields import Fault, raise_faults
from raysched.specs.problems import quoted

NAME_LIMIT = 128
"""Characters that a job's name may have."""

_QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_MIG_PROFILE = re.compile(r"[0-9]+g\.[0-9]+gb([+-][a-z.]+)*")
_MIG_BEFORE = re.compile(r"^(nvidia\.com/)?mig[ -]+")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}")
_VARIABLE = re.compile(r"[^=\x00]+")
SECRET = re.compile(r"secret:(?P<name>[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)/(?P<key>[A-Za-z0-9._-]{1,253})")
"""A variable whose value is in a Secret of a Kubernetes cluster: `secret:NAME/KEY`."""

_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


def parse_text(value: object) -> str:
    """Text; numbers, true and false are taken as they are written. Raises ValueError."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("must be text")
    if "\0" in value or not is_text(value):
        raise ValueError("holds a character that no text may have (NUL, or a lone surrogate)")
    return value


def parse_name(value: object) -> str:
    """A job's name: one line of at most `NAME_LIMIT` characters, otherwise free. Raises ValueError."""
    name = parse_text(value)
    if not name.strip():
        raise ValueError("must not be empty")
    if len(name) > NAME_LIMIT:
        raise ValueError(f"has {len(name)} characters: at most {NAME_LIMIT} are allowed")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        raise ValueError("must be one line: a line break or another control character is not allowed")
    return name


def parse_queue(value: object) -> str:
    """The name of a queue, with those above it in front: `research/nlp`. Raises ValueError."""
    name = parse_text(value)
    if len(name) > NAME_LIMIT or not _QUEUE.fullmatch(name):
        raise ValueError(
            f"{quoted(name)} is no name of a queue: use letters, digits, dots, dashes and underscores, "
            f"and / between levels, {NAME_LIMIT} characters at most"
        )
    return name


def parse_entrypoint(value: object) -> str | tuple[str, ...]:
    """A command line for a shell, or a list that is run without one. Raises ValueError."""
    if isinstance(value, list | tuple):
        words = tuple(parse_text(word) for word in value)
        if not words or not words[0]:
            raise ValueError("is empty: a list starts with the program to run")
        return words
    if value is None or isinstance(value, dict):
        raise ValueError("must be a command line, or a list of words that is run without a shell")
    line = parse_text(value)
    if not line.strip():
        raise ValueError("is empty: write the command line to run")
    return line


def parse_image(value: object) -> str:
    """The name of a container image, as docker and podman read it. Raises ValueError."""
    name = parse_text(value)
    if not _IMAGE.fullmatch(name):
        raise ValueError(
            f"{quoted(name)} is no name of an image: write it as docker does, such as "
            "docker.io/library/python:3.12"
        )
    return name


def parse_env(value: object) -> dict[str, str]:
    """Environment variables. Raises ValidationError with every fault in them."""
    if not isinstance(value, Mapping):
        raise ValueError("must hold variables, each on a line of its own as `NAME: value`")
    env: dict[str, str] = {}
    faults: list[Fault] = []
    for name, content in value.items():
        try:
            env[_variable(name)] = _variable_value(content)
        except ValueError as error:
            faults.append(Fault((str(name),), str(error)))
    if faults:
        raise_faults("env", faults)
    return env


def _variable(name: object) -> str:
    text = parse_text(name)
    if not _VARIABLE.fullmatch(text):
        raise ValueError("is no name of a variable: it may not be empty or hold a =")
    if text in _DEVICES:
        raise ValueError("can't be set: the lease decides which GPUs a job sees; remove it")
    if text.startswith("RAYSCHED_"):
        raise ValueError(
            "can't be set: names that start with RAYSCHED_ are set by raysched; use another name"
        )
    return text


def _variable_value(value: object) -> str:
    if value is None:
        raise ValueError("has no value: write '' for an empty text")
    text = parse_text(value)
    if text.startswith("secret:") and not SECRET.fullmatch(text):
        raise ValueError("must be secret:NAME/KEY, the Secret of Kubernetes and the key in it")
    return text


def parse_gpu_types(value: object) -> tuple[str, ...]:
    """One name of a GPU, or a list of those that will do. Raises ValueError."""
    names = tuple(
        parse_text(name).strip() for name in (value if isinstance(value, list | tuple) else [value])
    )
    if not names:
        raise ValueError("is an empty list: name at least one, such as A100, or leave it out")
    for name in names:
        if not name:
            raise ValueError("must be the name of a GPU, such as A100")
        if "," in name:
            raise ValueError(f"{quoted(name)} looks like several: write a list, such as [A100, H100]")
    return names


def parse_mig_profile(value: object) -> str:
    """The name of a MIG profile in lower case, such as `1g.10gb`, as nvidia-smi prints it (`MIG 1g.10gb+me`)
    or Kubernetes does (`mig-1g.10gb.me`). Raises ValueError."""
    profile = _MIG_BEFORE.sub("", parse_text(value).strip().lower())
    profile = profile.replace("gb.me", "gb+me")
    if not _MIG_PROFILE.fullmatch(profile):
        raise ValueError(f"{quoted(value)} is no MIG profile: write slices and memory, such as 1g.10gb")
    return profile


def more_than_nothing(milliseconds: int) -> int:
    """A duration that has a length. Raises ValueError."""
    if milliseconds == 0:
        raise ValueError("must be more than 0")
    return milliseconds


def filled(section: object) -> object:
    """A section of a file; one with nothing in it has its defaults."""
    return {} if section is None else section


_NUMBER = float | str
_WRITTEN = str | float | bool
_SECTION = BeforeValidator(filled)

Text = Annotated[str, BeforeValidator(parse_text)]
Name = Annotated[str, Field(max_length=NAME_LIMIT), BeforeValidator(parse_name)]
QueueName = Annotated[str, BeforeValidator(parse_queue)]
Entrypoint = Annotated[
    str | tuple[str, ...],
    BeforeValidator(parse_entrypoint, json_schema_input_type=str | list[_WRITTEN]),
]
Env = Annotated[
    dict[str, str], BeforeValidator(parse_env, json_schema_input_type=dict[str, _WRITTEN]), _SECTION
]
Image = Annotated[str, BeforeValidator(parse_image)]
AnyMapping = Annotated[dict[str, Any], _SECTION]
GPUTypes = Annotated[
    tuple[str, ...], BeforeValidator(parse_gpu_types, json_schema_input_type=str | list[str])
]
MIGProfile = Annotated[str, BeforeValidator(parse_mig_profile)]
WholeNumber = Annotated[int, BeforeValidator(units.parse_whole_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(units.parse_whole_number)]
GPUCount = Annotated[int, Field(ge=0), BeforeValidator(units.parse_gpus)]

Size = Annotated[
    int,
    BeforeValidator(units.parse_size, json_schema_input_type=str),
    PlainSerializer(units.format_size, return_type=str),
]
"""MiB."""

Duration = Annotated[
    int,
    BeforeValidator(units.parse_duration, json_schema_input_type=str),
    PlainSerializer(units.format_duration, return_type=str),
]
"""Milliseconds."""

Limit = Annotated[Duration, AfterValidator(more_than_nothing)]
"""Milliseconds, more than 0."""

Fraction = Annotated[
    int,
    BeforeValidator(units.parse_fraction, json_schema_input_type=_NUMBER),
    PlainSerializer(units.format_fraction, return_type=float),
]
"""Ten-thousandths of a GPU."""

Cores = Annotated[
    int,
    BeforeValidator(units.parse_cpus, json_schema_input_type=_NUMBER),
    PlainSerializer(units.format_fraction, return_type=float),
]
"""Ten-thousandths of a CPU core."""
