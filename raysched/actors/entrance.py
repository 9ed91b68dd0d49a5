"""How another machine joins the Ray that this process is in."""

from __future__ import annotations

import os
from pathlib import Path

import ray


def entrance() -> dict[str, str]:
    """Its `address`, and the `token` that lets a process in, empty where Ray asks for none."""
    return {"address": ray.get_runtime_context().gcs_address, "token": _token()}


def _token() -> str:
    """Where Ray's own commands look for it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return os.environ.get("RAY_AUTH_TOKEN") or Path(path).expanduser().read_text().strip()
