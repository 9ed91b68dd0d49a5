"""The JSON schema: what editors show and check."""

from __future__ import annotations

from typing import Any

from raysched.specs.job import JobSpec
from raysched.specs.resources import Resources
from raysched.specs.schema import job_schema


def properties() -> dict[str, Any]:
    schema = job_schema()
    return schema["properties"] | schema["$defs"]["Resources"]["properties"]


def test_every_field_is_described() -> None:
    """An editor shows the description beside the field."""
    assert set(properties()) == set(JobSpec.model_fields) | set(Resources.model_fields)
    assert all(field.get("description") for field in properties().values())


def test_what_people_write_fits_the_schema() -> None:
    """Numbers and text where both are read; an unknown field does not fit."""
    fields = properties()
    assert {"type": "string"} in fields["gpu_type"]["anyOf"]
    assert {"type": "number"} in fields["gpu_fraction"]["anyOf"]
    assert {"type": "number"} in fields["env"]["additionalProperties"]["anyOf"]
    assert fields["backend"]["enum"] == ["ray", "k8s", "slurm", "vm", "auto"]
    assert (fields["array"]["minimum"], fields["array"]["maximum"]) == (1, 100_000)
    assert job_schema()["additionalProperties"] is False
    assert job_schema()["required"] == ["entrypoint"]
