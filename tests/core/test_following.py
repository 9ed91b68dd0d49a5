"""What a backend is told of what is wanted of it. That it always has all of it, the model's lives show
(`test_model.py`); here are those who ask with a version that is too old, or is none of ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from world import World, node

from raysched.core import following
from raysched.core.commands import (
    Cancel,
    Command,
    Denied,
    Gone,
    JobRequest,
    NodeSeen,
    Report,
    Submit,
    Tick,
)
from raysched.core.facts import Fact
from raysched.core.following import Following
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.scheduler import Scheduler
from raysched.core.state import State
from raysched.core.wanted import wanted
from raysched.core.work import Change, Run, Seen, Wanted

FIRST = 100
REQUEST = Request(share=1000, sharing="fraction", backends=("vm",))


class Followed(World):
    """A world in which two backends apply what changed after each step, and have all that is wanted."""

    def __init__(self, *nodes: NodeInfo) -> None:
        self.followed = {backend: Following(backend, FIRST) for backend in ("vm", "ray")}
        self.known = dict.fromkeys(self.followed, (-1, Wanted()))
        super().__init__()
        self.core = Scheduler(self.state, self.hear)
        for info in nodes:
            self.do(NodeSeen(info))

    def hear(self, state: State, fact: Fact) -> None:
        for each in self.followed.values():
            each.hear(state, fact)

    def do(self, command: Command) -> list[Fact]:
        told = super().do(command)
        for backend, each in self.followed.items():
            version, known = self.known[backend]
            each.version(self.state)
            change = each.since(version)
            self.known[backend] = change.version, known.after(change)
            assert self.known[backend][1] == wanted(self.state, backend)
        return told

    def see(self, state: Literal["running", "exited"], code: int | None = None) -> None:
        self.do(Report(Seen(Run("j", self.job("j").attempt, 0), state, code=code)))


def test_each_step_of_a_life_is_followed() -> None:
    """A failed attempt, a second one that is taken back, and a third that is cancelled, on a node of Ray."""
    world = Followed(node("n", 2))
    world.submit("j", replace(REQUEST, gpus=1), retries=1)
    for end in ("fails", "is taken", "is cancelled"):
        lease = world.hold("j") and world.lease("j").id
        if end == "fails":
            world.see("running")
            world.see("exited", 3)
        elif end == "is taken":
            world.do(Denied(lease, "the disk is full"))
        else:
            world.see("running")
            world.do(Cancel("j", "ana"))
            world.see("exited", 143)
        world.do(Gone(lease, ("n",), "ray"))
        world.now += 60_000
        world.do(Tick())
    assert world.job("j").state == "cancelled"
    assert world.known["vm"][1] == world.known["ray"][1] == Wanted()


class Ledger:
    """A ledger with one node that Ray does not manage, and what follows of it for the vm backend."""

    def __init__(self) -> None:
        world = World(node("n", 4, ray_id=None))
        self.following = Following("vm", FIRST)
        self.core = Scheduler(world.state, self.following.hear)

    def submit(self, id: str) -> None:
        self.core.handle(Submit(id, "ana", (JobRequest(id, id, "command", REQUEST, {"entrypoint": id}),)), 0)
        self.core.schedule(0)

    def since(self, version: int) -> Change:
        self.following.version(self.core.state)
        return self.following.since(version)


def test_only_what_changed_since_is_told() -> None:
    ledger = Ledger()
    ledger.submit("a")
    before = ledger.since(-1)
    ledger.submit("b")
    change = ledger.since(before.version)
    assert (change.since, list(change.parts)) == (before.version, ["b.1"])
    assert ledger.since(change.version) == Change(change.version, change.version, {})


@pytest.mark.parametrize("version", [-1, FIRST - 1, FIRST + 3, 2**60])
def test_who_has_a_version_of_another_ledger_is_told_all(version: int) -> None:
    ledger = Ledger()
    ledger.submit("a")
    ledger.since(-1)
    ledger.submit("b")
    change = ledger.since(version)
    assert (change.since, list(change.parts)) == (None, ["a.1", "b.1"])
    old = Wanted({"of another": change.parts["a.1"]})
    assert old.after(change) == wanted(ledger.core.state, "vm")


def test_who_asks_after_too_many_changes_is_told_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "KEPT", 2)
    ledger = Ledger()
    versions: list[int] = []
    for id in "abcd":
        ledger.submit(id)
        versions.append(ledger.since(-1).version)
    assert ledger.since(versions[0]).since is None
    for version, left in ((versions[1], ["c.1", "d.1"]), (versions[2], ["d.1"])):
        assert list(ledger.since(version).parts) == left


def test_facts_that_were_not_heard_are_found_all_the_same() -> None:
    """As after a write that failed: memory is folded anew."""
    ledger = Ledger()
    ledger.submit("a")
    known = Wanted().after(ledger.since(-1))
    unheard = Scheduler(ledger.core.state)
    unheard.handle(Submit("b", "ana", (JobRequest("b", "b", "command", REQUEST, {"entrypoint": "b"}),)), 0)
    unheard.schedule(0)
    assert list(ledger.since(-1).parts) == ["a.1"]
    ledger.following.lose_track()
    assert known.after(ledger.since(FIRST + 1)) == wanted(ledger.core.state, "vm")
