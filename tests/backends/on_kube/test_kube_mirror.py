"""What a cluster's nodes are in the ledger, and what of them a request can have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands, ordered
from running import wait_until

from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.cluster import Access, Cluster
from raysched.backends.kube.devices import node_info
from raysched.backends.kube.quantities import cores, mebibytes
from raysched.core.commands import NodeGone, NodeSeen, Outside, Placed
from raysched.core.node import NodeInfo
from raysched.core.pods import demand
from raysched.core.request import Request
from raysched.core.site import NOWHERE, Demand, Site, Unfit
from raysched.testing.conformance import LASTS, new_launch

GPU = "nvidia.com/gpu"
A100 = "NVIDIA-A100-SXM4-80GB"


def node(name: str, resources: Mapping[str, str], **labels: str) -> NodeInfo:
    """A node as Kubernetes tells of it; `gpu_count` is the label nvidia.com/gpu.count."""
    named = {key: key.replace("_", ".", 1).replace("_", "-") for key in labels}
    told = {f"nvidia.com/{named[key]}": value for key, value in labels.items()}
    ready = [{"type": "Ready", "status": "True"}]
    room = {"cpu": "15500m", "memory": "64Gi", **resources}
    described = {
        "metadata": {"name": name, "labels": told},
        "spec": {},
        "status": {"allocatable": room, "conditions": ready},
    }
    return node_info(described, name)


def shared(strategy: str = "time-slicing", resource: str = GPU, product: str = f"{A100}-SHARED") -> NodeInfo:
    return node(
        "shared",
        {resource: "8"},
        gpu_product=product,
        gpu_count="2",
        gpu_replicas="4",
        gpu_sharing_strategy=strategy,
        gpu_memory="81920",
    )


WHOLE = node("whole", {GPU: "4"}, gpu_product=A100, gpu_memory="81920")
INSTANCES = {GPU: "0", "nvidia.com/mig-1g.10gb": "7", "nvidia.com/mig-3g.40gb": "1"}
MIXED = node("mixed", INSTANCES, gpu_product=A100)
SINGLE = node("single", {GPU: "7"}, gpu_product=f"{A100}-MIG-1g.10gb")


def asked(*nodes: NodeInfo, **fields: Any) -> Demand:
    return demand(Site(nodes), Request(**{"backends": ("k8s",), **fields}))


def test_nodes_offer_whole_gpus_instances_and_replicas() -> None:
    """Case kubernetes-04: two cards in four replicas each are two GPUs, not eight."""
    assert [len(info.gpus) for info in (WHOLE, MIXED, SINGLE, shared())] == [4, 8, 7, 2]
    assert {gpu.resource for gpu in MIXED.gpus} == {"nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"}
    assert {gpu.memory for gpu in MIXED.gpus} == {9536, 38146}
    assert {(gpu.parts, gpu.memory) for gpu in shared().gpus} == {(4, 81920)}
    assert (WHOLE.cpus, WHOLE.memory) == (155_000, 65536)


def test_a_whole_gpu_is_never_an_instance_or_a_replica() -> None:
    found = asked(WHOLE, SINGLE, shared(), gpus=2)
    assert (found.resource, found.type, found.count, found.nodes) == (GPU, A100, 2, 1)
    assert asked(WHOLE, gpus=2).type == ""
    with pytest.raises(Unfit, match=r"no whole GPU is to be had: there is only MIG 1g.10gb"):
        asked(SINGLE)


def test_pods_of_one_job_have_as_many_gpus_each() -> None:
    assert (asked(WHOLE, node("b", {GPU: "4"}, gpu_product=A100), gpus=6).nodes) == 2
    assert asked(WHOLE, node("b", {GPU: "4"}, gpu_product=A100), gpus=4, nodes=2).count == 2
    with pytest.raises(Unfit, match="nodes: 3 GPUs are not the same number on each of 2 nodes"):
        asked(WHOLE, gpus=3, nodes=2)
    with pytest.raises(Unfit, match="the cluster has 4 such GPUs, 4 on one node at most"):
        asked(WHOLE, gpus=5)


@pytest.mark.parametrize("site", [MIXED, SINGLE])
def test_a_mig_profile_is_found_whichever_way_it_is_offered(site: NodeInfo) -> None:
    found = asked(site, sharing="mig", mig_profile="1g.10gb")
    assert found.resource == ("nvidia.com/mig-1g.10gb" if site is MIXED else GPU)
    assert (found.count, found.share) == (1, 10_000)
    with pytest.raises(Unfit, match=r"asks for 2g.20gb, and the cluster has 1g.10gb"):
        asked(site, sharing="mig", mig_profile="2g.20gb")


def test_the_smallest_instance_with_the_memory_is_taken() -> None:
    assert asked(MIXED, sharing="mig", memory=20_000).resource == "nvidia.com/mig-3g.40gb"


@pytest.mark.parametrize("resource", [GPU, "nvidia.com/gpu.shared"])
def test_a_fraction_is_one_replica_under_its_own_name(resource: str) -> None:
    """Case kubernetes-04: hard isolation is refused where nothing holds a replica to its part."""
    site = shared(resource=resource)
    found = asked(site, sharing="fraction", share=2_500)
    assert (found.resource, found.count, found.share) == (resource, 1, 2_500)
    assert asked(site, sharing="fraction", share=1_000).share == 2_500
    assert asked(site, sharing="fraction", memory=20_480).share == 2_500
    with pytest.raises(Unfit, match="isolation: hard can't be kept"):
        asked(site, sharing="fraction", share=2_500, isolation="hard")
    assert asked(shared("mps"), sharing="fraction", share=2_500, isolation="hard").count == 1


def test_two_replicas_are_not_two_gpus() -> None:
    """Case kubernetes-06."""
    site = node(
        "ten",
        {GPU: "20"},
        gpu_product=f"{A100}-SHARED",
        gpu_count="2",
        gpu_replicas="10",
        gpu_sharing_strategy="mps",
    )
    assert len(site.gpus) == 2
    found = asked(site, sharing="fraction", share=1_000)
    assert (found.count, found.nodes) == (1, 1)
    with pytest.raises(Unfit, match=r"shared by 10 replicas.*the largest share is 1/10 = 0.1"):
        asked(site, sharing="fraction", share=2_000)
    with pytest.raises(Unfit, match="two of which may be of one GPU"):
        asked(site, gpus=2, sharing="fraction", share=1_000)
    with pytest.raises(Unfit, match=r"no whole GPU is to be had: there is only .* in 10 shares \(replicas\)"):
        asked(site)


def test_what_shares_nothing_says_what_to_do() -> None:
    with pytest.raises(
        Unfit,
        match="no GPU of the cluster is shared: install HAMi or KAI Scheduler",
    ):
        asked(WHOLE, sharing="fraction", share=5_000)
    with pytest.raises(Unfit, match="the cluster has no GPU"):
        asked(node("cpu", {}))
    assert asked(node("cpu", {}), gpus=0, cpus=20_000).cpus == 20_000


@pytest.mark.parametrize(
    ("text", "ten_thousandths", "mib"),
    [
        ("500m", 5_000, 0),
        ("1.5", 15_000, 0),
        ("2", 20_000, 0),
        ("1e3", 10**7, 0),
        ("16Gi", None, 16384),
        ("1G", None, 953),
    ],
)
def test_quantities(text: str, ten_thousandths: int | None, mib: int) -> None:
    if ten_thousandths is not None:
        assert cores(text) == ten_thousandths
    assert mebibytes(text) == mib


# ---------------------------------------------------------------- on a control plane


def test_the_ledger_is_told_where_kubernetes_put_a_run_and_what_others_have(
    hands: KubeHands, cluster: KubeCluster
) -> None:
    labels = {"nvidia.com/gpu.product": A100, "nvidia.com/gpu.memory": "81920"}
    cluster.add_node("gpus", {GPU: "4"}, labels, [{"key": GPU, "value": "present", "effect": "NoSchedule"}])
    other = {
        "metadata": {"name": "other"},
        "spec": {
            "nodeName": "gpus",
            "containers": [{"name": "a", "image": "a", "resources": {"limits": {GPU: "1"}}}],
        },
    }
    cluster.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", other)
    try:
        asks = {"kind": "gpu", "type": A100, "count": 2, "resource": GPU, "cpus": 5_000, "memory": 512}
        run = hands.start(ordered(new_launch(LASTS, NOWHERE), **asks))
        hands.until(run, "running")
        told: list[Any] = list(hands.do(hands.backend.mirror()))  # type: ignore[attr-defined]
        infos = {one.node.name: one.node for one in told if isinstance(one, NodeSeen)}
        assert set(infos) == {"plain", "gpus"}
        gpus = [gpu.uuid for gpu in infos["gpus"].gpus]
        (outside,) = [one for one in told if isinstance(one, Outside) and one.node == "gpus"]
        assert outside.gpus == (gpus[3],)
        (placed,) = [one for one in told if isinstance(one, Placed)]
        (place,) = placed.places
        assert placed.lease == f"{run.job}.1"
        assert (place.node, place.cpus, place.memory) == ("gpus", 5_000, 512)
        assert [slice.gpu for slice in place.slices] == gpus[:2]
        cluster.patch("/api/v1/nodes/gpus", {"spec": {"unschedulable": True}})

        def closed() -> bool:
            seen = hands.do(hands.backend.mirror())  # type: ignore[attr-defined]
            return any(isinstance(one, NodeSeen) and one.node.closed == "cordoned" for one in seen)

        wait_until(closed, "the cordon is told", 60)
    finally:
        cluster.delete_node("gpus")
        cluster.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/other", {"gracePeriodSeconds": 0})


def test_a_node_that_went_while_nobody_looked_is_gone(cluster: KubeCluster, tmp_path: Path) -> None:
    """As the ledger still has it; another cluster's and one that was renamed are none of it."""

    async def names() -> dict[str, tuple[str, ...]]:
        return {"plain@k8s": ("k8s",), "deleted": ("k8s",), "plain": ("ray", "vm"), "far": ("k8s-far",)}

    access = Access(str(cluster.kubeconfig), namespace=NAMESPACE)
    hands = KubeHands(
        lambda: KubeBackend(Cluster(access), "names", tmp_path, tmp_path / "runs", names=names), cluster
    )
    told: list[Any] = list(hands.do(hands.backend.mirror()))  # type: ignore[attr-defined]
    hands.close()
    assert [one for one in told if isinstance(one, NodeGone)] == [NodeGone("deleted", "k8s")]
    assert "plain@k8s" in {one.node.name for one in told if isinstance(one, NodeSeen)}
