"""What a relay and its lease workers tell each other about decorated calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from raysched.actors.parcel import Failure, Parcel, Sealed


class Call(NamedTuple):
    """A call that a worker is given: `function` is the id under which the relay has the function,
    `arguments` a parcel of the positional and the named ones, `returns` how many values are expected."""

    number: int
    function: str
    arguments: Parcel
    returns: int


class Outcome(NamedTuple):
    """How a call ended: one value a return, or the failure. `seconds` is how long it ran."""

    number: int
    values: list[Sealed]
    failure: Failure | None
    seconds: float


def seal(value: Any, returns: int) -> list[Sealed]:
    """The values of a call that returned `value`. Raises ValueError where it has not as many as promised."""
    if returns == 1:
        return [Sealed(Parcel.of(value))]
    if not isinstance(value, Sequence) or len(value) != returns:
        raise ValueError(f"the function is to return {returns} values (num_returns), and returned {value!r}")
    return [Sealed(Parcel.of(each)) for each in value]
