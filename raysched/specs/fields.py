"""What every part of a file has in common: unknown fields get a suggestion, and all faults come at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from raysched.errors import Problem
from raysched.specs.document import Document
from raysched.specs.problems import Location, closest, either, field_name, quoted

HOLDS_FIELDS = "must hold fields, each on a line of its own as `field: value`"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one value, by its path from the model that found it."""

    path: Location
    message: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Fields that can't stand together, the one to blame first."""

    fields: tuple[str, ...]
    message: str


class Fields(BaseModel):
    """A mapping with known fields. Validation raises pydantic's ValidationError with every fault in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, field_title_generator=lambda name, _: name)

    misplaced: ClassVar[Mapping[str, str]] = {}
    """What belongs elsewhere, and what to tell who wrote it here."""

    def contradictions(self) -> Iterator[Contradiction]:
        """What is wrong between fields that are right one by one."""
        return iter(())

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, check: ValidatorFunctionWrapHandler) -> Self:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise _error(HOLDS_FIELDS)
        known = {str(name): value for name, value in data.items() if name in cls.model_fields}
        faults = [Fault((str(name),), cls._unknown(str(name))) for name in data if name not in known]
        model, wrong = cls._check(known, check)
        faults += wrong
        faults += cls._between(model, blamed={fault.path[0] for fault in faults})
        if faults or model is None:
            raise_faults(cls.__name__, faults)
        return model

    @classmethod
    def _between(cls, model: Self | None, blamed: set[str | int]) -> Iterator[Fault]:
        """The contradictions between fields that nothing else is wrong with."""
        for found in model.contradictions() if model else ():
            if blamed.isdisjoint(found.fields):
                yield Fault(found.fields[:1], found.message)

    @classmethod
    def _check(
        cls, known: dict[str, Any], check: ValidatorFunctionWrapHandler
    ) -> tuple[Self | None, list[Fault]]:
        """The model, without the fields that are wrong so that the others can still be compared."""
        try:
            return check(known), []
        except ValidationError as error:
            faults = [Fault(found["loc"], _worded(found)) for found in error.errors(include_url=False)]
        blamed = {fault.path[0] for fault in faults}
        try:
            return check({name: value for name, value in known.items() if name not in blamed}), faults
        except ValidationError:
            return None, faults

    @classmethod
    def _unknown(cls, name: str) -> str:
        if name in cls.misplaced:
            return cls.misplaced[name]
        if meant := closest(name, cls.model_fields):
            return f"is no field here; did you mean {meant}?"
        if not cls.model_fields:
            return "is no field here: nothing can be set"
        return f"is no field here: use {either(cls.model_fields)}"


def raise_faults(title: str, faults: Iterable[Fault]) -> NoReturn:
    """Raise all of them as one ValidationError, which pydantic takes apart again further out."""
    raise ValidationError.from_exception_data(
        title,
        [InitErrorDetails(type=_error(fault.message), loc=fault.path, input=None) for fault in faults],
    )


def _error(message: str) -> PydanticCustomError:
    return PydanticCustomError("fault", "{said}", {"said": message})


def _worded(found: ErrorDetails) -> str:
    """What pydantic found, in the words of the other messages."""
    context = found.get("ctx", {})
    match found["type"]:
        case "missing":
            return "is missing"
        case "value_error":
            return str(context["error"])
        case "greater_than":
            return f"must be more than {context['gt']}"
        case "greater_than_equal":
            return f"must be {context['ge']} or more, not {found['input']}"
        case "less_than_equal":
            return f"must be {context['le']} or less, not {found['input']}"
        case "bool_type":
            return "must be true or false"
        case "dict_type":
            return HOLDS_FIELDS
        case "literal_error":
            return _not_a_choice(found["input"], re.findall(r"'([^']*)'", context["expected"]))
        case _:
            return found["msg"]


def _not_a_choice(value: object, choices: list[str]) -> str:
    meant = closest(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean {meant}?" if meant else ""
    return f"must be {either(choices)}, not {quoted(value)}{hint}"


def problems_of(
    error: ValidationError, file: str | None = None, document: Document | None = None, within: str = ""
) -> list[Problem]:
    """The faults of a ValidationError that a `Fields` raised, with their places if they came from a document.

    `within` goes in front of the names of the fields.
    """
    problems: list[Problem] = []
    for found in error.errors(include_url=False):
        path = found["loc"][:-1] if found["loc"][-1:] == ("[key]",) else found["loc"]  # a name that is wrong
        name = field_name((within, *path) if within else path)
        place = document.place(found["loc"]) if document else None
        line, column = (place.line, place.column) if place else (None, None)
        problems.append(Problem(_worded(found), name, file, line, column))
    return problems
