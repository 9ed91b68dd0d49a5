"""What a relay and its lease workers tell each other about decorated calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from raysched.actors.calls.parcel import Parcel, pack_value


class Call(NamedTuple):
    """A call that a worker is given: `function` is the id under which the relay has the function,
    `arguments` what `pack_arguments` made of them, `returns` how many values are expected."""

    number: int
    function: str
    arguments: list[Any] | Parcel
    returns: int


class Given(NamedTuple):
    """What a worker gets: calls, the seconds that one of them may take before those behind it are given to
    others, and whether many more wait."""

    calls: list[Call]
    patience: float
    more: bool


When = Literal["now", "ahead", "last"]
"""A worker asks for calls because it has none, because it will soon have none, or it brings outcomes and
wants none any more."""


class Outcome(NamedTuple):
    """How a call ended: a packed value for each return, or what `pack_error` made of its exception.
    `seconds` is how long it ran."""

    number: int
    values: list[Any]
    failure: tuple[Parcel, str] | None
    seconds: float


def pack_values(value: Any, returns: int) -> list[Any]:
    """The values of a call that returned `value`. Raises ValueError where it has not as many as promised."""
    if returns == 1:
        return [pack_value(value)]
    if not isinstance(value, Sequence) or len(value) != returns:
        raise ValueError(f"the function is to return {returns} values (num_returns), and returned {value!r}")
    return [pack_value(each) for each in value]
