"""One request, whatever shares the GPUs of a cluster: what is found in the words of each project, and what a
request becomes in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import documented
import pytest
from documented import Object

from raysched.backends.kube.devices import Has, devices_of, node_info, read_register
from raysched.backends.kube.found import Found, by_node, kai_mode
from raysched.cli.k8s_lines import sharing_lines
from raysched.core.asking import PodAsk, pod_ask
from raysched.core.cluster_views import becomes, cluster_view
from raysched.core.pods import demand
from raysched.core.request import Request
from raysched.core.site import Site, Unfit, worded

DOCS = Path(__file__).parents[3] / "docs" / "kubernetes.md"
KAI, ENFORCED, HAMI_CORE = Found(kai=()), Found(kai=("nvfractions",)), Found(kai=("hami",))
DRA = Found(slices=by_node(documented.SLICES))

CLUSTERS: dict[str, tuple[Object, Found]] = {
    "whole GPUs": (documented.WHOLE, Found()),
    "MIG, mixed": (documented.MIXED, Found()),
    "MIG, single": (documented.SINGLE, Found()),
    "MPS replicas": (documented.MPS, Found()),
    "time-slicing replicas": (documented.SLICED, Found()),
    "HAMi": (documented.ON_HAMI, Found()),
    "Volcano vGPU": (documented.ON_VOLCANO, Found()),
    "KAI Scheduler, `NonMemoryEnforced`": (documented.WHOLE, KAI),
    "KAI Scheduler, `HamiCore`": (documented.WHOLE, HAMI_CORE),
    "KAI Scheduler, `NvFractions`": (documented.WHOLE, ENFORCED),
    "DRA": (documented.CLAIMED, DRA),
}
KAI_SOFT = "KAI Scheduler, `NonMemoryEnforced`"
KINDS: tuple[dict[str, Any], ...] = (
    {"gpus": 1},
    {"gpu_fraction": 0.25},
    {"gpu_memory": "10GiB"},
    {"gpu_fraction": 0.25, "isolation": "hard"},
    {"mig_profile": "1g.10gb"},
)


def site(*clusters: str) -> Site:
    nodes = [CLUSTERS[name] for name in clusters]
    return Site(tuple(node_info(node, node["metadata"]["name"], found) for node, found in nodes))


def ask(*clusters: str, **fields: Any) -> PodAsk:
    return pod_ask(demand(site(*clusters), request(**fields)))


def request(**fields: Any) -> Request:
    return Request(backends=("k8s",), **fields)


# ---------------------------------------------------------------- what is found


def test_a_gpu_that_many_can_share_is_one_gpu() -> None:
    """Case kubernetes-04: HAMi and Volcano advertise each card many times over."""
    for name in ("HAMi", "Volcano vGPU", "KAI Scheduler, `HamiCore`", "MPS replicas"):
        (node,) = site(name).nodes
        assert [gpu.memory for gpu in node.gpus] == [81920, 81920], name


def test_what_a_node_registered_is_read_in_each_form() -> None:
    for text in (documented.HAMI, documented.HAMI_JSON, documented.VOLCANO):
        found = read_register(text)
        assert [(one.memory, one.healthy, one.mode) for one in found] == [(81920, True, "hami-core")] * 2
    old = "GPU-1,10,32768,100,NVIDIA-Tesla V100-PCIE-32GB,0,false:"
    (sick,) = read_register(old)
    assert (sick.model, sick.healthy) == ("NVIDIA-Tesla V100-PCIE-32GB", False)
    for broken in ("", "x", "{}", "[1]", "a,b:c", '[{"id": 1}]', "GPU-1,10,much,100,T4,0,true:"):
        assert read_register(broken) == []


def test_gpus_that_hami_cuts_itself_are_left_to_it() -> None:
    marks = {"hami.io/node-nvidia-register": documented.HAMI.replace("0,hami-core", "0,mig")}
    info = node_info(documented.node("cut", {"nvidia.com/gpu": "20"}, {}, marks), "cut")
    assert [gpu.index for gpu in info.gpus] == [1]


@pytest.mark.parametrize(
    ("config", "held"),
    [
        (documented.kai_config("NonMemoryEnforced"), ()),
        (documented.kai_config("HamiCore"), ("hami",)),
        (documented.kai_config("NvFractions"), ("nvfractions",)),
        (documented.kai_config("Disabled"), None),
        (documented.kai_config(None, admission={"gpuSharing": True}), ()),
        (documented.kai_config(None, admission={"gpuSharing": False}), None),
        (documented.kai_config(None), None),
    ],
)
def test_how_kai_shares_is_read_from_its_settings(config: Object, held: tuple[str, ...] | None) -> None:
    assert kai_mode([config]) == held


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    """While its slices are replaced, a device is in two of them."""
    slices = [
        documented.resource_slice("a", documented.dra_gpu(0), documented.dra_gpu(1)),
        documented.resource_slice("a", documented.dra_gpu(0), generation=2),
    ]
    assert [device["name"] for device in by_node(slices)["a"]] == ["gpu-0"]


# ---------------------------------------------------------------- what is asked


def test_hami_is_told_memory_cores_and_the_kind_of_gpu() -> None:
    part = ask("HAMi", sharing="fraction", share=2_500)
    assert part.limits == {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "20480", "nvidia.com/gpucores": "25"}
    by_memory = ask("HAMi", sharing="fraction", memory=4_096, gpus=2)
    assert list(by_memory.limits.values()) == ["2", "4096", "5"]
    whole = ask("HAMi").limits
    assert (whole["nvidia.com/gpumem-percentage"], whole["nvidia.com/gpucores"]) == ("100", "100")
    several = ask("HAMi", "whole GPUs", sharing="fraction", share=2_500)
    assert several.annotations["nvidia.com/use-gputype"] == "NVIDIA-A100-SXM4-80GB"
    assert several.scheduler == ""


def test_volcano_is_told_in_words_of_its_own() -> None:
    part = ask("Volcano vGPU", sharing="fraction", share=2_500, isolation="hard")
    assert part.scheduler == "volcano"
    assert part.limits == {
        "volcano.sh/vgpu-number": "1",
        "volcano.sh/vgpu-memory": "20480",
        "volcano.sh/vgpu-cores": "25",
    }


def test_a_plan_says_which_part_of_a_gpu_is_had_and_by_whom() -> None:
    for name, fields, said in (
        ("HAMi", {"sharing": "fraction", "share": 2_500}, "1 x 0.25 of nvidia.com/gpu by HAMi"),
        (
            KAI_SOFT,
            {"sharing": "fraction", "memory": 8_192, "gpus": 2},
            "2 x 0.1 of nvidia.com/gpu by KAI Scheduler",
        ),
        ("whole GPUs", {}, "1 x nvidia.com/gpu"),
        ("DRA", {}, "1 x gpu.nvidia.com (NVIDIA A100-SXM4-80GB) by claim"),
    ):
        asked = request(**fields)
        assert worded(demand(site(name), asked), asked) == said


def test_kai_is_told_by_annotations_and_no_limit() -> None:
    part = ask("KAI Scheduler, `NonMemoryEnforced`", sharing="fraction", share=2_500)
    assert (part.limits, part.scheduler) == ({}, "kai-scheduler")
    assert part.annotations == {"gpu-fraction": "0.25", "gpu-fraction-container-name": "main"}
    several = ask("KAI Scheduler, `NonMemoryEnforced`", sharing="fraction", memory=4_096, gpus=2)
    assert several.annotations["gpu-memory"] == "4096"
    assert several.annotations["gpu-fraction-num-devices"] == "2"
    assert ask("KAI Scheduler, `NonMemoryEnforced`").limits == {"nvidia.com/gpu": "1"}


def test_dra_claims_whole_gpus_and_instances_by_their_attributes() -> None:
    claim = ask("DRA", sharing="mig", mig_profile="1g.10gb").claim
    assert claim is not None
    assert (claim.device_class, claim.count) == ("mig.nvidia.com", 1)
    assert claim.expressions[0] == "device.attributes['gpu.nvidia.com'].profile == \"1g.10gb\""
    whole = ask("DRA").claim
    assert whole is not None
    assert whole.device_class == "gpu.nvidia.com"


def test_dra_gives_no_shares_and_says_what_does() -> None:
    said = "by DRA, where NVIDIA's driver counts no parts of one: have HAMi or .*, or ask for mig_profile: 1g"
    for asked in ({"share": 2_500}, {"memory": 8_192}, {"share": 2_500, "isolation": "hard"}):
        with pytest.raises(Unfit, match=said):
            ask("DRA", sharing="fraction", **asked)


def test_what_holds_most_is_taken_first() -> None:
    """Case kubernetes-04: time-slicing only where nothing else shares, and never where isolation is hard."""
    order = [
        "KAI Scheduler, `NvFractions`",
        "HAMi",
        "MPS replicas",
        "time-slicing replicas",
    ]
    alone = {name: ask(name, sharing="fraction", share=2_500).words() for name in order}
    for at, name in enumerate(order):
        found = ask(*reversed(order[at:]), sharing="fraction", share=2_500)
        assert (found.limits, found.scheduler) == (
            ask(name, sharing="fraction", share=2_500).limits,
            ask(name, sharing="fraction", share=2_500).scheduler,
        )
    assert len(set(alone.values())) == len(alone)


@pytest.mark.parametrize("name", CLUSTERS)
def test_hard_isolation_is_given_only_where_something_holds(name: str) -> None:
    """Case kubernetes-04."""
    if name in ("MPS replicas", "HAMi", "Volcano vGPU") or "HamiCore" in name or "NvFractions" in name:
        assert ask(name, sharing="fraction", share=2_500, isolation="hard").words()
        return
    with pytest.raises(Unfit, match=r"isolation: hard can't be kept|no GPU of the cluster|by DRA"):
        ask(name, sharing="fraction", share=2_500, isolation="hard")


def test_a_refusal_says_what_to_install() -> None:
    with pytest.raises(Unfit, match="install HAMi or KAI Scheduler, give the NVIDIA device plugin replicas"):
        ask("whole GPUs", sharing="fraction", share=2_500)
    with pytest.raises(Unfit, match="time-slicing, which holds nothing; install HAMi, or give the NVIDIA"):
        ask("time-slicing replicas", sharing="fraction", share=2_500, isolation="hard")
    with pytest.raises(Unfit, match=r"asks for 90000 MiB of a GPU, and the largest GPU has 81920"):
        ask("HAMi", sharing="fraction", memory=90_000)
    with pytest.raises(Unfit, match="sharing: mps is asked for, and the cluster shares its GPUs by HAMi"):
        ask("HAMi", sharing="mps", share=2_500)


def test_what_a_pod_has_is_read_as_it_was_asked_for_or_given() -> None:
    def pod(limits: dict[str, str], **marks: str) -> Object:
        named = {key.replace("__", "/").replace("_", "-"): value for key, value in marks.items()}
        containers = [{"name": "a", "resources": {"limits": limits}}]
        return {"metadata": {"annotations": named}, "spec": {"containers": containers}}

    assert devices_of(pod({"nvidia.com/gpu": "2", "cpu": "1"})) == [Has("nvidia.com/gpu", 2)]
    assert devices_of(pod({}, gpu_fraction="0.25")) == [Has("nvidia.com/gpu", 1, 2_500)]
    assert devices_of(pod({}, gpu_memory="4096", gpu_fraction_num_devices="2")) == [
        Has("nvidia.com/gpu", 2, 0, 4096)
    ]
    given = f"{documented.GUID},NVIDIA,3000,30:;"
    hami = pod({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3000"})
    hami["metadata"]["annotations"]["hami.io/vgpu-devices-allocated"] = given
    assert devices_of(hami) == [Has("nvidia.com/gpu", 1, 3_000, 3000, (documented.GUID,))]


# ---------------------------------------------------------------- what people see


def test_the_view_shows_groups_of_nodes_and_what_requests_become() -> None:
    twice = [
        documented.WHOLE,
        {**documented.WHOLE, "metadata": {**documented.WHOLE["metadata"], "name": "b"}},
    ]
    nodes = [node_info(node, node["metadata"]["name"]) for node in (*twice, documented.SLICED)]
    view = cluster_view(Site(tuple(nodes)))
    assert [group["nodes"] for group in view["groups"]] == [["b", "whole"], ["sliced"]]
    (offered,) = view["groups"][1]["offers"]
    assert (offered["shares"], offered["parts"], offered["held_by"]) == ("time-slicing", 4, None)
    rows = {row["asks"]: row for row in view["requests"]}
    assert rows["gpu_fraction: 0.25"]["pod"].startswith("nvidia.com/gpu: 1, node nvidia.com/gpu.product=")
    assert "install HAMi" in rows["gpu_fraction: 0.25, isolation: hard"]["refused"]


def test_nodes_that_are_gone_are_told_apart_from_those_that_are_there() -> None:
    """What they offered may come again: an autoscaler has none at times."""
    nodes = [node_info(node, name) for node, name in ((documented.WHOLE, "a"), (documented.SLICED, "b"))]
    view = cluster_view(Site((*nodes, node_info(documented.WHOLE, "c"))), {"b", "c"})
    assert [(group["nodes"], group["lost"]) for group in view["groups"]] == [(["a"], ["c"]), ([], ["b"])]
    lines = [line.plain for line in sharing_lines(view, 80)]
    assert {"1 node: a; lost: c", "no node; lost: b"} <= set(lines)


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("width", [80, 200])
def test_what_is_shown_stands_at_any_width(name: str, width: int) -> None:
    lines = sharing_lines(cluster_view(site(name)), width)
    assert max(line.cell_len for line in lines) <= width
    assert lines[0].plain.startswith("1 node: ")
    refused = sum(row["refused"] is not None for row in cluster_view(site(name))["requests"])
    assert sum("refused: " in line.plain for line in lines) == refused


def table() -> str:
    """What each kind of request becomes in each kind of cluster, as docs/kubernetes.md has it."""
    titles = [", ".join(f"{name}: {value}" for name, value in kind.items()) for kind in KINDS]
    lines = [f"| | {' | '.join(f'`{title}`' for title in titles)} |", "|---" * (len(KINDS) + 1) + "|"]
    for name in CLUSTERS:
        said = [becomes(site(name), kind)["pod"] for kind in KINDS]
        cells = [_cell(one, said[:at]) for at, one in enumerate(said)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(said: str | None, before: list[str | None]) -> str:
    if said is None:
        return "-"
    return "the same" if before and said in before[1:2] else f"`{said}`"


def test_the_table_of_the_docs_is_what_the_code_does() -> None:
    """Print it anew with: python tests/backends/on_kube/test_kube_sharing.py"""
    assert table() in DOCS.read_text(encoding="utf-8"), "the table in docs/kubernetes.md is old"


if __name__ == "__main__":
    print(table())
