"""The real ledger over the real driver over a fake NVML that keeps its own state."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from streams import stream

STEPS = 400


@pytest.mark.parametrize("seed", ["1", "2"])
def test_what_the_gpus_are_is_what_the_ledger_thinks_after_every_step(
    fake_nvml: Path, tmp_path: Path, seed: str
) -> None:
    """10,000 steps: `make torture`."""
    done = stream(fake_nvml, tmp_path, seed, STEPS)
    assert done.returncode == 0, done.stderr[-3000:]
    told = Counter(json.loads(done.stdout))
    for kind in (
        "fraction",
        "time_slice",
        "mig",
        "mps",
        "exclusive",
        "cuts",
        "strangers",
        "by hand",
        "looks",
    ):
        assert told[kind], f"a stream without any {kind} shows little"
