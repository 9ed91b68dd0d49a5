"""Mutants of MIG instances."""

from __future__ import annotations

from mutant import Mutant

TESTS = ("tests/core/test_instances.py",)
MODEL = ("tests/core/test_model.py::TestOnRay",)

MIG = (
    Mutant(
        "two instances that overlap",
        "core/cuts.py",
        "        if blocked & cells:\n            continue\n",
        "",
        TESTS,
    ),
    Mutant(
        "more of a profile than there may be",
        "core/cuts.py",
        ">= profile.most:",
        "> profile.most:",
        (*TESTS, *MODEL),
    ),
    Mutant(
        "an instance that a stranger uses",
        "core/cuts.py",
        "        return busy, [instance for instance in rest if instance not in busy]\n",
        "        return [], rest\n",
        TESTS,
    ),
    Mutant(
        "an instance destroyed under its tenant",
        "core/wanted.py",
        "old for cut in create for old in overlapping(geometry, cut, free))",
        "instance.cut for instance in gpu.info.layout.instances)",
        TESTS,
    ),
    Mutant(
        "free instances destroyed that are in nobody's way",
        "core/wanted.py",
        "old for cut in create for old in overlapping(geometry, cut, free))",
        "instance.cut for instance in free)",
        TESTS,
    ),
    Mutant(
        "a TESTS mode switched under a stranger",
        "core/cutting.py",
        "        if gpu.used_by_strangers:\n",
        "        if False:\n",
        (*TESTS, *MODEL),
    ),
    Mutant(
        "work that starts before its instance exists",
        "core/decide.py",
        "    if instances is None:\n",
        "    if False:\n",
        TESTS,
    ),
    Mutant(
        "a cut that the driver refused",
        "core/decide.py",
        "    yield facts.CutRefused(now, command.node, command.gpu, command.cut, command.reason)\n",
        "",
        TESTS,
    ),
    Mutant(
        "an instance that is gone under its tenant",
        "core/cutting.py",
        "            if there is None or there.uuid != slice.instance:\n",
        "            if False:\n",
        TESTS,
    ),
)
