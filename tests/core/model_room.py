"""The room of the model (`model.py`): machines, who holds what of them, and what fits beside that.

Counted anew each time from plain lists, so that it can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from raysched.core.lease import Place, Slice
from raysched.core.mig import DAEMON, Cut, Geometry, Instance, Profile
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import Request
from tests.core.model_asked import alike, enough, is_of, off, ways
from tests.core.model_site import gives

WHOLE = 10_000


@dataclass
class Card:
    """A GPU and what somebody without a lease uses of it. `refused` are the cuts that its driver would not
    make (None: switch the MIG mode), with the time of each."""

    info: GPUInfo
    foreign: int = 0
    strangers: tuple[str, ...] = ()
    outside: bool = False
    present: bool = True
    refused: dict[Cut | None, int] = field(default_factory=dict)

    @property
    def used_by_strangers(self) -> bool:
        return bool(self.foreign or self.strangers)


@dataclass
class Machine:
    """A node; `lost` is when it was lost."""

    info: NodeInfo
    cards: dict[str, Card] = field(default_factory=dict)
    lost: int | None = None
    draining: bool = False


@dataclass
class Grant:
    """A lease that the core granted. `instances` are the MIG instances that it was given."""

    id: str
    job: str
    sharing: str
    places: tuple[Place, ...]
    state: str = "granted"
    instances: dict[tuple[str, Cut | None], str] = field(default_factory=dict)
    daemons: dict[str, str] = field(default_factory=dict)

    def slices(self) -> list[tuple[str, Slice]]:
        """The node and the part of the GPU for each."""
        return [(place.node, slice) for place in self.places for slice in place.slices]


class Room:
    """Machines by name, and grants by their lease's id."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.leases: dict[str, Grant] = {}

    # ------------------------------------------------------------ what is there, and who has it

    def slices(self, uuid: str) -> list[tuple[Grant, Slice]]:
        """Who holds what of a GPU."""
        return [
            (grant, slice)
            for grant in self.leases.values()
            for _, slice in grant.slices()
            if slice.gpu == uuid
        ]

    def held_cuts(self, card: Card) -> list[Cut]:
        """The MIG placements that tenants have, whether or not the instances exist yet."""
        return [slice.cut for _, slice in self.slices(card.info.uuid) if slice.cut is not None]

    def busy(self, card: Card) -> list[Instance]:
        """The instances that strangers use. Where nobody saw which, all that no tenant has."""
        rest = [there for there in card.info.layout.instances if there.cut not in self.held_cuts(card)]
        if card.strangers:
            return [there for there in rest if there.uuid in card.strangers]
        return rest if card.foreign else []

    def mode(self, uuid: str) -> str | None:
        """How a GPU is shared now: as its tenants share it."""
        return next((grant.sharing for grant, _ in self.slices(uuid)), None)

    def share_free(self, card: Card) -> int:
        """What a further tenant could get of a GPU's compute."""
        if card.outside or not card.present or self.mode(card.info.uuid) == "exclusive":
            return 0
        return WHOLE - sum(slice.share for _, slice in self.slices(card.info.uuid))

    def memory_free(self, card: Card) -> int:
        """The MiB of a GPU that nobody holds and nobody uses."""
        if card.outside or not card.present or self.mode(card.info.uuid) == "exclusive":
            return 0
        used = card.foreign + sum(slice.memory for _, slice in self.slices(card.info.uuid))
        return max(0, card.info.memory - used)

    def cpus_free(self, machine: Machine) -> int:
        """CPUs that no lease holds."""
        return machine.info.cpus - sum(place.cpus for place in self._places_on(machine))

    def host_memory_free(self, machine: Machine) -> int:
        """Host memory that no lease holds."""
        return machine.info.memory - sum(place.memory for place in self._places_on(machine))

    def _places_on(self, machine: Machine) -> list[Place]:
        places = [place for grant in self.leases.values() for place in grant.places]
        return [place for place in places if place.node == machine.info.name]

    def managed(self, places: Iterable[Place]) -> bool:
        """Whether Ray manages a node of them."""
        return any(self.machines[place.node].info.ray_id is not None for place in places)

    # ------------------------------------------------------------ what fits

    def part(self, card: Card, request: Request) -> Slice:
        """What a request would hold of a GPU that is not cut."""
        uuid, total = card.info.uuid, card.info.memory
        if request.sharing == "exclusive":
            return Slice(uuid, WHOLE, total, total=total)
        of_share = None if request.share is None else request.share * total // WHOLE
        if request.sharing == "time_slice":
            turns = card.info.replicas
            memory = request.memory if request.memory is not None else of_share
            return Slice(uuid, WHOLE // turns, total // turns if memory is None else memory, total=total)
        if request.memory is None:
            return Slice(uuid, request.share, of_share, total=total)
        if request.share is None:
            return Slice(uuid, max(1, request.memory * WHOLE // total), request.memory, total=total)
        return Slice(uuid, request.share, request.memory, total=total)

    def serves(self, card: Card, request: Request) -> bool:
        """Whether a GPU is of a kind that can serve a request at all."""
        info = card.info
        if not card.present or not is_of(info.model, request.gpu_types) or not _holds(info, request):
            return False
        if request.sharing == "mig":
            return profile_for(info, request) is not None
        return max(request.memory or 0, self.part(card, request).memory) <= info.memory

    def most(self, card: Card, request: Request) -> int:
        """How many parts a request could have of a GPU if nobody held or used anything of it."""
        if not self.serves(card, request):
            return 0
        mig, geometry, layout = request.sharing == "mig", card.info.mig, card.info.layout
        fixed = geometry is None or not geometry.switchable
        if fixed and layout.enabled != mig:
            return 0
        if not mig:
            return 1
        profile = profile_for(card.info, request)
        return min(profile.most, disjoint(geometry, [Cut(profile.id, start) for start in profile.starts]))

    def room(self, card: Card, request: Request) -> int:
        """How many parts a request could have of a GPU now."""
        if not self.serves(card, request) or card.outside or card.info.fault:
            return 0
        if self.mode(card.info.uuid) not in (None, request.sharing):
            return 0
        if card.info.layout.mps and not self.slices(card.info.uuid):
            return 0  # its daemon is being ended
        if request.sharing == "mps" and DAEMON in card.refused:
            return 0
        if request.sharing == "mig":
            return self._instances_free(card, request)
        return int(self._has_share(card, request) and self._uncut(card))

    def _has_share(self, card: Card, request: Request) -> bool:
        tenants = self.slices(card.info.uuid)
        if request.sharing == "exclusive":
            return not tenants and not card.used_by_strangers
        if request.sharing == "time_slice" and len(tenants) >= card.info.replicas:
            return False
        part = self.part(card, request)
        return part.share <= self.share_free(card) and part.memory <= self.memory_free(card)

    def _uncut(self, card: Card) -> bool:
        """Whether a GPU is not in MIG mode, or can be taken out of it."""
        layout, geometry = card.info.layout, card.info.mig
        if not layout.enabled:
            return True
        if geometry is None or not geometry.switchable or card.used_by_strangers:
            return False
        return not card.refused.keys() & {None, *(there.cut for there in layout.instances)}

    def _instances_free(self, card: Card, request: Request) -> int:
        """How many instances of the request's profile could be had now."""
        geometry, profile = card.info.mig, profile_for(card.info, request)
        has = self.held_cuts(card) + [there.cut for there in self.busy(card)]
        starts = [Cut(profile.id, start) for start in profile.starts]
        free = [cut for cut in starts if self.cut_objection(card, cut) is None]
        left = profile.most - sum(cut.profile == profile.id for cut in has)
        return max(0, min(left, disjoint(geometry, free)))

    def cut_objection(self, card: Card, cut: Cut, more: Iterable[Cut] = ()) -> str | None:
        """Why an instance at `cut` can't be had now, if `more` are given away too."""
        layout, geometry = card.info.layout, card.info.mig
        has = [*self.held_cuts(card), *(there.cut for there in self.busy(card)), *more]
        if any(cells(geometry, cut) & cells(geometry, other) for other in has):
            return "it overlaps one that somebody has"
        in_the_way = {
            there.cut
            for there in layout.instances
            if there.cut not in has and cells(geometry, cut) & cells(geometry, there.cut)
        }
        if in_the_way == {cut}:
            return None
        if card.refused.keys() & {cut, *in_the_way}:
            return "the driver refused it"
        if layout.enabled:
            return None
        if None in card.refused:
            return "the driver refused to switch the mode"
        return None if geometry.switchable and not card.used_by_strangers else "the mode can't be switched"

    def fits(self, request: Request) -> bool:
        """Whether there is any place for a request now."""
        open_machines = [
            machine
            for machine in self.machines.values()
            if machine.lost is None
            and not machine.draining
            and request.cpus <= self.cpus_free(machine)
            and request.host_memory <= self.host_memory_free(machine)
        ]
        return any(self._any_backend(way, open_machines, self.room) for way in ways(request))

    def site(self, backend: str) -> list[NodeInfo]:
        """The nodes of the site that a backend reaches."""
        infos = [machine.info for machine in self.machines.values()]
        return [info for info in infos if info.site and backend in info.backends]

    def ever_fits(self, request: Request) -> bool:
        """Whether there would be a place for a request if nothing else ran."""
        machines = [
            machine
            for machine in self.machines.values()
            if request.cpus <= machine.info.cpus and request.host_memory <= machine.info.memory
        ]
        return any(self._any_backend(way, machines, self.most) for way in ways(request))

    def _any_backend(
        self, request: Request, machines: list[Machine], parts: Callable[[Card, Request], int]
    ) -> bool:
        rooms = {
            machine.info.name: sum(parts(card, request) for card in machine.cards.values())
            for machine in machines
            if not machine.info.site
        }
        return any(
            gives(site, request)
            if (site := self.site(backend))
            else enough(
                request,
                [
                    rooms[m.info.name]
                    for m in machines
                    if backend in m.info.backends and (m.info.containers or not request.container)
                ],
            )
            for backend in request.backends
        )


def _holds(info: GPUInfo, request: Request) -> bool:
    """Whether something holds the tenant to its share, where something has to."""
    if request.sharing == "mps":
        return "mps" in info.mechanisms
    if request.sharing in ("fraction", "time_slice") and request.isolation == "hard":
        kernel = request.limitable and "memory_limit" in info.mechanisms
        return kernel or "hami" in info.mechanisms
    return True


def profile_for(info: GPUInfo, request: Request) -> Profile | None:
    """The MIG profile that a request gets on a GPU."""
    if info.mig is None:
        return None
    if request.mig_profile is not None:
        found = [profile for profile in info.mig.profiles if alike(profile.name, request.mig_profile)]
        return min(found, key=lambda profile: off(profile.name, request.mig_profile), default=None)
    memory = (request.share or 0) * info.memory // WHOLE if request.memory is None else request.memory
    enough = [
        profile
        for profile in info.mig.profiles
        if "+" not in profile.name and "-" not in profile.name and profile.memory >= memory
        and profile.slices * WHOLE // info.mig.slices >= (request.share or 0)
    ]  # fmt: skip
    return min(enough, key=lambda profile: (profile.memory, profile.slices), default=None)


def cells(geometry: Geometry, cut: Cut) -> set[int]:
    """The memory slices at a placement."""
    size = next(profile.size for profile in geometry.profiles if profile.id == cut.profile)
    return set(range(cut.start, cut.start + size))


def disjoint(geometry: Geometry, cuts: list[Cut]) -> int:
    """How many of these can be there at once, no two of them overlapping: tried out."""
    if not cuts:
        return 0
    first, *rest = cuts
    beside = [cut for cut in rest if not cells(geometry, first) & cells(geometry, cut)]
    return max(1 + disjoint(geometry, beside), disjoint(geometry, rest))
