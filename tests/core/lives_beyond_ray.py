"""Random lives on hosts behind SSH and a site: what happens to them, and what is promised of them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from raysched.core.commands import AddHost, HostOut, Inventory, NodeGone, NodeSeen, Placed, RemoveHost
from raysched.core.host import Host
from raysched.core.lease import Place, Slice
from raysched.core.request import WHOLE
from raysched.core.wanted import wanted
from tests.core.fleet import CARDS, HOSTS, NAMESAKES, SITE, of_a_host, of_a_site
from tests.core.twins import Twins

hosts = st.sampled_from(sorted(HOSTS))
names = st.sampled_from([*HOSTS, "a"])
"""Names of hosts, and that of a node of Ray."""
site_gpus = st.sampled_from([gpu.uuid for info in SITE.values() for gpu in info.gpus])


class BeyondRay(Twins):
    """Rules and promises. b is a node of Ray, and t the same machine over SSH."""

    there = ("b", *HOSTS, *SITE)

    # ------------------------------------------------------------ hosts behind SSH

    @rule(name=names, address=st.sampled_from(["one", "one", "another"]))
    def a_host_is_added_or_changed(self, name, address):
        self.do(AddHost(Host(name, f"{name}.{address}")))

    @rule(name=names)
    def a_host_is_removed(self, name):
        self.do(RemoveHost(name))

    @rule(named=st.sets(names), address=st.sampled_from(["one", "another"]))
    def the_configuration_names_its_hosts(self, named, address):
        self.do(Inventory(tuple(Host(name, f"{name}.{address}") for name in sorted(named))))

    @rule(name=hosts, request=st.none() | of_a_host)
    def a_host_is_used(self, name, request):
        self.do(AddHost(Host(name, f"{name}.one")))
        self.describe(name)
        if request is not None:
            self.submit_one(request)

    @rule(name=hosts)
    def a_host_is_out_of_reach(self, name):
        self.do(HostOut(name, "no route"))

    @rule(site=st.booleans())
    def another_node_has_the_name_of_a_host(self, site):
        backends = ("slurm",) if site else ("ray", "vm")
        other = replace(HOSTS["u"], ray_id=None if site else "ray-u", site=site, backends=backends)
        self.do(NodeSeen(replace(other, gpus=other.gpus[:1])))

    # ------------------------------------------------------------ a site

    @rule(data=st.data(), request=of_a_site, retries=st.integers(0, 1), preemptible=st.booleans())
    def the_site_runs_a_job(self, data, request, **fields):
        self.submit_one(request, **fields)
        self.put(data)

    @rule(name=st.sampled_from(sorted(NAMESAKES)))
    def ray_has_a_node_of_a_name_that_the_site_has(self, name):
        self.do(NodeSeen(NAMESAKES[name]))

    @rule(name=st.sampled_from(sorted(NAMESAKES)), gone=st.booleans())
    def a_site_speaks_of_a_node_by_the_name_that_it_had(self, name, gone):
        self.do(NodeGone(name, "slurm") if gone else NodeSeen(SITE[name]))

    @rule(name=st.sampled_from(sorted(NAMESAKES)))
    def a_node_that_the_site_has_too_is_lost(self, name):
        self.do(NodeGone(name))

    @precondition(lambda self: self.at_the_site())
    @rule(data=st.data())
    def the_site_puts_a_job_elsewhere(self, data):
        self.put(data)

    def put(self, data):
        """On what the site has, or had, or on what the ledger thinks another has."""
        if not self.at_the_site():
            return
        lease = self.pick(data, self.at_the_site())
        gpus = data.draw(st.sets(site_gpus, min_size=1, max_size=2))
        share = data.draw(st.sampled_from([2500, 5000, WHOLE]))
        slices = [Slice(gpu, share, CARDS[gpu].memory * share // WHOLE) for gpu in sorted(gpus)]
        nodes = sorted({slice.gpu.split("-")[1] for slice in slices})
        places = [
            Place(
                self.called(node),
                tuple(slice for slice in slices if slice.gpu.split("-")[1] == node),
                WHOLE,
                1_000,
            )
            for node in nodes
        ]
        self.do(Placed(lease, tuple(places)))

    @precondition(lambda self: self.at_the_site())
    @rule(data=st.data(), name=st.sampled_from(["a", "h", "nowhere", "s1"]))
    def a_site_puts_a_job_on_a_node_alone(self, data, name):
        """Without a GPU; a node that is not its own it can't mean."""
        self.do(Placed(self.pick(data, self.at_the_site()), (Place(name, (), WHOLE, 0),)))

    def at_the_site(self):
        """The leases that the site has."""
        return [job.lease for job in self.model.jobs.values() if job.lease and job.single]

    # ------------------------------------------------------------ what is promised

    @invariant()
    def work_goes_to_hosts_that_were_reached_and_to_no_others(self):
        """So the hosts and the nodes of the core are those of the model, and usable where those are."""
        core, model = self.core.state, self.model
        known = {
            name: (host.host, host.origin, host.leaving, None if host.reason is None else not host.reason)
            for name, host in core.hosts.items()
        }
        assert known == {
            name: (host.host, host.origin, host.leaving, host.usable) for name, host in model.hosts.items()
        }
        nodes = {name: (node.lost, node.draining) for name, node in core.nodes.items()}
        assert nodes == {name: (node.lost, node.draining) for name, node in model.machines.items()}

    @invariant()
    def a_gpu_that_a_node_of_ray_and_a_host_report_is_one_gpu(self):
        there = [gpu for node in self.core.state.nodes.values() for gpu in node.gpus.values() if gpu.present]
        assert len(there) == len({gpu.info.uuid for gpu in there})

    @invariant()
    def a_lease_on_a_host_is_free_only_once_somebody_looked_what_is_left(self):
        for backend in ("vm", "ray"):
            told = wanted(self.core.state, backend).releases
            looked = {(hold.lease, place.node) for hold in told for place in hold.places}
            hosts = self.model.hosts
            assert looked == {at for at in self.model.releases() if (at[1] in hosts) == (backend == "vm")}

    @invariant()
    def the_ledger_has_a_lease_where_the_site_put_it(self):
        for lease in self.core.state.leases.values():
            if lease.backend == "slurm":
                assert lease.places == self.model.leases[lease.id].places
