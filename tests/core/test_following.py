"""What a backend is told of what is wanted of it. That it always has all of it, the model's lives show
(`test_model.py`); here are those who ask with a version that is too old, or is none of ours."""

from __future__ import annotations

import pytest
from world import World, node

from raysched.core import following
from raysched.core.commands import JobRequest, Submit
from raysched.core.following import Following
from raysched.core.request import Request
from raysched.core.scheduler import Scheduler
from raysched.core.wanted import wanted
from raysched.core.work import Change, Wanted

FIRST = 100
REQUEST = Request(share=1000, sharing="fraction", backends=("vm",))


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
