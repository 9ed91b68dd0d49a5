"""The book: a batch is written whole, and answered for what it was."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from raysched.core.commands import Command, JobRequest, NodeSeen, Submit
from raysched.core.evolve import evolve
from raysched.core.request import Request
from raysched.core.state import State
from raysched.errors import Refused, StorageError
from raysched.store.book import Book
from raysched.store.journal import Journal
from tests.core.world import node

NOW = 1_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def book(path: Path):
    """A book in which one node has joined."""
    journal = Journal(f"sqlite:///{path}")
    opened = Book(journal, 1)
    assert opened.decide([NodeSeen(node("a", 2))], NOW) == [None]
    yield opened
    journal.close()


def submit(id: str, gpus: int = 1) -> Command:
    asked = JobRequest(id, id, "command", Request(gpus=gpus), {"entrypoint": "true"})
    return Submit(f"key-{id}", "ana", (asked,))


def break_database(path: Path, after: int) -> None:
    """From now on the database takes no fact after number `after`."""
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"create trigger broken before insert on facts when new.seq > {after} "
            "begin select raise(abort, 'broken'); end"
        )
    connection.close()


def mend_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("drop trigger broken")
    connection.close()


def folded(book: Book) -> State:
    """What the journal's facts fold to."""
    state = State()
    for _, fact in book._journal.facts(0):
        evolve(state, fact)
    return state


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_batch_whose_write_fails_leaves_nothing_and_every_command_gets_the_error(
    book: Book, path: Path, written: int
) -> None:
    """However many facts of it the database had taken by then."""
    break_database(path, after=book.seq + written)
    before = folded(book)
    answers = book.decide([submit("one"), submit("two")], NOW)
    assert [type(answer) for answer in answers] == [StorageError, StorageError]
    assert book.state == before
    assert folded(book) == before


def test_after_a_write_that_failed_the_next_one_goes_on(book: Book, path: Path) -> None:
    break_database(path, after=book.seq)
    book.decide([submit("one")], NOW)
    mend_database(path)
    assert book.decide([submit("one"), submit("two")], NOW) == [None, None]
    assert sorted(book.state.jobs) == ["one", "two"]
    assert folded(book) == book.state


def test_a_command_that_is_refused_takes_no_other_of_its_batch_with_it(book: Book) -> None:
    answers = book.decide([submit("one"), submit("many", gpus=9), submit("two")], NOW)
    assert [type(answer) for answer in answers] == [type(None), Refused, type(None)]
    assert sorted(book.state.jobs) == ["one", "two"]
    assert folded(book) == book.state


def test_a_book_that_is_opened_again_knows_the_same(book: Book, path: Path) -> None:
    book.decide([submit("one"), submit("two")], NOW)
    known, seq = book.state, book.seq
    book._journal.close()
    with Journal(f"sqlite:///{path}") as journal:
        again = Book(journal, 2)
        assert (again.state, again.seq) == (known, seq)
