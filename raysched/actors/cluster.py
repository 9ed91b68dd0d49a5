"""What `raysched up`, `down` and `doctor` call. Imports no Ray before something needs it."""

from __future__ import annotations

from raysched.actors.doctor import Check, doctor
from raysched.actors.down import down
from raysched.actors.up import up

__all__ = ["Check", "doctor", "down", "up"]
