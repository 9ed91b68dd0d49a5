"""The actors of a running system are each made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import System

RACE = """
from concurrent.futures import ThreadPoolExecutor
import ray
from raysched.actors import crew

class Twin:
    pass

def make(name):
    options = {"name": name, "namespace": "twins", "get_if_exists": True, "num_cpus": 0}
    return crew._make(Twin, options)

ray.init(namespace="twins", log_to_driver=False)
with ThreadPoolExecutor(8) as makers:
    for name in ("first", "second", "third"):
        twins = list(makers.map(make, [name] * 8))
        print(len({twin._actor_id for twin in twins}))
"""


@pytest.mark.ray
def test_many_who_make_one_actor_at_once_get_the_same(system: System, tmp_path: Path) -> None:
    script = tmp_path / "race.py"
    script.write_text(RACE)
    assert system.python(str(script)).stdout.split() == ["1", "1", "1"]
