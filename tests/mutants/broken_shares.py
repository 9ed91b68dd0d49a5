"""Mutants of what holds a tenant to its share, MPS above all."""

from __future__ import annotations

from mutant import Mutant

SHARING = ("tests/core/test_sharing.py", "tests/core/test_turns.py")

SHARES = (
    Mutant(
        "a GPU whose MPS daemon has not ended",
        "core/placement.py",
        '    if info.layout.mps and not gpu.tenants:\n        return Lack("daemon")\n',
        "",
        SHARING,
    ),
    Mutant(
        "a tenant that starts before its MPS daemon",
        "core/cutting.py",
        '        if bool(layout.mps) != (lease.sharing == "mps"):\n            return None\n',
        "",
        SHARING,
    ),
    Mutant(
        "an MPS daemon that outlives its tenants",
        "core/wanted.py",
        "    if layout.mps and not gpu.tenants and gpu.present:\n",
        "    if False:\n",
        SHARING,
    ),
    Mutant(
        "an MPS daemon that is gone under its tenants",
        "core/cutting.py",
        '        if lease.sharing == "mps" and layout.mps != slice.pipe:\n',
        "        if False:\n",
        SHARING,
    ),
    Mutant(
        "an MPS daemon that does not start, and is asked for again at once",
        "core/placement.py",
        '    if request.sharing == "mps" and gpu.refusals and gpu.refusal(DAEMON):\n',
        "    if False:\n",
        SHARING,
    ),
    Mutant(
        "an MPS client that may have the whole memory",
        "core/environment.py",
        'f"{slice.gpu}={slice.memory}M"',
        'f"{slice.gpu}={slice.total}M"',
        SHARING,
    ),
    Mutant(
        "a hard tenant held by the weakest that there is",
        "core/placement.py",
        "    return (*(replace(plain, sharing=way) for way, will_do in asked.items() if will_do), plain)\n",
        "    return (plain, *(replace(plain, sharing=way) for way, will_do in asked.items() if will_do))\n",
        SHARING,
    ),
    Mutant(
        "a container that the kernel is said to hold",
        "core/isolation.py",
        "LIMITS if request.limitable else LIMITS[1:]",
        "LIMITS",
        SHARING,
    ),
    Mutant(
        "a tenant that the kernel is to hold, started outside",
        "core/wanted.py",
        'bool(real) and lease.mechanism == "memory_limit"',
        "False",
        SHARING,
    ),
)
