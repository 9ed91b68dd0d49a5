"""Mutants of the life of jobs and leases, and commands that are repeated."""

from __future__ import annotations

from mutant import Mutant

SHARING = ("tests/core/test_sharing.py", "tests/core/test_turns.py")
JOBS = ("tests/core/test_jobs.py",)
FOLLOWING = ("tests/core/test_following.py",)
MODEL = ("tests/core/test_model.py::TestOnRay",)

LIFE = (
    Mutant(
        "a submission accepted twice",
        "core/decide.py",
        "command: commands.Submit, now: int) -> Iterator[Fact]:\n"
        "    if known_key(state, command.key, command.digest):\n        return\n",
        "command: commands.Submit, now: int) -> Iterator[Fact]:\n",
        JOBS,
    ),
    Mutant(
        "a command that is repeated and done twice",
        "core/decide.py",
        "command: commands.Once, now: int) -> Iterator[Fact]:\n"
        "    if known_key(state, command.key, command.digest):\n        return\n",
        "command: commands.Once, now: int) -> Iterator[Fact]:\n",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "a key that was used for something else",
        "core/decide.py",
        "    if before and digest and before != digest:\n",
        "    if False:\n",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "the report of an old attempt",
        "core/decide.py",
        "seen.run.attempt != job.attempt or ",
        "",
        JOBS,
    ),
    Mutant(
        "capacity that is free before its processes are gone",
        "core/decide.py",
        "[place.node for place in lease.places if keeper(state, place.node) is None], now)",
        "[place.node for place in lease.places], now)",
        SHARING,
    ),
    Mutant(
        "a bound lease that somebody calls gone",
        "core/decide.py",
        'if lease is None or lease.state != "releasing":',
        "if lease is None:",
        MODEL,
    ),
    Mutant(
        "all of a lease free with a part of it",
        "core/decide.py",
        "    if len(nodes) == len(lease.places):\n",
        "    if nodes:\n",
        JOBS,
    ),
    Mutant(
        "one retry too many",
        "core/decide.py",
        "    if job.failures < job.retries:\n",
        "    if job.failures <= job.retries:\n",
        JOBS,
    ),
    Mutant(
        "a refusal of the engine that uses up a retry",
        "core/decide.py",
        "    yield facts.Returned(now, job.id, reason, until)\n",
        "    yield facts.Retried(now, job.id, reason)\n",
        JOBS,
    ),
    Mutant(
        "an owner that dies and keeps its leases",
        "core/decide.py",
        "    for id in state.owned.get(command.owner, {}):\n",
        "    for id in ():\n",
        JOBS,
    ),
    Mutant(
        "an owner that is silent and keeps its leases",
        "actors/heartbeats.py",
        "if silent >= self._patience]",
        "if silent > 2 * self._patience]",
        ("tests/actors/test_heartbeats.py",),
    ),
    Mutant(
        "a ledger that stood still and takes leases for it",
        "actors/heartbeats.py",
        "        step = min(seconds, STEP_S)\n",
        "        step = seconds\n",
        ("tests/actors/test_heartbeats.py",),
    ),
    Mutant(
        "no patience with a node that is lost",
        "core/decide.py",
        "one.lost is not None and (one.lost <= at or lent.has_left(state, one)))",
        "one.lost is not None)",
        JOBS,
    ),
    Mutant(
        "work launched before its lease is bound",
        "core/wanted.py",
        'if lease.state == "bound" and lease.backend == backend:',
        'if lease.state != "releasing" and lease.backend == backend:',
        JOBS,
    ),
    Mutant(
        "a backend that is not told what becomes of a job",
        "core/following.py",
        "        return () if lease is None else (lease,)\n",
        "        return ()\n",
        FOLLOWING,
    ),
    Mutant(
        "a backend that is not told of a grant",
        "core/following.py",
        "        return (fact.lease.id,)\n",
        "        return ()\n",
        FOLLOWING,
    ),
    Mutant(
        "a backend that is told of changes to what it never had",
        "core/following.py",
        "        if not self._oldest <= version <= self._version:\n",
        "        if version < 0:\n",
        FOLLOWING,
    ),
    Mutant(
        "an ended job that is forgotten at once",
        "core/decide.py",
        "    surplus = len(state.ended) - JOBS_KEPT\n",
        "    surplus = len(state.ended)\n",
        JOBS,
    ),
    Mutant(
        "a node's clock that is believed",
        "core/reports.py",
        "return now if time is None else min(now, max(time, earliest or 0))",
        "return now if time is None else time",
        JOBS,
    ),
)
