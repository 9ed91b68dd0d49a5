"""Facts and state to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysched.core.codec import decode, decode_fact, decode_state, encode, encode_fact, encode_state
from raysched.core.commands import Command, Report
from raysched.core.facts import Ended, Fact, Submitted
from raysched.core.lease import Slice
from raysched.core.request import Request
from raysched.core.state import State
from raysched.core.work import Run, Seen
from raysched.errors import StorageError

FACTS = get_args(Fact)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
PLAIN = {
    str: st.text(),
    int: st.integers(),
    bool: st.booleans(),
    type(None): st.none(),
    None: st.none(),
    Any: JSON,
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type of the core."""
    arguments, origin = get_args(hint), get_origin(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        names = [field.name for field in dataclasses.fields(hint) if field.init]
        kind: Any = hint
        return st.builds(kind, **{name: values(hints[name]) for name in names})
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values(argument) for argument in arguments])
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*[values(argument) for argument in arguments])
    collect = {list: list, tuple: tuple, set: set, frozenset: frozenset}[origin]
    return st.lists(values(arguments[0]), max_size=2).map(collect)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data))


@pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.__name__)
def test_every_fact_comes_back_as_it_was(kind: type[Fact]) -> None:
    @given(values(kind))
    def holds(fact: Fact) -> None:
        name, body = encode_fact(fact)
        assert decode_fact(name, through_json(body)) == fact

    holds()


@given(values(State))
def test_a_state_comes_back_as_it_was(state: State) -> None:
    assert decode_state(through_json(encode_state(state))) == state


@given(values(Command))
def test_a_command_comes_back_as_it_was(command: Command) -> None:
    assert decode(Command, through_json(encode(Command, command))) == command


def test_an_encoded_state_does_not_change_with_the_state() -> None:
    state = State(keys={"k": ("j",)}, ended={"a": None}, owned={"o": {"j": None}})
    encoded = encode_state(state)
    before = json.dumps(encoded)
    state.ended["b"] = None
    state.owned["o"]["i"] = None
    assert json.dumps(encoded) == before


def test_the_order_of_a_dict_is_kept() -> None:
    state = State(ended={"z": None, "a": None})
    assert list(decode_state(through_json(encode_state(state))).ended) == ["z", "a"]


def test_a_missing_field_takes_its_default() -> None:
    _, body = encode_fact(Submitted(1, "j", "embed", "command", {}, Request(), "ana", "key"))
    del body["retries"], body["request"]["sharing"]
    fact = decode_fact("Submitted", body)
    assert isinstance(fact, Submitted)
    assert (fact.retries, fact.request.sharing) == (0, "exclusive")


def test_a_fact_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(StorageError, match=r"'Teleported'.*later"):
        decode_fact("Teleported", {"at": 1})


def test_a_field_of_a_later_version_is_refused() -> None:
    with pytest.raises(StorageError, match=r"newer raysched.*Slice.*'warp'"):
        decode(Slice, {"gpu": "g", "share": 1, "memory": 1, "warp": 9})


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(StorageError, match="'Beam'"):
        decode(Command, {"is": "Beam"})


@pytest.mark.parametrize(
    "body", [{}, {"at": 1}, [], None, {"at": 1, "job": "j", "outcome": "failed", "code": 1}]
)
def test_a_damaged_fact_is_refused(body: Any) -> None:
    with pytest.raises(StorageError, match="damaged"):
        decode_fact("Ended", body)


def test_a_type_without_a_form_is_told_when_it_is_first_used() -> None:
    for hint in (complex, dict[tuple[int, ...], str], tuple[Slice, int], Slice | int):
        with pytest.raises(TypeError, match="no form in JSON"):
            encode(hint, None)


def test_what_is_written_is_plain_to_read() -> None:
    """The form is a contract with every journal that exists."""
    assert encode_fact(Ended(5, "j", "failed", None, "out of memory")) == (
        "Ended",
        {"at": 5, "job": "j", "outcome": "failed", "code": None, "reason": "out of memory"},
    )
    assert encode(Command, Report(Seen(Run("j", 1, 0), "lost"))) == {
        "is": "Report",
        "seen": {
            "run": {"job": "j", "attempt": 1, "rank": 0},
            "state": "lost",
            "started": None,
            "ended": None,
            "code": None,
            "reason": "",
            "begun": True,
            "mark": 0,
        },
    }
