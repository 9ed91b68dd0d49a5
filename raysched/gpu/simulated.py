"""A driver whose GPUs are made up. Nothing else is: no use of them is measured, so none is reported but what
a test put there."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import uuid
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from raysched.core.mig import DAEMON, Cut, Geometry, Instance
from raysched.core.node import GPUInfo, Mechanism
from raysched.core.request import WHOLE
from raysched.core.work import Partition
from raysched.errors import ConfigError
from raysched.gpu.cards import Card, Cards, path_of
from raysched.gpu.driver import Discovery, GPUUse, PartitionRefused
from raysched.gpu.geometries import geometry_of, named
from raysched.gpu.models import MODELS

_PART = re.compile(r"(?:(\d{1,9})x)?(\S+)", re.IGNORECASE)
_MOST = 128
"""GPUs that one node may be given: more than any machine has, few enough to list."""

_SPACE = uuid.UUID("6f9a5c0e-3a0b-5d5e-9a41-1c1a3f0f7c55")
"""The name space of simulated UUIDs: an arbitrary constant."""


class SimulatedDriver:
    """The GPUs that `text` names, such as `2xA100-80GB,1xA30`, on the node called `node`.

    Those of models with MIG can be cut, by the rules of the real ones. How they are cut is kept under the
    state folder `folder`, so that a driver that is made anew finds it; without a folder it is forgotten.
    """

    def __init__(self, text: str, node: str, folder: Path | None = None) -> None:
        self._gpus = tuple(_made_up(index, model, node) for index, model in enumerate(parse_simulation(text)))
        self._cards = Cards(path_of(folder, node) if folder else None)
        self._pipes = (folder or Path(tempfile.gettempdir())) / "simulated" / "mps"

    def discover(self) -> Discovery:
        """The same GPUs each time, as they are cut now."""
        gpus = tuple(self._now(gpu) for gpu in self._gpus)
        return Discovery(driver_version=None, simulated=True, gpus=gpus)

    def _now(self, gpu: GPUInfo) -> GPUInfo:
        card = self._cards[gpu.uuid]
        mechanisms = (*gpu.mechanisms, *card.offers)
        return replace(gpu, layout=card.layout, fault=card.fault, mechanisms=mechanisms)

    def sample(self) -> dict[str, GPUUse]:
        """What a test put there; without that nothing is measured."""
        return {gpu.uuid: _use(self._cards[gpu.uuid]) for gpu in self._gpus}

    def partition(self, change: Partition) -> None:
        """Cut a GPU, one step after the other. Raises PartitionRefused as the real driver would."""
        gpu = next((gpu for gpu in self._gpus if gpu.uuid == change.gpu), None)
        if gpu is None or (gpu.mig is None and (change.mig or change.destroy)):
            raise PartitionRefused(f"{change.gpu} has no MIG")
        if not change.mps and self._cards[gpu.uuid].mps:
            with self._step(gpu) as card:
                self._end_daemon(card)
        if gpu.mig is not None:
            self._cut(gpu, gpu.mig, change)
        if change.mps and not self._cards[gpu.uuid].mps:
            with self._step(gpu) as card:
                self._start_daemon(card, gpu)

    def _start_daemon(self, card: Card, gpu: GPUInfo) -> None:
        """There is no daemon, only the directory that tenants look for."""
        _obey(card, DAEMON)
        pipe = self._pipes / gpu.uuid
        pipe.mkdir(parents=True, exist_ok=True)
        (pipe / "control").touch()
        card.mps = str(pipe)

    def _end_daemon(self, card: Card) -> None:
        _obey(card, DAEMON)
        shutil.rmtree(card.mps, ignore_errors=True)
        card.mps = ""

    def _cut(self, gpu: GPUInfo, mig: Geometry, change: Partition) -> None:
        for cut in change.destroy:
            with self._step(gpu) as card:
                _destroy(card, mig, cut)
        with self._step(gpu) as card:
            _switch(card, gpu, change.mig)
        for cut in change.create:
            with self._step(gpu) as card:
                _create(card, gpu, cut)

    def _step(self, gpu: GPUInfo) -> AbstractContextManager[Card]:
        """One change of a card."""
        time.sleep(self._cards[gpu.uuid].pause)
        return self._cards.change(gpu.uuid)

    def close(self) -> None:
        """Nothing to let go of."""


def _made_up(index: int, model: str, node: str) -> GPUInfo:
    mig = geometry_of(model, MODELS[model])
    mechanisms: tuple[Mechanism, ...] = () if mig is None else ("mig",)
    name = f"GPU-{uuid.uuid5(_SPACE, f'{node}/{index}')}"
    return GPUInfo(name, index, model, MODELS[model], mig=mig, mechanisms=mechanisms)


def _use(card: Card) -> GPUUse:
    """What is in use of a card: the sum of what its processes use."""
    users = card.users
    memory = [use.memory_mib for use in users if use.memory_mib is not None]
    busy = [use.busy for use in users if use.busy is not None]
    return GPUUse(
        sum(memory) if memory else None,
        tuple(users),
        min(WHOLE, sum(busy)) if busy else None,
        power=card.power,
        temperature=card.temperature,
    )


def _destroy(card: Card, mig: Geometry, cut: Cut) -> None:
    there = next((each for each in card.instances if each.cut == cut), None)
    if there is None:
        return
    if users := [str(use.pid) for use in card.users if use.instance == there.uuid]:
        raise PartitionRefused(
            f"{named(mig, cut)} can't be destroyed: process {', '.join(users)} uses it", cut
        )
    _obey(card, cut)
    card.instances.remove(there)


def _switch(card: Card, gpu: GPUInfo, on: bool) -> None:
    if card.enabled == on:
        return
    what = f"MIG mode of {gpu.uuid} can't be turned {'on' if on else 'off'}"
    if users := card.users:
        raise PartitionRefused(f"{what}: process {users[0].pid} uses the GPU")
    if card.instances:
        raise PartitionRefused(f"{what}: it still has MIG instances")
    _obey(card, None)
    card.enabled = on


def _create(card: Card, gpu: GPUInfo, cut: Cut) -> None:
    mig = gpu.mig
    assert mig is not None
    if any(each.cut == cut for each in card.instances):
        return
    if not _fits(card, mig, cut):
        raise PartitionRefused(f"{named(mig, cut)} can't be made: there is no room for it there", cut)
    _obey(card, cut)
    card.made += 1
    name = f"MIG-{uuid.uuid5(_SPACE, f'{gpu.uuid}/{card.made}')}"
    card.instances.append(Instance(name, cut))


def _fits(card: Card, mig: Geometry, cut: Cut) -> bool:
    """Whether an instance may start there, and overlaps none that exists."""
    sizes = {profile.id: profile for profile in mig.profiles}
    profile = sizes.get(cut.profile)
    if not card.enabled or profile is None or cut.start not in profile.starts:
        return False
    if sum(each.cut.profile == cut.profile for each in card.instances) >= profile.most:
        return False
    taken = {
        cell
        for each in card.instances
        for cell in range(each.cut.start, each.cut.start + sizes[each.cut.profile].size)
    }
    return taken.isdisjoint(range(cut.start, cut.start + profile.size))


def _obey(card: Card, cut: Cut | None) -> None:
    """Refuse what a test told the driver to refuse."""
    if reason := card.refusal(cut):
        raise PartitionRefused(reason, cut)


def parse_simulation(text: str) -> tuple[str, ...]:
    """The model of each GPU in `2xA100-80GB,1xA30`. Raises ConfigError for anything else."""
    parts = [_part(part.strip(), text) for part in text.split(",")]
    total = sum(count for count, _ in parts)
    if total > _MOST:
        raise ConfigError(f"--simulate {text}: a node may have {_MOST} GPUs at most, not {total}")
    return tuple(model for count, model in parts for _ in range(count))


def _part(part: str, text: str) -> tuple[int, str]:
    """Count and model of `2xA100-80GB`; the count may be left out."""
    match = _PART.fullmatch(part)
    known = {model.lower(): model for model in MODELS}
    model = known.get(match[2].lower()) if match else None
    count = int(match[1] or 1) if match else 0
    if model is None or count == 0:
        raise ConfigError(
            f"--simulate {text}: {part!r} is no count and model, such as 2xA100-80GB; the models are "
            + ", ".join(MODELS)
        )
    return count, model
