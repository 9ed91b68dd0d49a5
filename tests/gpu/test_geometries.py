"""What the simulated models can be cut into, against NVIDIA's rules and, where they are, collected facts."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysched.core.mig import Geometry, Profile
from raysched.gpu.geometries import CUT, GRIDS, ROUND, geometry_of, starts_of
from raysched.gpu.models import MODELS

FACTS = Path(__file__).parents[3] / "shared" / "data" / "mig_geometries.yaml"
IDS = {
    "A30": "a30-24gb",
    "B200": "b200-180gb",
    "B300": "b300-269gb",
    "GB200": "gb200-186gb",
    "GB300": "gb300-278gb",
    "GH200-96GB": "h100-96gb",
    "RTX-PRO-6000": "rtx-pro-6000-96gb",
}
"""The models whose name in the facts is another."""


def geometry(model: str) -> Geometry:
    found = geometry_of(model, MODELS[model])
    assert found is not None
    return found


@pytest.mark.parametrize("model", CUT)
def test_every_figure_is_that_of_the_collected_facts(model: str) -> None:
    if not FACTS.exists():
        pytest.skip(f"the facts are not beside this checkout: {FACTS.name}")
    listed: list[dict[str, Any]] = yaml.safe_load(FACTS.read_text(encoding="utf-8"))["geometries"]
    (facts,) = [each for each in listed if each["id"] == IDS.get(model, model.lower())]
    ours = geometry(model)
    assert (ours.slices, ours.cells) == (facts["total_compute_slices"], facts["total_memory_slices"])
    assert [plain(profile) for profile in ours.profiles] == [plain_fact(each) for each in facts["profiles"]]
    published = {each["profile_id"]: each["memory_mb"] for each in facts["profiles"]}
    for profile in ours.profiles:
        part = MODELS[model] * profile.size // ours.cells // ROUND * ROUND
        assert profile.memory == (published[profile.id] or part)


def plain(profile: Profile) -> tuple[Any, ...]:
    return (profile.id, profile.name, profile.slices, list(profile.starts), profile.size, profile.most)


def plain_fact(fact: dict[str, Any]) -> tuple[Any, ...]:
    places = fact["placements"]
    name = fact["name"]
    return (
        fact["profile_id"],
        name,
        fact["compute_slices"],
        places["starts"],
        places["size"],
        fact["max_instances"],
    )


@pytest.mark.parametrize("model", CUT)
def test_no_cut_reaches_beyond_the_grid_or_the_memory(model: str) -> None:
    ours = geometry(model)
    for profile in ours.profiles:
        assert all(start + profile.size <= ours.cells for start in profile.starts)
        assert profile.memory <= MODELS[model]
        assert profile.slices <= ours.slices


@pytest.mark.parametrize("model", CUT)
def test_cuts_that_do_not_overlap_never_need_more_than_there_is(model: str) -> None:
    """The whole legality check of a placement is that no two overlap; `most` follows for plain profiles."""
    ours = geometry(model)
    cuts = [(profile, start) for profile in ours.profiles for start in profile.starts]
    for first, second in combinations(cuts, 2):
        if disjoint(first, second):
            assert first[0].slices + second[0].slices <= ours.slices
            assert first[0].memory + second[0].memory <= MODELS[model]
    for profile in ours.profiles:
        if "+me" not in profile.name:
            assert profile.most == len(profile.starts)


def disjoint(one: tuple[Profile, int], other: tuple[Profile, int]) -> bool:
    return one[1] + one[0].size <= other[1] or other[1] + other[0].size <= one[1]


def test_a_model_without_mig_has_no_geometry() -> None:
    assert geometry_of("L40S", MODELS["L40S"]) is None
    assert set(CUT) <= set(MODELS)


def test_a_grid_is_known_by_the_profiles_that_a_gpu_lists() -> None:
    for grid in GRIDS:
        found = starts_of({row.id: row.slices for row in grid})
        assert found == {row.id: row for row in grid}
    old_a30 = {row.id: row.slices for row in GRIDS[1] if row.id != 6}  # a driver before 525
    assert starts_of(old_a30) == {row.id: row for row in GRIDS[1]}
    assert starts_of({19: 1, 99: 2}) is None
    assert starts_of({}) is None
