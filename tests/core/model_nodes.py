"""The nodes of the model (`model.py`), and the hosts behind SSH: each is a node once it was reached."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raysched.core import commands
from raysched.core.host import Host
from raysched.core.lease import Place
from raysched.core.node import GPUInfo, NodeInfo
from tests.core.model_room import Card, Grant, Machine, Room


class Forbidden(Exception):
    """The command has to be refused."""


@dataclass
class Listed:
    """A host of the inventory. `origin`: who named it; `usable`: None while nobody knows."""

    host: Host
    origin: str
    usable: bool | None = None
    leaving: bool = False


class Nodes(Room):
    """Nodes come, change and go. A GPU and a name belong to one node at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: dict[str, Listed] = {}
        self.now = 0

    def tenant_sees(self, grant: Grant, machine: Machine) -> None:
        """What news of a node mean for a lease that has a part of it."""
        raise NotImplementedError

    def watched(self, place: Place) -> bool:
        """Whether somebody has to look that nothing is left on a node before its capacity is free."""
        return self.managed([place]) or place.node in self.hosts

    # ------------------------------------------------------------ nodes

    def _NodeSeen(self, command: commands.NodeSeen) -> None:
        name, known = command.node.name, self.machines.get(command.node.name)
        if known is not None and known.info.site != command.node.site:
            if known.info.site:
                self._give_way(name, command.node)
        elif name not in self.hosts:
            self._describe(command.node)
        elif not command.node.site and not self.hosts[name].leaving:
            self._leave(name)  # Ray has a node of that name

    def _give_way(self, name: str, info: NodeInfo) -> None:
        """Ray has a node of a name that a site's has: that is called otherwise, and keeps its GPUs."""
        other = f"{name}@slurm"
        if other in self.machines and self.held(other):
            return
        machine = self.machines[other] = self.machines.pop(name)
        machine.info = replace(machine.info, name=other)
        for grant in self.leases.values():
            grant.places = tuple(
                replace(place, node=other) if place.node == name else place for place in grant.places
            )
        gpus = tuple(gpu for gpu in info.gpus if gpu.uuid not in machine.cards)
        self._describe(replace(info, gpus=gpus))

    def _describe(self, info: NodeInfo) -> None:
        mine = [gpu for gpu in info.gpus if not self._elsewhere(gpu.uuid, info.name)]
        info = replace(info, gpus=tuple(mine))
        machine = self.machines.setdefault(info.name, Machine(info))
        machine.info, machine.lost = info, None
        for uuid, card in machine.cards.items():
            card.present = uuid in {gpu.uuid for gpu in mine}
        for gpu in mine:
            self._move_in(machine, gpu)
        for card in machine.cards.values():
            card.outside = card.outside and self._may_be_outside(info)
        self.forget_vanished(machine)
        for grant in list(self.leases.values()):
            if info.name in {node for node, _ in grant.slices()}:
                self.tenant_sees(grant, machine)

    def _elsewhere(self, uuid: str, name: str) -> bool:
        """A GPU that another node has stays there, until that node is lost and nobody holds the GPU."""
        return any(
            uuid in machine.cards and (machine.lost is None or self.slices(uuid))
            for machine in self.machines.values()
            if machine.info.name != name
        )

    def _move_in(self, machine: Machine, gpu: GPUInfo) -> None:
        for other in self.machines.values():
            if other is not machine:
                other.cards.pop(gpu.uuid, None)
        card = machine.cards.setdefault(gpu.uuid, Card(gpu))
        if card.info.layout != gpu.layout:
            card.refused = {}
        card.info = gpu

    def forget_vanished(self, machine: Machine) -> None:
        """A GPU that its node no longer has is known as long as somebody holds it."""
        machine.cards = {
            uuid: card for uuid, card in machine.cards.items() if card.present or self.slices(uuid)
        }

    def _NodeGone(self, command: commands.NodeGone) -> None:
        machine = self.machines.get(command.node)
        if machine is None or (command.site and not machine.info.site):
            return
        if machine.lost is None:
            machine.lost = self.now

    def _Usage(self, command: commands.Usage) -> None:
        machine = self.machines.get(command.node)
        if machine is not None and command.gpu in machine.cards:
            card = machine.cards[command.gpu]
            card.foreign, card.strangers = command.foreign, command.instances

    def _Outside(self, command: commands.Outside) -> None:
        machine = self.machines.get(command.node)
        if machine is not None and self._may_be_outside(machine.info):
            for uuid, card in machine.cards.items():
                card.outside = uuid in command.gpus

    def _may_be_outside(self, info: NodeInfo) -> bool:
        """Whether Ray or a site gives out GPUs of the node as well."""
        return info.ray_id is not None or info.site

    def _Cordon(self, command: commands.Cordon) -> None:
        if command.node not in self.machines or self.machines[command.node].info.site:
            raise Forbidden
        self.machines[command.node].draining = command.on

    # ------------------------------------------------------------ the inventory

    def _Inventory(self, command: commands.Inventory) -> None:
        named = {host.name: host for host in command.hosts}
        for name, known in list(self.hosts.items()):
            if known.origin == "file" and name not in named and not known.leaving:
                self._leave(name)
        for host in named.values():
            if not self._is_no_host(host.name):
                self._list(host, "file")

    def _AddHost(self, command: commands.AddHost) -> None:
        name = command.host.name
        known = self.hosts.get(name)
        changes = known is not None and known.host != command.host
        if self._is_no_host(name) or (changes and (known.origin == "file" or self.held(name))):
            raise Forbidden
        self._list(command.host, known.origin if known else "command")

    def _RemoveHost(self, command: commands.RemoveHost) -> None:
        known = self.hosts.get(command.name)
        if known is None or known.origin == "file":
            raise Forbidden
        if not known.leaving:
            self._leave(command.name)

    def _HostSeen(self, command: commands.HostSeen) -> None:
        info = command.node
        if info.name not in self.hosts:
            return
        if any(self._elsewhere(gpu.uuid, info.name) for gpu in info.gpus):
            self._HostOut(commands.HostOut(info.name, "it is another node"))
            return
        self.hosts[info.name].usable = True
        self._describe(info)

    def _HostOut(self, command: commands.HostOut) -> None:
        if command.name in self.hosts:
            self.hosts[command.name].usable = False
            self._NodeGone(commands.NodeGone(command.name))

    def held(self, name: str) -> bool:
        """Whether anybody holds anything on a node."""
        return any(place.node == name for grant in self.leases.values() for place in grant.places)

    def going(self) -> list[str]:
        """The hosts that are to go and are free."""
        return [name for name, known in self.hosts.items() if known.leaving and not self.held(name)]

    def remove(self, name: str) -> None:
        """A host is no more, nor is its node."""
        del self.hosts[name]
        self.machines.pop(name, None)

    def _is_no_host(self, name: str) -> bool:
        return name in self.machines and name not in self.hosts

    def _list(self, host: Host, origin: str) -> None:
        known = self.hosts.get(host.name)
        if known is not None and not known.leaving and (known.host, known.origin) == (host, origin):
            return
        self.hosts[host.name] = Listed(host, origin)
        if known is not None and known.leaving:
            self.machines[host.name].draining = False
        if known is not None and known.host != host:
            self._NodeGone(commands.NodeGone(host.name))  # nobody has reached it there yet

    def _leave(self, name: str) -> None:
        if self.held(name):
            self.hosts[name].leaving = self.machines[name].draining = True
        else:
            self.remove(name)
