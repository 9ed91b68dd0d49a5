"""What a job file lays over a pod's spec, under `k8s.pod`: it adds, and changes nothing that raysched set.

A job file holds text, true, false and null; which fields are numbers, the official client's models know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raysched.backends.base import EngineRefused
from raysched.specs.k8s import MAIN

FREE = frozenset({"enableServiceLinks", "automountServiceAccountToken", "terminationMessagePolicy"})
"""What an overlay may set otherwise."""

_INSIDE = re.compile(r"(?P<outer>[Ll]ist|[Dd]ict)[\[(](?P<inner>.*)[\])]")


def laid_over(pod: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`pod` with the overlay's fields. Raises EngineRefused for an unknown field, for a value of the wrong
    kind, and for what raysched set otherwise, with its path."""
    if not overlay:
        return pod
    return _merged(pod, _typed(overlay, "V1PodSpec", "k8s.pod"), "k8s.pod")


def _refused(path: str, what: str) -> EngineRefused:
    return EngineRefused(f"{path}: {what}", final=True)


# ---------------------------------------------------------------- laying it over


def _merged(ours: Any, theirs: Any, path: str) -> Any:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        merged = dict(ours)
        for name, value in theirs.items():
            where = f"{path}.{name}"
            merged[name] = _merged(ours[name], value, where) if name in ours and name not in FREE else value
        return merged
    if isinstance(ours, list) and isinstance(theirs, list):
        return _joined(ours, theirs, path)
    if ours == theirs:
        return ours
    raise _refused(path, "is set by raysched: remove it")


def _joined(ours: list[Any], theirs: list[Any], path: str) -> list[Any]:
    """Both lists, one after the other; only the job's own container is one and the same in both."""
    joined = list(ours)
    names = {item["name"]: at for at, item in enumerate(ours) if isinstance(item, dict) and "name" in item}
    for at, item in enumerate(theirs):
        name = item.get("name") if isinstance(item, dict) else None
        if name not in names:
            joined.append(item)
        elif name == MAIN:
            joined[names[name]] = _merged(ours[names[name]], item, f"{path}[{at}]")
        else:
            raise _refused(f"{path}[{at}].name", f"{name} is there already: take another name")
    return joined


# ---------------------------------------------------------------- kinds of values


def _typed(value: Any, kind: str, path: str) -> Any:
    """A value as the field's type in the API: `kind` is `int`, `List[V1Container]`, `Dict[str, str]`, ...;
    versions of the client write it a little differently."""
    if value is None:
        return None
    found = _INSIDE.fullmatch(kind)
    if found is not None and found["outer"].lower() == "list":
        return _list(value, found["inner"], path)
    if found is not None:
        return _mapping(value, found["inner"].partition(", ")[2], path)
    if kind[0].isupper():
        return _object(value, kind, path)
    return _scalar(value, kind, path)


def _list(value: Any, kind: str, path: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _refused(path, "must be a list")
    return [_typed(item, kind, f"{path}[{at}]") for at, item in enumerate(value)]


def _mapping(value: Any, kind: str, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused(path, "must hold names and values")
    return {str(name): _typed(item, kind, f"{path}.{name}") for name, item in value.items()}


def _object(value: Any, kind: str, path: str) -> dict[str, Any]:
    from kubernetes.client import models

    model = getattr(models, kind)
    if not isinstance(value, Mapping):
        raise _refused(path, "must hold fields")
    fields = {named: model.openapi_types[own] for own, named in model.attribute_map.items()}
    for name in value:
        if name not in fields:
            raise _refused(f"{path}.{name}", "is no field that Kubernetes knows")
    return {name: _typed(item, fields[name], f"{path}.{name}") for name, item in value.items()}


def _scalar(value: Any, kind: str, path: str) -> Any:
    text = isinstance(value, str)
    if isinstance(value, Mapping | list | tuple):
        raise _refused(path, "must be one value")
    if kind == "int":
        if not text or not value.removeprefix("-").isascii() or not value.removeprefix("-").isdigit():
            raise _refused(path, "must be a whole number")
        return int(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise _refused(path, "must be true or false")
        return value
    if kind == "object" and text and value.isascii() and value.isdigit():
        return int(value)  # a port, by number or by name
    return value if text else str(value).lower()
