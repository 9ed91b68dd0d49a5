"""Mutants of the journal and its snapshots."""

from __future__ import annotations

from mutant import Mutant

JOURNAL = ("tests/store/test_journal.py", "tests/store/test_file.py")
FAULTS = "tests/store/test_faults.py"
BOOK = ("tests/store/test_book.py",)

STORE = (
    Mutant(
        "a commit that is not on the disk",
        "store/file.py",
        '"synchronous=FULL"',
        '"synchronous=OFF"',
        (f"{FAULTS}::test_after_any_failure_of_the_disk_the_ledger_goes_on",),
    ),
    Mutant(
        "a batch in several transactions",
        "store/book.py",
        "        last = self._journal.append(facts)\n",
        "        last = [self._journal.append([fact]) for fact in facts][-1]\n",
        BOOK,
    ),
    Mutant(
        "an answer although nothing was written",
        "store/book.py",
        "            return [error] * len(batch)\n",
        "            return answers\n",
        BOOK,
    ),
    Mutant(
        "memory that is ahead of the journal",
        "store/book.py",
        "            self._fold()\n            return [error]",
        "            return [error]",
        BOOK,
    ),
    Mutant(
        "a fact that is not as it was written",
        "store/tables.py",
        "        return self.checksum == _fact_checksum(self.seq, self.kind, self.body)\n",
        "        return True\n",
        JOURNAL,
    ),
    Mutant(
        "a snapshot that is not as it was written",
        "store/snapshots.py",
        "    return row.checksum == checksum(row.seq, row.shape, row.fact, row.body)\n",
        "    return True\n",
        JOURNAL,
    ),
    Mutant(
        "a fact that is missing",
        "store/reader.py",
        "                if row.seq != after + 1 or not row.whole:\n",
        "                if not row.whole:\n",
        JOURNAL,
    ),
    Mutant(
        "a snapshot of more facts than it says",
        "store/journal.py",
        "snapshots.row_of(state, seq, self.checksum(seq) or 0)",
        "snapshots.row_of(state, seq - 1, self.checksum(seq - 1) or 0)",
        JOURNAL,
    ),
    Mutant(
        "a snapshot of other facts",
        "store/snapshots.py",
        "        elif row.fact != fact(row.seq):\n",
        "        elif False:\n",
        (f"{FAULTS}::test_a_snapshot_of_facts_that_were_lost_is_never_used",),
    ),
    Mutant(
        "two ledgers on one journal",
        "store/file.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        JOURNAL,
    ),
    Mutant(
        "facts that another ledger wrote meanwhile",
        "store/journal.py",
        "            if (newest or self._last(connection)) != self._known:\n",
        "            if False:\n",
        JOURNAL,
    ),
    Mutant(
        "an acknowledged end that is missing",
        "store/journal.py",
        "        if lost is not None:\n",
        "        if False:\n",
        (f"{FAULTS}::test_an_acknowledged_end_that_the_disk_damages_stops_the_start",),
    ),
    Mutant(
        "a damaged end cut off that may have been acknowledged",
        "store/journal.py",
        "mark.journal != self._id or not mark.exact:",
        "mark.journal != self._id:",
        (f"{FAULTS}::test_what_may_have_been_acknowledged_is_never_cut_off",),
    ),
)
