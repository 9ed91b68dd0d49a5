"""Mutants of what a GPU and a node have, and who gets it."""

from __future__ import annotations

from mutant import Mutant

SHARING = ("tests/core/test_sharing.py", "tests/core/test_turns.py")
JOBS = ("tests/core/test_jobs.py",)
HEALTH = ("tests/core/test_health.py",)
MODEL = ("tests/core/test_model.py::TestOnRay",)

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
        "core/meeting.py",
        "+ 97 * attempt)",
        "+ 97)",
        ("tests/core/test_ranks.py",),
    ),
    Mutant(
        "a GPU that two nodes see",
        "core/twins.py",
        "return node.lost is None or bool(gpu.tenants)",
        "return False",
        HEALTH,
    ),
    Mutant(
        "the GPU of a lost node that is still held",
        "core/twins.py",
        "return node.lost is None or bool(gpu.tenants)",
        "return node.lost is None",
        HEALTH,
    ),
)
