"""Mutants of the starts and ends of runs."""

from __future__ import annotations

from mutant import Mutant

DIFFERENCE = ("tests/backends/test_difference.py",)
REFUSED = ("tests/backends/test_refused_start.py",)
RUNNER = (
    "tests/backends/test_runner.py::test_a_later_process_with_the_runners_id_is_not_taken_for_it",
    "tests/backends/test_runner.py::test_a_second_runner_of_a_run_does_nothing",
)

RUNS = (
    Mutant(
        "a run that ended and is started again",
        "backends/difference.py",
        "if launch.run not in states and launch.run not in named]",
        'if states.get(launch.run) != "running" and launch.run not in named]',
        DIFFERENCE,
    ),
    Mutant(
        "a run that nobody wants any more",
        "backends/difference.py",
        " if state in GOES_ON and run not in known]",
        " if False]",
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
        "            self.never_start()\n            return True\n",
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
