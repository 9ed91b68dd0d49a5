"""The output of all ranks of a job, told apart."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from raysched.client import Client

WAITING_LINES = 1000
"""Lines that are read before somebody wants them: a rank that writes faster than they are shown waits."""
LOOK_S = 0.5
"""Seconds between two looks whether anybody still reads."""

Line = tuple[int, bytes]


def logs_of_ranks(
    client: Client, job: str, ranks: Sequence[int], *, follow: bool = False, attempt: int | None = None
) -> Iterator[Line]:
    """Each line of these ranks with its rank: one rank after the other, or with `follow` as the lines come,
    until all have ended. Only the last line of a rank may lack its end. Raises what `Client.logs` does."""
    if follow:
        yield from _Together(client, job, ranks, attempt).lines()
        return
    for rank in ranks:
        yield from _lines(rank, client.logs(job, attempt=attempt, rank=rank))


def _lines(rank: int, pieces: Iterator[bytes]) -> Iterator[Line]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            whole, rest = [*whole, rest], b""
        yield from ((rank, line) for line in whole)
    if rest:
        yield rank, rest


class _Together:
    """Follows several ranks at once, one thread for each."""

    def __init__(self, client: Client, job: str, ranks: Sequence[int], attempt: int | None) -> None:
        self._client = client
        self._job = job
        self._ranks = ranks
        self._attempt = attempt
        self._come: queue.Queue[Line | Exception | None] = queue.Queue(WAITING_LINES)
        self._left = threading.Event()

    def lines(self) -> Iterator[Line]:
        for rank in self._ranks:
            threading.Thread(target=self._follow, args=(rank,), daemon=True).start()
        going = len(self._ranks)
        try:
            while going:
                come = self._come.get()
                if isinstance(come, Exception):
                    raise come
                if come is None:
                    going -= 1
                else:
                    yield come
        finally:
            self._left.set()

    def _follow(self, rank: int) -> None:
        try:
            pieces = self._client.logs(self._job, follow=True, attempt=self._attempt, rank=rank)
            for line in _lines(rank, pieces):
                if not self._put(line):
                    return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, come: Line | Exception | None) -> bool:
        """Whether anybody took it."""
        while not self._left.is_set():
            try:
                self._come.put(come, timeout=LOOK_S)
                return True
            except queue.Full:
                continue
        return False
