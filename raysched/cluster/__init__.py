"""The life of a system on this machine: what `raysched up`, `down` and `doctor` call.

Imports no Ray before something needs it.
"""

from __future__ import annotations

from raysched.cluster.doctor import Check, doctor
from raysched.cluster.down import down
from raysched.cluster.up import up

__all__ = ["Check", "doctor", "down", "up"]
