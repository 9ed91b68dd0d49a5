"""Dataclasses of the core to and from what JSON can hold, by their type hints.

    dataclass          {"field": ...}
    union of them      {"is": "ClassName", "field": ...}
    tuple, list        [...]
    set, frozenset     [...], sorted; of plain values only
    dict               {...}; keys that are int become text
    str, int, float, bool, None, Literal, Any    themselves

A field that is no argument of its class holds nothing that has to be kept, and is left out.
A field that is missing takes its default, so that this version reads what older ones wrote. A class or a
field that this version does not know is refused: it comes from a newer one, and dropping it would lose
what was decided.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from raysched.core.facts import Fact
from raysched.core.state import State
from raysched.errors import StorageError

Convert = Callable[[Any], Any]


class Codec(NamedTuple):
    """How values of one type are written and read; None stands for "as they are"."""

    encode: Convert | None
    decode: Convert | None


_AS_IS = Codec(None, None)
_PLAIN = frozenset({str, int, float, bool, None, type(None), Any})


def encode(hint: Any, value: Any) -> Any:
    """What JSON can hold of a value of the type `hint`. Raises TypeError for a type that has no form."""
    convert = _codec(hint).encode
    return value if convert is None else convert(value)


def decode(hint: Any, data: Any) -> Any:
    """The value of type `hint` that was encoded as `data`. Raises StorageError where it can't be read."""
    convert = _codec(hint).decode
    return data if convert is None else convert(data)


def encode_fact(fact: Fact) -> tuple[str, dict[str, Any]]:
    """The kind of a fact, which is its class's name, and its body."""
    kind = type(fact)
    return kind.__name__, encode(kind, fact)


def decode_fact(kind: str, body: dict[str, Any]) -> Fact:
    """The fact of that kind and body. Raises StorageError for one that this version does not know."""
    fact = _FACTS.get(kind)
    if fact is None:
        raise StorageError(f"{_NEWER}: it holds a fact of the unknown kind {kind!r}; {_UPGRADE}")
    return decode(fact, body)


def encode_state(state: State) -> dict[str, Any]:
    """A state as JSON can hold it; it shares nothing that `evolve` changes with `state`."""
    return encode(State, state)


def decode_state(data: dict[str, Any]) -> State:
    """The state that was encoded as `data`. Raises StorageError for one that this version does not know."""
    return decode(State, data)


_FACTS: dict[str, type[Fact]] = {kind.__name__: kind for kind in get_args(Fact)}
_NEWER = "the journal was written by a newer raysched"
_UPGRADE = "run that version or a later one"


@cache
def _codec(hint: Any) -> Codec:
    """The codec of a type, built once."""
    if hint in _PLAIN:
        return _AS_IS
    if dataclasses.is_dataclass(hint):
        return _of_dataclass(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return _AS_IS
    if origin in (Union, types.UnionType):
        return _of_union(get_args(hint))
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](get_args(hint))
    raise TypeError(f"{hint!r} has no form in JSON")


def _of_dataclass(kind: Any) -> Codec:
    hints = get_type_hints(kind)
    codecs = {field.name: _codec(hints[field.name]) for field in dataclasses.fields(kind) if field.init}
    names = tuple(codecs)
    read = (
        attrgetter(*names) if len(names) > 1 else lambda value: tuple(getattr(value, name) for name in names)
    )
    converted = tuple((name, codec.encode) for name, codec in codecs.items() if codec.encode is not None)
    decoders = {name: codec.decode for name, codec in codecs.items()}

    def encode_fields(value: Any) -> dict[str, Any]:
        fields = dict(zip(names, read(value), strict=True))
        for name, convert in converted:
            fields[name] = convert(fields[name])
        return fields

    def decode_fields(data: dict[str, Any]) -> Any:
        try:
            return kind(
                **{
                    name: value if (convert := decoders[name]) is None else convert(value)
                    for name, value in data.items()
                }
            )
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise _unreadable(kind, decoders, data, problem) from problem

    return Codec(encode_fields, decode_fields)


def _unreadable(kind: type, known: dict[str, Any], data: Any, problem: Exception) -> StorageError:
    """Why `data` is no `kind`: something newer, or damaged."""
    unknown = sorted(data.keys() - known.keys()) if isinstance(data, dict) else []
    if unknown:
        return StorageError(f"{_NEWER}: {kind.__name__} has the unknown field {unknown[0]!r}; {_UPGRADE}")
    return StorageError(
        f"the journal is damaged: it holds no readable {kind.__name__} ({problem}); restore a backup of it"
    )


def _of_union(members: tuple[Any, ...]) -> Codec:
    kinds = tuple(member for member in members if member is not type(None))
    codec = _codec(kinds[0]) if len(kinds) == 1 else _of_classes(kinds)
    if len(kinds) == len(members):
        return codec
    return Codec(_unless_none(codec.encode), _unless_none(codec.decode))


def _unless_none(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda value: None if value is None else convert(value)


def _of_classes(kinds: tuple[Any, ...]) -> Codec:
    """Dataclasses told apart by their name, or plain types that need no telling."""
    if all(_codec(kind) is _AS_IS for kind in kinds):
        return _AS_IS
    if len(kinds) == 2 and kinds[0] is str and get_origin(kinds[1]) is tuple:
        return _of_text_or_tuple(_codec(kinds[1]))
    if not all(dataclasses.is_dataclass(kind) for kind in kinds):
        raise TypeError(f"a union of {kinds!r} has no form in JSON")
    by_name = {kind.__name__: kind for kind in kinds}

    def encode_tagged(value: Any) -> dict[str, Any]:
        return {"is": type(value).__name__, **encode(type(value), value)}

    def decode_tagged(data: dict[str, Any]) -> Any:
        fields = dict(data)
        name = fields.pop("is", None)
        if name not in by_name:
            raise StorageError(f"{_NEWER}: it holds the unknown class {name!r}; {_UPGRADE}")
        return decode(by_name[name], fields)

    return Codec(encode_tagged, decode_tagged)


def _of_text_or_tuple(items: Codec) -> Codec:
    def convert(each: Convert | None) -> Convert:
        return lambda value: value if isinstance(value, str) or each is None else each(value)

    return Codec(convert(items.encode), convert(items.decode))


def _of_tuple(arguments: tuple[Any, ...]) -> Codec:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _of_sequence(_codec(arguments[0]), list, tuple)
    if all(_codec(argument) is _AS_IS for argument in arguments):
        return Codec(list, tuple)
    raise TypeError(f"a tuple of exactly {arguments!r} has no form in JSON")


def _of_list(arguments: tuple[Any, ...]) -> Codec:
    return _of_sequence(_codec(arguments[0]), list, list)


def _of_set(arguments: tuple[Any, ...]) -> Codec:
    return _of_sequence(_codec(arguments[0]), sorted, set)


def _of_frozenset(arguments: tuple[Any, ...]) -> Codec:
    return _of_sequence(_codec(arguments[0]), sorted, frozenset)


def _of_sequence(item: Codec, out: Convert, back: Convert) -> Codec:
    return Codec(_each(item.encode, out), _each(item.decode, back))


def _each(convert: Convert | None, collect: Convert) -> Convert:
    if convert is None:
        return collect
    return lambda values: collect([convert(value) for value in values])


def _of_dict(arguments: tuple[Any, ...]) -> Codec:
    key, value = arguments
    if key not in (str, int):
        raise TypeError(f"a dict with keys of {key!r} has no form in JSON")
    item = _codec(value)
    return Codec(
        _pairs(str if key is int else None, item.encode), _pairs(int if key is int else None, item.decode)
    )


def _pairs(key: Convert | None, item: Convert | None) -> Convert:
    if key is None and item is None:
        return dict
    if key is None:
        return lambda pairs: {name: item(value) for name, value in pairs.items()}  # type: ignore[misc]
    if item is None:
        return lambda pairs: {key(name): value for name, value in pairs.items()}
    return lambda pairs: {key(name): item(value) for name, value in pairs.items()}


_CONTAINERS: dict[Any, Callable[[tuple[Any, ...]], Codec]] = {
    tuple: _of_tuple,
    list: _of_list,
    set: _of_set,
    frozenset: _of_frozenset,
    dict: _of_dict,
}
