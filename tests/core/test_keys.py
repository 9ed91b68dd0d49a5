"""A command that is repeated under its key is done once; a key is for one command only."""

from __future__ import annotations

import pytest
from world import World, node, share, whole

from raysched.core.commands import Cancel, Cordon, Once, Submit
from raysched.errors import Conflict


@pytest.fixture
def world() -> World:
    return World(node("a", 1))


def once(key: str, digest: str, *ids: str) -> Once:
    return Once(key, digest, ids, tuple(Cancel(id, "ana") for id in ids))


def test_a_repeated_command_is_done_once(world):
    """Though it would do something by now: whoever lost the answer to a cancellation ends no later job, and
    who repeats a drain drains nothing that was put to use again meanwhile."""
    world.submit("a", share(0.5))
    assert world.do(once("k", "cancel hpo", "a"))
    assert world.states() == {"a": "cancelled"}
    world.submit("b", share(0.5))
    assert not world.do(once("k", "cancel hpo", "b"))
    assert world.states() == {"a": "cancelled", "b": "starting"}
    assert world.state.keys["k"] == ("a",)
    (name,) = world.state.nodes
    drain = Once("d", "drain", (), (Cordon(name, True),))
    world.do(drain)
    world.do(Cordon(name, False))
    assert not world.do(drain)
    assert not world.state.nodes[name].draining


def test_a_key_with_another_content_is_refused(world):
    """Of the same command or another one; what was written before there were digests is taken as it is."""
    world.submit("old", whole())
    world.do(once("k", "cancel a"))
    for command in (once("k", "cancel b", "old"), Submit("k", "ana", (), "submit")):
        with pytest.raises(Conflict, match="'k' was used for something else"):
            world.do(command)
    assert world.states() == {"old": "starting"}
    assert not world.do(Submit("key-old", "ana", (), "a digest"))


def test_a_command_that_is_refused_uses_up_no_key(world):
    missing = Once("k", "drain", (), (Cordon("nowhere", True),))
    with pytest.raises(Exception, match="nowhere"):
        world.do(missing)
    assert "k" not in world.state.keys
