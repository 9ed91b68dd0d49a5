"""Reading a journal: by any number of processes, while a ledger writes it or none does."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, inspect, select
from sqlalchemy.engine import URL, Connection, Engine

from raysched.core.evolve import evolve
from raysched.core.facts import Fact
from raysched.core.state import State
from raysched.errors import StorageError
from raysched.store import snapshots
from raysched.store.place import RESTORE, Place, place_of
from raysched.store.tables import PACK, PACKS_SINCE, SCHEMA, FactRow, facts, meta, packs, unpack
from raysched.store.tables import snapshots as table

if TYPE_CHECKING:
    from typing_extensions import Self

LAST = select(func.max(facts.c.seq))
"""The number of the newest fact that is not packed."""

_log = logging.getLogger(__name__)


class NoJournal(StorageError):
    """There is a file or a database, and no journal in it."""

    @property
    def code(self) -> str:
        """That of a StorageError."""
        return "storage_error"


class Reader:
    """The journal at `url` (`sqlite:///PATH` or `postgresql://...`), to be read only.

    Every method raises StorageError with one sentence for the user: it is not there, is damaged, comes from a
    newer raysched, or can't be reached.
    """

    def __init__(self, url: str | URL) -> None:
        self.place: Place = place_of(url)
        self._engine: Engine = self.place.reader()
        with self._closing_on_error():
            self.schema = self._check_schema()

    def facts(self, after: int = 0) -> Iterator[tuple[int, Fact]]:
        """Each fact after number `after`, with its number, in order."""
        for row in self.rows(after):
            yield row.seq, row.fact()

    def rows(self, after: int = 0) -> Iterator[FactRow]:
        """The same as they were written; each one is known to be whole, and that none is missing."""
        while page := self._page(after):
            for row in page:
                if row.seq != after + 1 or not row.whole:
                    raise self._damaged(after + 1)
                yield row
                after = row.seq

    def load(self) -> tuple[State | None, int, Iterator[Fact]]:
        """The newest snapshot that can be used, the number of its last fact, and the facts after it.

        Without a snapshot: None, 0 and all facts. A snapshot that is damaged, or another version's, is passed
        over, since the facts before it are all there.
        """
        seq, state = next(snapshots.usable(self.snapshots(), self.checksum), (0, None))
        return state, seq, (fact for _, fact in self.facts(seq))

    def lost(self) -> tuple[int, int] | None:
        """The first and the last number of facts that were acknowledged and are not there."""
        mark = self.place.mark.read() if self.place.mark is not None else None
        if mark is None or mark.journal != self.id() or mark.seq <= (last := self.last()):
            return None
        return last + 1, mark.seq

    def last(self) -> int:
        """The number of the last fact; 0 where there is none."""
        with self._reading() as connection:
            return self._last(connection)

    def checksum(self, seq: int) -> int | None:
        """That of the fact with this number; None where there is none."""
        return next((row.checksum for row in self._page(seq - 1) if row.seq == seq), None)

    def id(self) -> str:
        """What tells this journal from any other; empty before a ledger used it."""
        with self._reading() as connection:
            return connection.scalar(select(meta.c.value).where(meta.c.name == "id")) or ""

    def close(self) -> None:
        """Let go of the journal."""
        self._engine.dispose()
        self.place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshots(self) -> Iterator[Any]:
        """The rows of the snapshots, the newest first, but for those that the database itself can't read."""
        if self.schema < PACKS_SINCE:  # they had no shape then
            return
        newest = select(table.c.seq).order_by(table.c.seq.desc())
        with self._reading() as connection:
            numbers = connection.scalars(newest).all()
        for seq in numbers:
            try:
                with self._reading() as connection:
                    row = connection.execute(select(table).where(table.c.seq == seq)).one_or_none()
            except StorageError as problem:
                _log.warning("The snapshot after fact %d is damaged; it is passed over. (%s)", seq, problem)
            else:
                if row is not None:  # a newer one may have taken its place
                    yield row

    def packed(self) -> int:
        """How many facts are packed."""
        if self.schema < PACKS_SINCE:
            return 0
        with self._reading() as connection:
            return connection.scalar(select(func.max(packs.c.last))) or 0

    def bytes(self) -> int:
        """What the journal takes on the disk."""
        with self._reading() as connection:
            return self.place.bytes(connection)

    def complaints(self) -> list[str]:
        """What the database itself finds wrong."""
        with self._reading() as connection:
            return self.place.complaints(connection)

    def _last(self, connection: Connection) -> int:
        found = connection.scalar(LAST)
        if found is None and self.schema >= PACKS_SINCE:
            found = connection.scalar(select(func.max(packs.c.last)))
        return found or 0

    def _page(self, after: int) -> Sequence[FactRow]:
        """Some facts after number `after`. Looked for among the unpacked ones first: what is not there any
        more is in a pack already."""
        query = select(facts).where(facts.c.seq > after).order_by(facts.c.seq).limit(PACK)
        with self._reading() as connection:
            found = [FactRow(*row) for row in connection.execute(query)]
            if self.schema < PACKS_SINCE or (found and found[0].seq == after + 1):
                return found
            pack = connection.execute(
                select(packs).where(packs.c.last > after).order_by(packs.c.first).limit(1)
            ).one_or_none()
        if pack is None:
            return found
        try:
            return [row for row in unpack(pack) if row.seq > after]
        except StorageError:
            raise self._damaged(after + 1) from None

    def _damaged(self, seq: int) -> StorageError:
        return StorageError(f"{self.place.name} is damaged at fact {seq}; {RESTORE}, or {self.place.afresh}")

    def _check_schema(self) -> int:
        with self._reading() as connection:
            version = check_schema(self.place.name, connection)
        if version is None:
            raise NoJournal(f"{self.place.name} holds no journal; name another (--store)")
        return version

    def _reading(self) -> AbstractContextManager[Connection]:
        return self.place.wording(self._engine.connect)

    @contextmanager
    def _closing_on_error(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def fold(journal: Reader) -> tuple[State, int]:
    """The state that all facts of a journal make, and the number of the last one."""
    with no_collection():
        state, seq, rest = journal.load()
        state = state or State()
        for fact in rest:
            seq += 1
            fold_in(journal, state, seq, fact)
    return state, seq


def fold_in(journal: Reader, state: State, seq: int, fact: Fact) -> None:
    """Fold one fact in. One that was recorded always fits, unless somebody changed the journal by hand."""
    try:
        evolve(state, fact)
    except Exception as problem:
        raise StorageError(
            f"{journal.place.name} does not fold: fact {seq}, {type(fact).__name__}, does not follow from "
            f"those before it ({problem!r}); {RESTORE}"
        ) from problem


@contextmanager
def no_collection() -> Generator[None]:
    """Without Python's search for cycles, of which facts and states have none: it takes as long again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def check_schema(name: str, connection: Connection) -> int | None:
    """The version of the tables, None where there are none. Raises StorageError for one of the future."""
    if not inspect(connection).has_table("meta"):
        return None
    version = int(connection.scalar(select(meta.c.value).where(meta.c.name == "schema")) or 0)
    if version > SCHEMA:
        raise StorageError(
            f"{name} was written by a newer raysched (schema {version}, this one knows {SCHEMA}); run that "
            "version or a later one"
        )
    return version or None
