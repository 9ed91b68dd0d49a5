"""The lease worker: holds one lease of a calling process and runs any of its functions."""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import ray

from raysched.actors.calls.calls import Call, Given, Outcome, When, pack_values
from raysched.actors.calls.parcel import pack_error, unpack_arguments
from raysched.errors import LeaseLost

LONG_S = 0.05
"""A call that runs longer than this is looked after, so that it can be cancelled."""

SESSION_S = 3.0
"""After this time a worker that runs waiting calls lets a direct one in between, if there is one."""

FUNCTIONS_KEPT = 256

WAKE = signal.SIGURG
"""The signal that stops at a cancelled call; Ray keeps SIGINT blocked, and programs leave this one alone."""


class Feed:
    """The calls that the relay gives to a worker in one session, and how far the worker is. Its main thread
    and its watch share it.

    Where many calls wait, the next ones are asked for while the last of those here runs. `pull` takes
    outcomes to the relay and brings a Given.
    """

    def __init__(self, pull: Callable[[list[Outcome], When], Any]) -> None:
        self._pull = pull
        self._end = time.monotonic() + SESSION_S
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque()
        self._outcomes: list[Outcome] = []
        self._coming: Any = None
        self._given = Given([], 0.0, False)
        self.current: Call | None = None

    @property
    def patience(self) -> float:
        """After a call ran for so many seconds, what is behind it goes to other workers."""
        return self._given.patience

    def next(self) -> Call | None:
        """The next call to run; none ends the session."""
        with self._lock:
            self._receive()
            if not self._calls:
                self._ask("last" if self._over else "now")
                self._receive()
            self.current = self._calls.popleft() if self._calls else None
            if self.current and not self._calls and self._given.more and not self._over:
                self._ask("ahead")
            return self.current

    def finish(self, outcome: Outcome) -> None:
        """The current call has ended."""
        with self._lock:
            self.current = None
            self._outcomes.append(outcome)

    def take(self) -> tuple[list[Outcome], list[int]]:
        """The outcomes so far, and the numbers of the calls that were not begun and no longer will be."""
        with self._lock:
            self._receive()
            rest = [call.number for call in self._calls]
            self._calls.clear()
            return self._delivered(), rest

    @property
    def _over(self) -> bool:
        return time.monotonic() >= self._end

    def _ask(self, when: When) -> None:
        self._coming = self._pull(self._delivered(), when)

    def _delivered(self) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _receive(self) -> None:
        """Take in what was asked for. Only once nothing is left here, or all of it is to go back."""
        if self._coming is not None and not self._calls:
            self._given = cast(Given, ray.get(self._coming))
            self._coming = None
            self._calls.extend(self._given.calls)


class LeaseWorker:
    """Runs calls as a plain actor method (`direct`) or from the relay's queue (`drain`), one at a time."""

    def __init__(self, name: str, pool: str, job: str, relay: Any) -> None:
        self._name = name
        self._pool = pool
        self._job = job
        self._relay = relay
        self._functions: OrderedDict[str, Callable[..., Any]] = OrderedDict()
        self._feed: Feed | None = None
        self._doomed: int | None = None
        self._lost: str | None = None
        self._turn = 0
        self._directs = 0
        self._running = False
        self._busy = threading.Event()
        signal.signal(WAKE, self._interrupt)
        # What waits in the kernel has to be interrupted too, so the signal is not one that restarts calls.
        threading.Thread(target=self._watch, name="raysched watch", daemon=True).start()
        threading.Thread(target=self._await_fate, name="raysched fate", daemon=True).start()

    def __repr__(self) -> str:
        return self._name

    # ------------------------------------------------------------ running calls

    def direct(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call; its value or exception is the task's."""
        self._directs += 1
        self._busy.set()
        try:
            with self._interruptible():
                return invoke(self._function(function), args, kwargs)
        finally:
            self._busy.clear()

    def drain(self, ahead: int) -> bool:
        """Run what waits in the relay, until nothing does or the session's time is over. Not before so many
        direct calls have begun: with one still under way nothing is done, and the answer is false."""
        if self._directs < ahead:
            return False
        feed = self._feed = Feed(self._pull)
        self._busy.set()
        try:
            while call := feed.next():
                feed.finish(self._run(call))
        finally:
            self._busy.clear()
            self._feed = None
        return True

    def farewell(self) -> None:
        """Return once it is this call's turn: the calls before it have ended, and their callers know how."""

    def _pull(self, outcomes: list[Outcome], when: When) -> Any:
        return self._relay.pull.remote([self._pool, self._job, outcomes, when])

    def _run(self, call: Call) -> Outcome:
        start = time.monotonic()
        try:
            args, kwargs = unpack_arguments(call.arguments)
            function = self._function(call.function)
            with self._interruptible():
                value = invoke(function, *fetched(args, kwargs))
            values, failure = pack_values(value, call.returns), None
        except BaseException as error:
            values, failure = [], pack_error(error)
        return Outcome(call.number, values, failure, time.monotonic() - start)

    def _function(self, id: str) -> Callable[..., Any]:
        if id not in self._functions:
            self._functions[id] = pickle.loads(ray.get(self._relay.function.remote(id)))
            if len(self._functions) > FUNCTIONS_KEPT:
                self._functions.popitem(last=False)
        return self._functions[id]

    # ------------------------------------------------------------ long calls, cancelled calls

    @contextmanager
    def _interruptible(self) -> Generator[None, None, None]:
        self._turn += 1
        try:
            self._running = True
            self._check_lease()
            yield
        finally:
            self._running = False

    def _check_lease(self) -> None:
        if self._lost is not None:
            raise LeaseLost(f"the lease of {self._name} was lost while a call ran: {self._lost}")

    def _interrupt(self, *_: object) -> None:
        """In the main thread, on another one's signal: end the call if it is the one that was cancelled, or
        any if the lease was lost."""
        if not self._running:
            return
        self._check_lease()
        feed = self._feed
        if feed is None:
            cancelled = ray.get_runtime_context().is_canceled()
        else:
            cancelled = feed.current is not None and feed.current.number == self._doomed
        if cancelled:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Look after calls that run long. Only the main thread can ask Ray whether a direct call was
        cancelled, so it is woken for that."""
        while True:
            self._busy.wait()
            turn = self._turn
            time.sleep(LONG_S)
            if not self._running or turn != self._turn:
                continue
            feed = self._feed
            if feed is None:
                self._wake()
            else:
                self._attend(feed)

    def _attend(self, feed: Feed) -> None:
        """Wait with the relay for the end of the running call, and end it early if it is cancelled."""
        call = feed.current
        if call is None:
            return
        cancelled = self._relay.attend.remote(self._pool, self._job, call.number)
        if not ray.wait([cancelled], timeout=feed.patience)[0]:
            self._relay.take_back.remote(self._pool, self._job, *feed.take())
        if ray.get(cancelled):
            self._doomed = call.number
            self._wake()

    def _await_fate(self) -> None:
        """Learn from the relay that the lease was lost, and end the call that runs."""
        self._lost = ray.get(self._relay.fate.remote(self._pool, self._job))
        self._wake()

    def _wake(self) -> None:
        """Have the main thread run `_interrupt`, as soon as it runs Python code again."""
        signal.pthread_kill(threading.main_thread().ident or 0, WAKE)


def invoke(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call the user's function. One that calls `sys.exit` must not end the worker or, later, the caller."""
    try:
        return function(*args, **kwargs)
    except SystemExit as error:
        raise RuntimeError(f"the function called sys.exit({error.code!r})") from error


def fetched(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with the values of those that are references, as Ray does it for a plain task."""
    refs = [each for each in (*args, *kwargs.values()) if isinstance(each, ray.ObjectRef)]
    if not refs:
        return list(args), kwargs
    values = dict(zip(refs, ray.get(refs), strict=True))

    def value(given: Any) -> Any:
        return values[given] if isinstance(given, ray.ObjectRef) else given

    return [value(each) for each in args], {name: value(each) for name, each in kwargs.items()}
