"""The shapes of what the HTTP API does with nodes; see `answers.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysched.actors.gateway.answers import Node, Shape


class Cordoning(Shape):
    """Whether a node is cordoned (nothing new starts there, what runs goes on) or used again, says who."""

    on: bool = True
    user: str | None = Field(default=None, max_length=256)


class Draining(Shape):
    """Who drains a node, and what else may end for it: pods that nothing makes again (`force`), and those
    whose data goes with them (`delete_emptydir_data`). With `plan` nothing is changed."""

    user: str | None = Field(default=None, max_length=256)
    force: bool = False
    delete_emptydir_data: bool = False
    plan: bool = False


class Left(Shape):
    """A job or a pod that is still on a node: `why` it stays, empty where it is about to end."""

    job: str | None
    display: str
    pod: str | None = Field(description="NAMESPACE/NAME")
    why: str


class Drained(Shape):
    """A node that is cordoned, and who is still there."""

    node: Node
    left: list[Left]


class WantedSharing(Shape):
    """What the GPUs of a node are to be: `whole`, in `replicas` each, or cut by a MIG `layout` of the
    cluster. Those who use them are ended only with `drain`, as `Draining` has it. With `plan` nothing is
    changed."""

    kind: Literal["whole", "time-slicing", "mps", "mig"]
    replicas: int = Field(default=1, ge=1, le=64)
    layout: str = ""
    drain: bool = False
    force: bool = False
    delete_emptydir_data: bool = False
    plan: bool = False


class Resharing(Shape):
    """How far a node is: `draining` until nobody of `left` has GPUs there, `waiting` for the node to say that
    it is so. `offers` is what it has for pods, `wanted` what it will have."""

    node: str
    state: Literal["planned", "draining", "waiting", "done"]
    to: str
    changes: list[str]
    offers: dict[str, int]
    wanted: dict[str, int]
    left: list[Left]


class NewLabels(Shape):
    """Labels to give a node; null takes one away."""

    labels: dict[str, str | None] = Field(min_length=1)


class NodeLabels(Shape):
    """All labels of a node."""

    name: str
    labels: dict[str, str]
