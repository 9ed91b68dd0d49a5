"""The JSON schema of the job file, which lets editors complete and check it."""

from __future__ import annotations

from typing import Any

from raysched.specs.job import JobSpec


def job_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of one document of a job file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}
