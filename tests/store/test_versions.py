"""A journal that any released version wrote is read, and what it folds to stays the same."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import get_args

import pytest
from stores import FileStore, facts

from raysched.core.facts import Fact
from raysched.core.validate import validate
from raysched.store.journal import Journal
from raysched.store.reader import Reader, fold

HERE = Path(__file__).parent / "journals"
sys.path.insert(0, str(HERE))

import make  # noqa: E402

JOURNALS = sorted(HERE.glob("*.sqlite"), key=lambda path: [int(part) for part in path.stem.split(".")])


@pytest.fixture(params=JOURNALS, ids=lambda path: path.stem)
def written(request: pytest.FixtureRequest, file: FileStore) -> Path:
    """A released version's journal, copied to where `file` is; what it folds to stands in this file."""
    shutil.copy(request.param, file.path)
    return request.param.with_suffix(".json")


def test_it_folds_to_what_it_did_then(written: Path, file: FileStore) -> None:
    with Reader(file.url) as before:
        state, last = fold(before)
    assert make.told(state) == json.loads(written.read_text())
    validate(state)
    journal = Journal(file.url)
    assert journal.append(facts(1)) == last + 1
    assert [seq for seq, _ in journal.facts()] == list(range(1, last + 2))
    journal.close()


def test_to_read_it_changes_nothing(written: Path, file: FileStore) -> None:
    before = file.path.read_bytes()
    with Reader(file.url) as reader:
        fold(reader)
        assert reader.last() > 0
    assert file.path.read_bytes() == before


def test_the_newest_one_has_every_kind_of_fact(file: FileStore) -> None:
    """If this fails, tell the new kind in the story of journals/make.py and run it, with the name of the
    version that is in the making."""
    shutil.copy(JOURNALS[-1], file.path)
    kinds = set(file.sql("select distinct kind from facts").split())
    assert kinds == {kind.__name__ for kind in get_args(Fact)}


def test_the_newest_one_is_what_this_version_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails before the version was released, run journals/make.py with its name; afterwards, make one
    for the next version."""
    monkeypatch.setattr(make, "HERE", tmp_path)
    monkeypatch.setattr(make.decide, "JOBS_KEPT", make.decide.JOBS_KEPT)
    make.main("now")
    written = JOURNALS[-1].with_suffix(".json").read_text()
    assert (tmp_path / "now.json").read_text() == written
