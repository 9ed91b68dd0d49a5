"""The rules that are broken one at a time, and the tests that have to notice."""

from __future__ import annotations

from elsewhere import ELSEWHERE
from mutant import Mutant

SHARING = ("tests/core/test_sharing.py", "tests/core/test_turns.py")
JOBS = ("tests/core/test_jobs.py",)
MIG = ("tests/core/test_instances.py",)
LAYOUTS = ("tests/core/test_layouts.py",)
HEALTH = ("tests/core/test_health.py",)
WATCHDOG = ("tests/core/test_watchdog.py",)
MODEL = ("tests/core/test_model.py",)
JOURNAL = ("tests/store/test_journal.py", "tests/store/test_file.py")
FAULTS = "tests/store/test_faults.py"
DIFFERENCE = ("tests/backends/test_difference.py",)
REFUSED = ("tests/backends/test_refused_start.py",)
RUNNER = (
    "tests/backends/test_runner.py::test_a_later_process_with_the_runners_id_is_not_taken_for_it",
    "tests/backends/test_runner.py::test_a_second_runner_of_a_run_does_nothing",
)
BOOK = ("tests/store/test_book.py",)


CAPACITY = (
    Mutant(
        "more compute than a GPU has",
        "core/node.py",
        "return WHOLE - self.share_used",
        "return WHOLE",
        SHARING,
    ),
    Mutant(
        "more memory than a GPU has",
        "core/node.py",
        "self.info.memory - self.memory_used - self.foreign",
        "self.info.memory - self.foreign",
        SHARING,
    ),
    Mutant(
        "memory that a stranger uses",
        "core/node.py",
        "self.info.memory - self.memory_used - self.foreign",
        "self.info.memory - self.memory_used",
        SHARING,
    ),
    Mutant(
        "more CPUs than a node has",
        "core/placement.py",
        "return request.cpus <= node.cpus_free and request.host_memory <= node.memory_free",
        "return request.host_memory <= node.memory_free",
        SHARING,
    ),
    Mutant(
        "more host memory than a node has",
        "core/placement.py",
        "return request.cpus <= node.cpus_free and request.host_memory <= node.memory_free",
        "return request.cpus <= node.cpus_free",
        SHARING,
    ),
    Mutant(
        "a whole GPU that has tenants",
        "core/placement.py",
        '    if gpu.tenants:\n        return Lack("tenants")\n',
        "",
        SHARING,
    ),
    Mutant(
        "two ways of sharing on one GPU",
        "core/placement.py",
        "    if gpu.sharing not in (None, request.sharing):\n",
        "    if False:\n",
        SHARING,
    ),
    Mutant(
        "a GPU that somebody holds in Ray",
        "core/placement.py",
        "    if gpu.outside or not gpu.present:\n",
        "    if not gpu.present:\n",
        SHARING,
    ),
    Mutant(
        "a GPU that is no longer there",
        "core/placement.py",
        "    if gpu.outside or not gpu.present:\n",
        "    if gpu.outside:\n",
        HEALTH,
    ),
    Mutant(
        "a faulty GPU",
        "core/placement.py",
        '    if info.fault:\n        return Lack("fault")\n',
        "",
        HEALTH,
    ),
    Mutant(
        "a node that drains",
        "core/placement.py",
        "if node.lost is None and not node.draining and reaches(backend, node, request)",
        "if node.lost is None and reaches(backend, node, request)",
        HEALTH,
    ),
    Mutant(
        "a node that is lost",
        "core/placement.py",
        "if node.lost is None and not node.draining and reaches(backend, node, request)",
        "if not node.draining and reaches(backend, node, request)",
        MODEL,
    ),
    Mutant(
        "one turn too many",
        "core/placement.py",
        "return Slice(uuid, WHOLE // gpu.info.replicas, ",
        "return Slice(uuid, WHOLE // (gpu.info.replicas + 1), ",
        SHARING,
    ),
    Mutant(
        "a hard tenant that nothing holds",
        "core/isolation.py",
        '    if request.isolation == "soft":\n        return SOFT\n',
        "    return SOFT\n",
        SHARING,
    ),
    Mutant(
        "MPS where there is none",
        "core/isolation.py",
        'return "mps" if "mps" in info.mechanisms else None',
        'return "mps"',
        SHARING,
    ),
    Mutant(
        "a part of a gang",
        "core/placement.py",
        "        if not missing:\n            return tuple(places)\n    return ()\n",
        "    return tuple(places)\n",
        SHARING,
    ),
    Mutant(
        "what is kept for one who waits longer",
        "core/queue.py",
        "            _keep(state, job, kept)\n",
        "",
        JOBS,
    ),
    Mutant(
        "what a node offered before it changed",
        "core/node.py",
        "        self.remembered.clear()\n",
        "",
        SHARING,
    ),
    Mutant(
        "a rank that was ended for another tells why the gang failed",
        "core/decide.py",
        "bad = next((rank for rank in exits if",
        "bad = next((rank for rank in sorted(exits) if",
        JOBS,
    ),
    Mutant(
        "a retry that meets where the attempt before did",
        "core/environment.py",
        "+ 97 * attempt)",
        "+ 97)",
        ("tests/core/test_ranks.py",),
    ),
    Mutant(
        "a GPU that two nodes see",
        "core/decide.py",
        "return node.lost is None or bool(gpu.tenants)",
        "return False",
        HEALTH,
    ),
    Mutant(
        "the GPU of a lost node that is still held",
        "core/decide.py",
        "return node.lost is None or bool(gpu.tenants)",
        "return node.lost is None",
        HEALTH,
    ),
)

MIG_RULES = (
    Mutant(
        "two instances that overlap",
        "core/cuts.py",
        "        if blocked & cells:\n            continue\n",
        "",
        MIG,
    ),
    Mutant(
        "more of a profile than there may be",
        "core/cuts.py",
        ">= profile.most:",
        "> profile.most:",
        (*MIG, *MODEL),
    ),
    Mutant(
        "an instance that a stranger uses",
        "core/cuts.py",
        "        return busy, [instance for instance in rest if instance not in busy]\n",
        "        return [], rest\n",
        MIG,
    ),
    Mutant(
        "an instance destroyed under its tenant",
        "core/wanted.py",
        "old for cut in create for old in overlapping(geometry, cut, free))",
        "instance.cut for instance in gpu.info.layout.instances)",
        MIG,
    ),
    Mutant(
        "free instances destroyed that are in nobody's way",
        "core/wanted.py",
        "old for cut in create for old in overlapping(geometry, cut, free))",
        "instance.cut for instance in free)",
        MIG,
    ),
    Mutant(
        "a MIG mode switched under a stranger",
        "core/cutting.py",
        "        if gpu.used_by_strangers:\n",
        "        if False:\n",
        (*MIG, *MODEL),
    ),
    Mutant(
        "work that starts before its instance exists",
        "core/decide.py",
        "    if instances is None:\n",
        "    if False:\n",
        MIG,
    ),
    Mutant(
        "a cut that the driver refused",
        "core/decide.py",
        "    yield facts.CutRefused(now, command.node, command.gpu, command.cut, command.reason)\n",
        "",
        MIG,
    ),
    Mutant(
        "an instance that is gone under its tenant",
        "core/cutting.py",
        "            if there is None or there.uuid != slice.instance:\n",
        "            if False:\n",
        MIG,
    ),
)

SHARES = (
    Mutant(
        "a GPU whose MPS daemon has not ended",
        "core/placement.py",
        '    if info.layout.mps and not gpu.tenants:\n        return Lack("daemon")\n',
        "",
        SHARING,
    ),
    Mutant(
        "a tenant that starts before its MPS daemon",
        "core/cutting.py",
        '        if bool(layout.mps) != (lease.sharing == "mps"):\n            return None\n',
        "",
        SHARING,
    ),
    Mutant(
        "an MPS daemon that outlives its tenants",
        "core/wanted.py",
        "    if layout.mps and not gpu.tenants and gpu.present:\n",
        "    if False:\n",
        SHARING,
    ),
    Mutant(
        "an MPS daemon that is gone under its tenants",
        "core/cutting.py",
        '        if lease.sharing == "mps" and layout.mps != slice.pipe:\n',
        "        if False:\n",
        SHARING,
    ),
    Mutant(
        "an MPS daemon that does not start, and is asked for again at once",
        "core/placement.py",
        '    if request.sharing == "mps" and gpu.refusals and gpu.refusal(DAEMON):\n',
        "    if False:\n",
        SHARING,
    ),
    Mutant(
        "an MPS client that may have the whole memory",
        "core/environment.py",
        'f"{slice.gpu}={slice.memory}M"',
        'f"{slice.gpu}={slice.total}M"',
        SHARING,
    ),
    Mutant(
        "a hard tenant held by the weakest that there is",
        "core/placement.py",
        "    return (*(replace(plain, sharing=way) for way, will_do in asked.items() if will_do), plain)\n",
        "    return (plain, *(replace(plain, sharing=way) for way, will_do in asked.items() if will_do))\n",
        SHARING,
    ),
    Mutant(
        "a container that the kernel is said to hold",
        "core/isolation.py",
        "LIMITS if request.limitable else LIMITS[1:]",
        "LIMITS",
        SHARING,
    ),
    Mutant(
        "a tenant that the kernel is to hold, started outside",
        "core/wanted.py",
        'bool(real) and lease.mechanism == "memory_limit"',
        "False",
        SHARING,
    ),
)

LAYOUT_RULES = (
    Mutant(
        "a GPU cut by hand under its tenants",
        "core/layouts.py",
        "    if tenants:\n",
        "    if False:\n",
        LAYOUTS,
    ),
    Mutant(
        "a GPU cut by hand under a stranger",
        "core/layouts.py",
        "    if gpu.outside or gpu.used_by_strangers:\n",
        "    if False:\n",
        LAYOUTS,
    ),
    Mutant(
        "a faulty GPU cut by hand",
        "core/layouts.py",
        "    if gpu.info.fault or gpu.info.layout.mps:\n",
        "    if False:\n",
        LAYOUTS,
    ),
    Mutant(
        "a GPU of a site cut by hand",
        "core/layouts.py",
        "    if node.info.site:\n",
        "    if False:\n",
        LAYOUTS,
    ),
    Mutant(
        "a host whose GPU waits for Ray to be cut",
        "core/layouts.py",
        "    if node.info.ray_id is None:  # there",
        "    if False:  # there",
        LAYOUTS,
    ),
    Mutant(
        "instances that nobody asked for stay",
        "core/wanted.py",
        "        destroy.update(dict.fromkeys(instance.cut for instance in free))\n",
        "        pass\n",
        LAYOUTS,
    ),
    Mutant(
        "an instance made anew that could stay",
        "core/layouts.py",
        "yield rest[0] + (cut in there), ",
        "yield rest[0], ",
        LAYOUTS,
    ),
    Mutant(
        "a GPU that is called cut before it is",
        "core/cutting.py",
        "        if is_layout(state, lease) and _others(state, place, slice, layout):\n",
        "        if False:\n",
        LAYOUTS,
    ),
    Mutant(
        "more of a profile by hand than there may be",
        "core/layouts.py",
        "    if any(sum(each.id == one.id for each in profiles) > one.most for one in profiles):\n",
        "    if False:\n",
        LAYOUTS,
    ),
)

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
        '    if lease is not None and lease.state == "releasing":\n        there',
        "    if lease is not None:\n        there",
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
        "if node.lost is not None and now - node.lost >= since)",
        "if node.lost is not None)",
        JOBS,
    ),
    Mutant(
        "work launched before its lease is bound",
        "core/wanted.py",
        'if lease.state == "bound" and lease.backend == backend]',
        'if lease.state != "releasing" and lease.backend == backend]',
        JOBS,
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
        "core/decide.py",
        "return now if time is None else min(now, max(time, earliest or 0))",
        "return now if time is None else time",
        JOBS,
    ),
)

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

RUNS = (
    Mutant(
        "a run that ended and is started again",
        "backends/difference.py",
        "launch.run in launched and launch.run not in states]",
        'launch.run in launched and states.get(launch.run) != "running"]',
        DIFFERENCE,
    ),
    Mutant(
        "a run that nobody wants any more",
        "backends/difference.py",
        "    stop += [Stop(run, STRAY_GRACE) for run in _going_on(seen) if run not in launched | named]\n",
        "",
        DIFFERENCE,
    ),
    Mutant(
        "a start after its refusal was told",
        "backends/reconciler.py",
        "            if self._refused.get(launch.run, 0) <= self._heard:\n",
        "            if True:\n",
        REFUSED,
    ),
    Mutant(
        "a report that is taken for told",
        "backends/reconciler.py",
        "            await self._ledger.tell([Report(each) for each in seen])\n"
        "            self._told.update({each.run: each for each in seen})\n",
        "            self._told.update({each.run: each for each in seen})\n"
        "            await self._ledger.tell([Report(each) for each in seen])\n",
        ("tests/backends/test_told.py",),
    ),
    Mutant(
        "a runner that starts what was begun",
        "backends/runner.py",
        "        if lock(folder) is None or begun(folder):\n",
        "        if lock(folder) is None:\n",
        RUNNER,
    ),
    Mutant(
        "a stop that came first and is forgotten",
        "backends/run_folder.py",
        "            self._write_exit(code, None, reason)\n            return True\n",
        "            return True\n",
        ("tests/backends/test_vm.py::TestVM::test_a_run_stopped_before_its_start_never_starts",),
    ),
    Mutant(
        "a later process taken for the runner",
        "backends/run_folder.py",
        "        return runner.ticks(self.pid) == self.ticks and runner.boot() == self.boot\n",
        "        return runner.ticks(self.pid) is not None and runner.boot() == self.boot\n",
        RUNNER,
    ),
)

USE = (
    Mutant(
        "a tenant over its memory that nobody is told of",
        "core/watchdog.py",
        "        if used > held:\n",
        "        if used > held + 1024:\n",
        WATCHDOG,
    ),
    Mutant(
        "a job ended for what it no longer uses",
        "core/watchdog.py",
        "use is None or _memory(use) <= _held(gpu, use):",
        "use is None:",
        WATCHDOG,
    ),
    Mutant(
        "another ledger's process taken for an orphan",
        "core/watchdog.py",
        "    if known is None or lease in state.leases or not attempt.isdecimal():\n        return False\n",
        "    if known is None or lease in state.leases or not attempt.isdecimal():\n        return True\n",
        WATCHDOG,
    ),
    Mutant(
        "a use that is counted twice",
        "core/watchdog.py",
        "lease.measured.get(stretch.gpu, -1) >= stretch.end",
        "lease.measured.get(stretch.gpu, -1) > stretch.end",
        WATCHDOG,
    ),
)

MUTANTS = (*CAPACITY, *SHARES, *MIG_RULES, *LAYOUT_RULES, *LIFE, *STORE, *RUNS, *USE, *ELSEWHERE)
