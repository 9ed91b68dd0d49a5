"""The rules that are broken one at a time, and the tests that have to notice: a file for each subject."""

from __future__ import annotations

from broken_beyond_ray import BEYOND_RAY
from broken_capacity import CAPACITY
from broken_layouts import LAYOUTS
from broken_life import LIFE
from broken_mig import MIG
from broken_runs import RUNS
from broken_shares import SHARES
from broken_store import STORE
from broken_use import USE
from mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*CAPACITY, *SHARES, *MIG, *LAYOUTS, *LIFE, *STORE, *RUNS, *USE, *BEYOND_RAY)
