"""Mutants of GPUs that somebody cuts by hand."""

from __future__ import annotations

from mutant import Mutant

TESTS = ("tests/core/test_layouts.py",)

LAYOUTS = (
    Mutant(
        "a GPU cut by hand under its tenants",
        "core/layouts.py",
        "    if tenants:\n",
        "    if False:\n",
        TESTS,
    ),
    Mutant(
        "a GPU cut by hand under a stranger",
        "core/layouts.py",
        "    if gpu.outside or gpu.used_by_strangers:\n",
        "    if False:\n",
        TESTS,
    ),
    Mutant(
        "a faulty GPU cut by hand",
        "core/layouts.py",
        "    if gpu.info.fault or gpu.info.layout.mps:\n",
        "    if False:\n",
        TESTS,
    ),
    Mutant(
        "a GPU of a site cut by hand",
        "core/layouts.py",
        "    if node.info.site:\n",
        "    if False:\n",
        TESTS,
    ),
    Mutant(
        "a host whose GPU waits for Ray to be cut",
        "core/layouts.py",
        "    if node.info.ray_id is None:  # there",
        "    if False:  # there",
        TESTS,
    ),
    Mutant(
        "instances that nobody asked for stay",
        "core/wanted.py",
        "        destroy.update(dict.fromkeys(instance.cut for instance in free))\n",
        "        pass\n",
        TESTS,
    ),
    Mutant(
        "an instance made anew that could stay",
        "core/layouts.py",
        "yield rest[0] + (cut in there), ",
        "yield rest[0], ",
        TESTS,
    ),
    Mutant(
        "a GPU that is called cut before it is",
        "core/cutting.py",
        "        if is_layout(state, lease) and _others(state, place, slice, layout):\n",
        "        if False:\n",
        TESTS,
    ),
    Mutant(
        "more of a profile by hand than there may be",
        "core/layouts.py",
        "    if any(sum(each.id == one.id for each in profiles) > one.most for one in profiles):\n",
        "    if False:\n",
        TESTS,
    ),
)
