"""Quantities as Kubernetes writes them: `500m`, `1.5`, `16Gi`, `1e3`."""

from __future__ import annotations

import re
from decimal import Decimal

from raysched.core.request import WHOLE

_QUANTITY = re.compile(r"(?P<number>[+-]?[0-9.]+)(?P<suffix>[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?")
_SUFFIX = {"": 0, "n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def quantity(text: str) -> Decimal:
    """The number that a quantity is. Raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity of Kubernetes")
    number, suffix = Decimal(found["number"]), found["suffix"] or ""
    if suffix in _BINARY:
        return number * 1024 ** _BINARY[suffix]
    if suffix in _SUFFIX:
        return number.scaleb(_SUFFIX[suffix])
    return number.scaleb(int(suffix[1:]))


def cores(text: str) -> int:
    """Ten-thousandths of a core, rounded down."""
    return int(quantity(text) * WHOLE)


def mebibytes(text: str) -> int:
    """MiB, rounded down."""
    return int(quantity(text) / 2**20)
