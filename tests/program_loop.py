"""Runs the functions that a test sends, one after the other, in a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
import ray

import raysched

MODULES: list[ModuleType] = [asyncio, os, pytest, ray, raysched, signal, subprocess, sys, threading, time]
SPACE: dict[str, Any] = {"__name__": "__main__", "suppress": suppress}
"""The globals of all functions: each sees what an earlier one made global."""
SPACE.update((module.__name__, module) for module in MODULES)


def main(answers: int) -> None:
    """Read orders from stdin until it is closed."""
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            out.write(json.dumps(answer(json.loads(line))) + "\n")
            out.flush()


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """What a function returned, or its traceback."""
    try:
        exec(compile(order["source"], "program", "exec"), SPACE)
        return {"value": SPACE[order["name"]](), "error": None}
    except BaseException:
        return {"value": None, "error": traceback.format_exc()}


if __name__ == "__main__":
    main(int(sys.argv[1]))
