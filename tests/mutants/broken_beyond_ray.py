"""Mutants of machines that Ray does not manage: hosts behind SSH, and sites."""

from __future__ import annotations

from mutant import Mutant

HOSTS = ("tests/core/test_hosts.py",)
SITES = ("tests/core/test_site.py",)
NAMESAKES = ("tests/core/test_namesakes.py",)
CLUSTERS = ("tests/core/test_several_clusters.py",)
TWINS = ("tests/core/test_twins.py",)
MODEL = ("tests/core/test_model.py::TestBeyondRay",)

BEYOND_RAY = (
    Mutant(
        "a host that is taken out under its jobs",
        "core/hosts.py",
        "if known.leaving and not held(state, name):",
        "if known.leaving:",
        HOSTS,
    ),
    Mutant(
        "a host that is changed under its jobs",
        "core/hosts.py",
        "if known is not None and known.host != command.host and held(state, name):",
        "if known is None and held(state, name):",
        HOSTS,
    ),
    Mutant(
        "work for a host that is out of reach",
        "core/hosts.py",
        "if node is not None and node.lost is None and node.info.ray_id is None:",
        "if node is not None and node.lost is not None:",
        HOSTS,
    ),
    Mutant(
        "a host at an address where nobody has reached it",
        "core/hosts.py",
        "        if known is not None and known.host != host:\n",
        "        if False:\n",
        MODEL,
    ),
    Mutant(
        "a host whose GPUs a node of Ray has",
        "core/twins.py",
        "    if others:\n",
        "    if False:\n",
        MODEL,
    ),
    Mutant(
        "a host that is described as a node of Ray",
        "core/decide.py",
        "    if twins.stands_in_the_way(state, info, same):\n",
        "    if False:\n",
        MODEL,
    ),
    Mutant(
        "a host that is to go and gets new work",
        "core/hosts.py",
        "    if _own_node(state, name) and not state.nodes[name].draining:\n",
        "    if False:\n",
        MODEL,
    ),
    Mutant(
        "a host's GPU that is free while something runs there",
        "core/decide.py",
        'return "vm" if node in state.hosts else None',
        "return None",
        HOSTS,
    ),
    Mutant(
        "a machine of Ray's and its host as two nodes",
        "core/twins.py",
        'return other.name, ""',
        'return "", ""',
        TWINS,
    ),
    Mutant(
        "capacity that Ray gives away while its host may still start something",
        "core/twins.py",
        "and node not in lease.cleared",
        "and node in lease.cleared",
        TWINS,
    ),
    Mutant(
        "two who cut one GPU",
        "core/wanted.py",
        "if known is not None and not known.node else ()",
        "if known is not None else ()",
        TWINS,
    ),
    Mutant(
        "new work on a host that Ray has taken over",
        "core/twins.py",
        "replace(state.nodes[name].info, backends=())",
        "state.nodes[name].info",
        TWINS,
    ),
    Mutant(
        "a job on a host without the labels that it names",
        "core/placement.py",
        'if backend == "vm" and request.node_selector and',
        'if backend == "slurm" and request.node_selector and',
        HOSTS,
    ),
    Mutant(
        "a GPU that a site gives and the ledger has given",
        "core/placed.py",
        "if not job.single or not all(_has_room(state, lease, place) for place in command.places):",
        "if not job.single:",
        SITES,
    ),
    Mutant(
        "a GPU that a site gives, and no longer has",
        "core/placed.py",
        "    if gpu is None or not gpu.present:\n",
        "    if gpu is None:\n",
        (*SITES, *MODEL),
    ),
    Mutant(
        "a site that puts its leases on nodes of Ray",
        "core/placed.py",
        "    if node is None or not node.info.site:\n",
        "    if node is None:\n",
        MODEL,
    ),
    Mutant(
        "a job of any cluster that always goes to the same one",
        "core/placement.py",
        "sorted(meant, key=lambda name: state.unplaced[name])",
        "sorted(meant)",
        CLUSTERS,
    ),
    Mutant(
        "a job of one cluster that goes to another",
        "core/compile.py",
        'backends=(backend_of(spec.k8s.cluster or ""),) if at_cluster else request.backends,',
        "backends=request.backends,",
        CLUSTERS,
    ),
    Mutant(
        "a part that a site gives beside others that fill the GPU",
        "core/placed.py",
        "(shared and used + slice.share <= WHOLE)",
        "shared",
        MODEL,
    ),
    Mutant(
        "a warning of GPUs that a site gave before",
        "core/placed.py",
        "    if warning != job.warning:\n",
        "    if False:\n",
        SITES,
    ),
    Mutant(
        "a site whose GPUs the ledger keeps for somebody",
        "core/placement.py",
        "        if site_of(state, backend):\n            continue\n",
        "",
        SITES,
    ),
    Mutant(
        "what a site can't give, taken",
        "core/site.py",
        "    if few or (kind and ",
        "    if few and (kind and ",
        MODEL,
    ),
    Mutant(
        "a retry used up by what a site took away",
        "core/decide.py",
        'if seen.state == "taken" and job.state != "stopping"',
        'if seen.state == "never" and job.state != "stopping"',
        SITES,
    ),
    Mutant(
        "a hard part that no site holds",
        "core/site.py",
        'if request.isolation == "hard":',
        'if request.isolation == "harder":',
        SITES,
    ),
    Mutant(
        "a node that takes the place of a site's of its name",
        "core/decide.py",
        "    if known is not None and namesakes.are(known.info, info):\n",
        "    if False:\n",
        NAMESAKES,
    ),
    Mutant(
        "a renamed node whose leases stay behind",
        "core/evolve.py",
        "        if any(place.node == fact.node for place in lease.places):\n",
        "        if False:\n",
        NAMESAKES,
    ),
    Mutant(
        "a site that speaks of nodes that are not its own",
        "core/decide.py",
        "(command.site and not namesakes.of_site(node, command.site))",
        "False",
        NAMESAKES,
    ),
    Mutant(
        "a GPU that a site's node and its namesake have twice",
        "core/namesakes.py",
        "if gpu.uuid not in known.gpus)",
        "if gpu.uuid)",
        NAMESAKES,
    ),
)
