"""Each mutant fits the code as it is now; `make mutants` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_one_place_and_names_tests_that_are_there(mutant: Mutant) -> None:
    text = (ROOT / "raysched" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, "the code changed: change the mutant as well"
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    for test in mutant.tests:
        assert (ROOT / test.split("::")[0]).is_file(), test


def test_there_are_enough_of_them_and_each_has_its_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
