"""How a GPU is to be cut at somebody's word: where the instances go, and what has to be done for it.

It is done under a lease of the GPU's own, of kind `layout`: that is granted at once or not at all, keeps
others away while the node's agent cuts, and ends once the GPU is cut so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raysched.core import facts
from raysched.core.commands import SetLayout
from raysched.core.cuts import cut_mask
from raysched.core.facts import Fact
from raysched.core.lease import Lease, Place, Slice
from raysched.core.mig import Cut, Geometry, Profile
from raysched.core.node import GPU, Node
from raysched.core.profiles import profile_named, share_of
from raysched.core.request import WHOLE, Request, Sharing
from raysched.core.state import State
from raysched.core.words import listing, short
from raysched.errors import Conflict, NotFound, Refused


@dataclass(frozen=True, slots=True)
class Steps:
    """From how a GPU is cut to how it shall be: first `destroy`, then switch the mode if `switch`, then
    `create`; `keep` stays as it is. `cuts` are all instances that there will be; None: no MIG mode."""

    cuts: tuple[Cut, ...] | None
    destroy: tuple[Cut, ...]
    switch: bool
    create: tuple[Cut, ...]
    keep: tuple[Cut, ...]

    @property
    def nothing(self) -> bool:
        """Whether all is so already."""
        return not (self.destroy or self.switch or self.create)


def find_gpu(state: State, text: str) -> GPU:
    """The GPU that `text` names: its UUID or the beginning of it, or NODE/INDEX. Raises NotFound, and
    Conflict where several begin so."""
    gpus = [gpu for node in state.nodes.values() for gpu in node.gpus.values()]
    found = [
        gpu
        for gpu in gpus
        if gpu.info.uuid.lower().startswith(text.lower()) or f"{gpu.node}/{gpu.info.index}" == text
    ]
    exact = [gpu for gpu in found if gpu.info.uuid == text]
    if len(exact or found) > 1:
        raise Conflict(f"{text} names {len(found)} GPUs: {listing([gpu.info.uuid for gpu in found])}")
    if not found:
        raise NotFound(f"no GPU {text}: give NODE/INDEX or the beginning of a UUID, as in `raysched gpus`")
    return (exact or found)[0]


def steps(gpu: GPU, names: Sequence[str] | None) -> Steps:
    """What has to be done until a GPU has exactly instances of these profiles, or (None) no MIG mode. As many
    instances as can stay. Raises Refused where they can't be together on it."""
    layout = gpu.info.layout
    there = tuple(instance.cut for instance in layout.instances)
    if names is None:
        return Steps(None, there, layout.enabled, (), ())
    if not names:
        raise Refused("name the profile of each instance, such as 3g.40gb,1g.10gb, or off for no MIG mode")
    geometry = gpu.info.mig
    if geometry is None:
        raise Refused(f"{gpu.info.uuid} ({gpu.info.model}) can't be cut by MIG, or does not tell how")
    cuts = _arranged(geometry, [_profile(gpu, geometry, name) for name in names], there)
    if cuts is None:
        raise Refused(f"{', '.join(names)} do not fit on a {gpu.info.model} together: take fewer, or smaller")
    keep = tuple(cut for cut in there if cut in cuts)
    destroy = tuple(cut for cut in there if cut not in cuts)
    return Steps(cuts, destroy, not layout.enabled, tuple(cut for cut in cuts if cut not in keep), keep)


def check(node: Node, gpu: GPU, wanted: Steps) -> None:
    """Raise Conflict where the GPU may not be touched now."""
    name, tenants = f"{short(gpu.info.uuid)} on {gpu.node}", list(gpu.tenants)
    if node.lost is not None or not gpu.present:
        raise Conflict(f"{name} is not there now")
    if node.info.site:
        raise Conflict(f"{name} is of a site, whose administrator cuts its GPUs")
    if tenants:
        raise Conflict(f"{name} is held by {listing(tenants)}: `raysched node drain {gpu.node}` first")
    if gpu.outside or gpu.used_by_strangers:
        raise Conflict(f"{name} is used by somebody without a lease: end that first")
    if gpu.info.fault or gpu.info.layout.mps:
        raise Conflict(f"{name} can't be cut: {gpu.info.fault or 'its MPS daemon is being ended'}")
    if wanted.switch and (gpu.info.mig is None or not gpu.info.mig.switchable):
        raise Conflict(f"the MIG mode of {name} can't be switched by raysched: only root may")


def granted(state: State, command: SetLayout, now: int) -> Iterator[Fact]:
    """The job that cuts a GPU, and its lease. Raises what `find_gpu`, `steps` and `check` do, and Conflict
    where nothing is to be done."""
    gpu = find_gpu(state, command.gpu)
    node, wanted, profiles = state.nodes[gpu.node], steps(gpu, command.profiles), command.profiles
    check(node, gpu, wanted)
    if wanted.nothing:
        raise Conflict(f"{short(gpu.info.uuid)} on {gpu.node} is cut so already: nothing is to be done")
    sharing: Sharing = "mig" if wanted.cuts else "exclusive"
    backend = node.info.backends[0]
    yield facts.Submitted(
        at=now,
        id=command.id,
        name=f"mig set {short(gpu.info.uuid)}",
        kind="layout",
        spec={"profiles": list(profiles or ())},
        request=Request(sharing=sharing, mig_profile=",".join(profiles or ()) or None, backends=(backend,)),
        user=command.user,
        key=command.key,
        digest=command.digest,
    )
    place = Place(gpu.node, slices(gpu, wanted.cuts), 0, 0)
    lease = Lease(f"{command.id}.1", command.id, 1, backend, sharing, "soft", sharing, (place,))
    yield facts.Granted(now, lease)
    if node.info.ray_id is None:  # there is nothing to be held in Ray before it is cut
        yield facts.Held(now, lease.id, ())


def slices(gpu: GPU, cuts: tuple[Cut, ...] | None) -> tuple[Slice, ...]:
    """What a lease holds that cuts a GPU so."""
    if cuts is None:
        return (Slice(gpu.info.uuid, WHOLE, gpu.info.memory, total=gpu.info.memory),)
    geometry = gpu.info.mig
    assert geometry is not None
    profiles = [(cut, geometry.profile(cut.profile)) for cut in cuts]
    return tuple(
        Slice(gpu.info.uuid, share_of(geometry, profile), profile.memory, cut)
        for cut, profile in profiles
        if profile is not None
    )


def _profile(gpu: GPU, geometry: Geometry, name: str) -> Profile:
    profile = profile_named(geometry, name)
    if profile is None:
        have = ", ".join(each.name for each in geometry.profiles)
        raise Refused(f"{name} is no MIG profile of a {gpu.info.model}: it has {have}")
    return profile


def _arranged(
    geometry: Geometry, profiles: Sequence[Profile], there: tuple[Cut, ...]
) -> tuple[Cut, ...] | None:
    """Places for these, the arrangement that keeps most of what is there; None where there is none."""
    if any(sum(each.id == one.id for each in profiles) > one.most for one in profiles):
        return None
    order = sorted(profiles, key=lambda profile: (-profile.size, profile.id))
    found = _best(geometry, tuple(order), frozenset(there), 0, {})
    return None if found is None else tuple(sorted(found[1], key=lambda cut: cut.start))


Found = tuple[int, tuple[Cut, ...]]


def _best(
    geometry: Geometry,
    profiles: tuple[Profile, ...],
    there: frozenset[Cut],
    blocked: int,
    known: dict[tuple[int, int], Found | None],
) -> Found | None:
    """The most that can be kept, and the places for it; `known` are those of the rest, by what is blocked."""
    if not profiles:
        return 0, ()
    key = (len(profiles), blocked)
    if key not in known:
        known[key] = max(_tries(geometry, profiles, there, blocked, known), key=_kept, default=None)
    return known[key]


def _kept(found: Found) -> int:
    return found[0]


def _tries(
    geometry: Geometry,
    profiles: tuple[Profile, ...],
    there: frozenset[Cut],
    blocked: int,
    known: dict[tuple[int, int], Found | None],
) -> Iterator[Found]:
    for start in profiles[0].starts:
        cut = Cut(profiles[0].id, start)
        cells = cut_mask(geometry, cut)
        if not blocked & cells:
            rest = _best(geometry, profiles[1:], there, blocked | cells, known)
            if rest is not None:
                yield rest[0] + (cut in there), (cut, *rest[1])
