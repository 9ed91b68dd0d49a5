"""Mutants of what tenants use beyond their shares."""

from __future__ import annotations

from mutant import Mutant

WATCHDOG = ("tests/core/test_watchdog.py",)

USE = (
    Mutant(
        "a tenant over its memory that nobody is told of",
        "core/watchdog.py",
        "        if used > held:\n",
        "        if used > held + 1024:\n",
        WATCHDOG,
    ),
    Mutant(
        "a job ended for what it no longer uses",
        "core/watchdog.py",
        "use is None or _memory(use) <= _held(gpu, use):",
        "use is None:",
        WATCHDOG,
    ),
    Mutant(
        "another ledger's process taken for an orphan",
        "core/watchdog.py",
        "    if known is None or lease in state.leases or not attempt.isdecimal():\n        return False\n",
        "    if known is None or lease in state.leases or not attempt.isdecimal():\n        return True\n",
        WATCHDOG,
    ),
    Mutant(
        "a use that is counted twice",
        "core/watchdog.py",
        "lease.measured.get(stretch.gpu, -1) >= stretch.end",
        "lease.measured.get(stretch.gpu, -1) > stretch.end",
        WATCHDOG,
    ),
)
