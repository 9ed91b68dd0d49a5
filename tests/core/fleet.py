"""The machines of the random lives of `test_model.py`, and what is asked of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from raysched.core.mig import Layout
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE, Request
from raysched.gpu.geometries import geometry_of
from tests.core.world import node


def able(info: NodeInfo, **fields: Any) -> NodeInfo:
    """The node with GPUs that can do more."""
    return replace(info, gpus=tuple(replace(gpu, **fields) for gpu in info.gpus))


GRID = geometry_of("A100-80GB", 81_920)
FIXED = replace(GRID, switchable=False)
NODES = {
    "a": able(node("a", 2), mig=GRID, mechanisms=("mig",)),
    "b": able(
        node("b", 2, model="A30", memory=24_576, cpus=4),
        mig=geometry_of("A30", 24_576),
        mechanisms=("mps", "memory_limit"),
        replicas=3,
    ),
    "c": able(node("c", 2, ray_id=None, backends=("vm",)), mig=FIXED, layout=Layout(enabled=True)),
}
# The first of a's GPUs is seen by d as well: a virtual machine on the same host.
NODES["d"] = replace(node("d", 1, memory=40_960, model="H100"), gpus=(*node("d", 1).gpus, NODES["a"].gpus[0]))
SMALL = {"memory": 24_576, "model": "L4", "ray_id": None, "backends": ("vm",)}
# t is the machine of b, which Ray has; u has a GPU that t has as well, and Ray may have a node of its name.
HOSTS = {name: node(name, 1, cpus=4, **SMALL) for name in "htu"}
HOSTS["t"] = replace(HOSTS["t"], gpus=(HOSTS["t"].gpus[0], NODES["b"].gpus[1]))
HOSTS["u"] = replace(HOSTS["u"], gpus=(HOSTS["u"].gpus[0], HOSTS["t"].gpus[0]))


def site_node(name: str, *types: tuple[str, int, int]) -> NodeInfo:
    """A node of a Slurm site, with devices of these types, their memory and the parts that there are."""
    gpus = tuple(
        GPUInfo(f"SLURM-{name}-{at}", at, type, memory, parts=parts, mechanisms=("mps",) if parts else ())
        for at, (type, memory, parts) in enumerate(types)
    )
    return NodeInfo(name, ("slurm",), gpus, 16 * WHOLE, 65_536, site=True)


A100, CUT, UNKNOWN = ("a100", 81_920, 4), ("a100_3g.39gb", 37_252, 0), ("v100", 0, 2)
SITE = {"s1": site_node("s1", A100, A100), "s2": site_node("s2", A100, CUT, UNKNOWN)}
EVERYWHERE = NODES | HOSTS | SITE
# Nodes of Ray that are called like those of the site; one has a GPU that the site's has as well.
NAMESAKES = {"s1": node("s1", 1), "s2": node("s2", 1, ray_id="ray-s2")}
NAMESAKES["s2"] = replace(NAMESAKES["s2"], gpus=(*NAMESAKES["s2"].gpus, SITE["s2"].gpus[0]))
CARDS = {gpu.uuid: gpu for info in [*NAMESAKES.values(), *EVERYWHERE.values()] for gpu in info.gpus}
GPUS = sorted(CARDS)

small = st.builds(
    Request,
    gpus=st.sampled_from([1, 1, 2, 3]),
    share=st.sampled_from([1, 2500, 3333, 5000, 9999]),
    memory=st.none() | st.sampled_from([1, 6_000, 24_576]),
    sharing=st.sampled_from(["fraction", "fraction", "mps"]),
    cpus=st.sampled_from([0, 0, 5000, 40_000]),
    backends=st.sampled_from([("vm",), ("ray",), ("ray", "vm")]),
)
by_memory = st.builds(
    Request,
    memory=st.sampled_from([1, 8_192, 24_576, 24_577, 81_920, 81_921]),
    sharing=st.just("fraction"),
    isolation=st.sampled_from(["soft", "soft", "hard"]),
    or_mig=st.booleans(),
    or_mps=st.booleans(),
    limitable=st.booleans(),
)
turns = st.builds(
    Request,
    gpus=st.sampled_from([1, 1, 2]),
    share=st.none() | st.sampled_from([1000, 5000]),
    memory=st.none() | st.sampled_from([10, 20_000]),
    sharing=st.just("time_slice"),
    isolation=st.sampled_from(["soft", "soft", "hard"]),
)
whole = st.builds(
    Request,
    gpus=st.integers(0, 6),
    gpu_types=st.sampled_from([(), ("A30",), ("a100", "H100"), ("A3",), ("80gb",)]),
    cpus=st.sampled_from([0, 10_000, 160_000, 160_001]),
    host_memory=st.sampled_from([0, 30_000]),
    isolation=st.sampled_from(["soft", "hard"]),
    backends=st.sampled_from([("vm",), ("ray",), ("slurm",)]),
)
PROFILES = [
    "1g.10gb",
    "1G.10GB",
    "1g.10gb+me",
    "1g.20gb",
    "2g.20gb",
    "3g.40gb",
    "3g.39gb",
    "4g.40gb",
    "7g.80gb",
]
named = st.builds(
    Request,
    gpus=st.sampled_from([1, 1, 1, 2, 3, 8]),
    mig_profile=st.sampled_from([*PROFILES, "1g.6gb", "2g.12gb", "4g.24gb", "1g.5gb"]),
    sharing=st.just("mig"),
    backends=st.sampled_from([("vm",), ("ray",), ("ray", "vm")]),
)
instances = st.builds(
    Request,
    gpus=st.sampled_from([1, 1, 2]),
    memory=st.sampled_from([1, 9_000, 20_000, 50_000, 81_000]),
    sharing=st.just("mig"),
)
gangs = st.builds(
    lambda nodes, each, request: replace(request, nodes=nodes, gpus=nodes * each),
    st.integers(1, 3),
    st.integers(1, 2),
    st.one_of(small, whole, named),
)
requests = small | by_memory | whole | turns | named | named | instances | gangs
of_a_host = st.builds(
    Request,
    share=st.sampled_from([2500, 5000]),
    sharing=st.sampled_from(["fraction", "exclusive"]),
    gpu_types=st.just(("L4",)),
)
parts = st.builds(Request, share=st.sampled_from([2500, 5000]), sharing=st.sampled_from(["fraction", "mps"]))
of_a_site = st.builds(
    lambda request: replace(request, backends=("slurm",)), parts | parts | st.just(Request()) | requests
)
