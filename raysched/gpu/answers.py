"""NVML's answers that are no values: what they mean, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

NO_GPUS = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
"""What NVML answers on a machine that has no NVIDIA GPU: nothing is wrong then."""

UNKNOWN = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
"""What it answers to a question that this GPU or this driver does not know."""

FORBIDDEN = pynvml.NVML_ERROR_NO_PERMISSION


def code(problem: pynvml.NVMLError) -> int:
    """NVML's number of an error."""
    return getattr(problem, "value")  # noqa: B009 - pynvml sets it where type checkers can't see it


def known(ask: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers, None where this GPU or this driver does not know the question."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError as problem:
        if code(problem) in UNKNOWN:
            return None
        raise


def asked(ask: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers, None where it has no answer for whatever reason: for what is good to know, and of
    which nothing follows."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None


def worded(what: str, problem: pynvml.NVMLError) -> str:
    """What is said where the driver does not do what it always can."""
    return (
        f"NVIDIA's driver could not {what} ({problem}); see whether `nvidia-smi` works on this node, and "
        "after an update of the driver reboot it"
    )
