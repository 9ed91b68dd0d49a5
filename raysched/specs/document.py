"""YAML as people write it: scalars kept as written, and the place of everything.

- `true` and `false` are booleans; `null`, `~` and nothing at all are null; every other scalar is text, just
  as it stands in the file (`on`, `010`, `12:00:00`, `3.10`). What is in quotes is always text.
- The same key twice is a problem, and so are tags (`!!int`), merge keys (`<<`) and keys that are no text.
- Aliases work. File, nesting and what aliases grow to are bounded.
- A byte order mark and CRLF line ends are fine. Several documents come out as several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml.composer import Composer
from yaml.error import Mark, MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from raysched.errors import FileMissing, Problem
from raysched.specs.problems import Location, field_name, quoted

MAX_FILE = 256 * 1024
"""Bytes that a file may have."""

MAX_GROWN = 1024 * 1024
"""Characters that the values of a document may have, with aliases written out."""

MAX_DEPTH = 50
"""Levels of nesting."""

_SPECIAL: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}

_WORDING = (
    ("mapping values are not allowed", "a colon can't stand here: check the indentation, or quote the text"),
    ("expected <block end>", "the indentation does not fit the lines above"),
    ("could not find expected ':'", "this line is no `field: value`: a colon is missing"),
    ("expected ',' or", "a comma or a closing bracket is missing"),
    ("unexpected end of stream", "the file ends inside a quoted text"),
    ("expected the node content", "a value is missing or a bracket is not closed"),
    ("found undefined alias", "an alias (*name) has no anchor (&name) before it"),
    ("found duplicate anchor", "the same anchor (&name) stands here twice"),
    ("cannot start any token", "this character can't begin a value: put the text in quotes"),
)
"""What PyYAML says, and what it means."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a file; both numbers count from 1."""

    line: int
    column: int

    @classmethod
    def of(cls, mark: Mark) -> Place:
        """The place that PyYAML's mark (which counts from 0) names."""
        return cls(mark.line + 1, mark.column + 1)


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file: its value (dicts, lists, text, true, false and null) and where each part is."""

    value: Any
    places: dict[Location, Place]

    def place(self, path: Location) -> Place:
        """Where the value at `path` stands, or what is around it."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places[path]


@dataclass(frozen=True, slots=True)
class Reading:
    """A file's documents that hold something, and all that is wrong with it as YAML."""

    documents: list[Document]
    problems: list[Problem]


def read_file(path: Path) -> bytes:
    """The bytes of a file, no more than are needed to see that it is too large. Raises FileMissing."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise FileMissing(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise FileMissing(f"{path} can't be read: {getattr(error, 'strerror', error)}") from None


def read_yaml(data: bytes, file: str) -> Reading:
    """Read all documents of a file's bytes; `file` names it in the problems. Never raises."""
    if len(data) > MAX_FILE:
        return Reading(
            [], [Problem(f"is larger than {MAX_FILE // 1024} KiB, the most there may be", file=file)]
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Reading([], [Problem("is not UTF-8 text: save it as UTF-8", file=file, line=line)])
    reading = Reading([], [])
    try:
        for document in _documents(text, file, reading.problems):
            if document.value is not None:
                reading.documents.append(document)
    except YAMLError as error:
        reading.problems.append(_syntax_problem(error, text, file))
    return reading


def _documents(text: str, file: str, problems: list[Problem]) -> Iterator[Document]:
    composer = _BoundedComposer(text)
    while composer.check_node():
        if (node := composer.get_node()) is not None:
            yield _Builder(file, problems).document(node)


class _BoundedComposer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's nodes with their marks, without its guesses about types."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0

    def fetch_more_tokens(self) -> None:
        try:
            super().fetch_more_tokens()
        except (ValueError, OverflowError):
            raise _error("an escaped character does not exist", self.get_mark()) from None

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _error("tags such as !!int are not read: remove it", event.start_mark)
        if self.depth == MAX_DEPTH:
            raise _error(f"is nested deeper than {MAX_DEPTH} levels", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass(slots=True)
class _Builder:
    """Turns nodes into values and notes where each stands."""

    file: str
    problems: list[Problem]
    places: dict[Location, Place] = field(default_factory=dict[Location, Place])
    grown: int = 0

    def document(self, node: Node) -> Document:
        self.places[()] = Place.of(node.start_mark)
        return Document(self._value(node, ()), self.places)

    def _value(self, node: Node, path: Location) -> Any:
        if len(path) > MAX_DEPTH:
            raise _error("an alias (*name) stands inside what it names", node.start_mark)
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._item(item, (*path, number)) for number, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node)

    def _item(self, node: Node, path: Location) -> Any:
        self.places[path] = Place.of(node.start_mark)
        return self._value(node, path)

    def _mapping(self, node: MappingNode, path: Location) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, place = self._key(key_node), Place.of(key_node.start_mark)
            if key is None:
                continue
            if key in mapping:
                first = self.places[(*path, key)].line
                self._problem((*path, key), place, f"is here twice: line {first} has it already")
                continue
            self.places[(*path, key)] = place
            mapping[key] = self._value(value_node, (*path, key))
        return mapping

    def _key(self, node: Node) -> str | None:
        if not isinstance(node, ScalarNode) or not node.value:
            self._problem((), Place.of(node.start_mark), "the name of a field must be text")
            return None
        if node.value == "<<" and node.style is None:
            self._problem((), Place.of(node.start_mark), "merge keys (<<) are not read: write the fields out")
            return None
        self._grow(node)
        return node.value

    def _scalar(self, node: ScalarNode) -> str | bool | None:
        self._grow(node)
        if node.style is None and node.value in _SPECIAL:
            return _SPECIAL[node.value]
        return node.value

    def _grow(self, node: ScalarNode) -> None:
        if not is_text(node.value):
            raise _error("a text holds half a character (a lone surrogate)", node.start_mark)
        self.grown += 1 + len(node.value)
        if self.grown > MAX_GROWN:
            raise _error(
                f"with aliases written out it is larger than {MAX_GROWN // 1024} KiB", node.start_mark
            )

    def _problem(self, path: Location, place: Place, message: str) -> None:
        self.problems.append(Problem(message, field_name(path), self.file, place.line, place.column))


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _error(message: str, mark: Mark) -> MarkedYAMLError:
    return MarkedYAMLError(problem=message, problem_mark=mark, note="ours")


def _syntax_problem(error: YAMLError, text: str, file: str) -> Problem:
    place = _place_of(error, text)
    return Problem(_worded(error, text, place), file=file, line=place.line, column=place.column)


def _place_of(error: YAMLError, text: str) -> Place:
    if isinstance(error, ReaderError):
        before = text[: error.position]
        return Place(before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
    assert isinstance(error, MarkedYAMLError)
    # PyYAML notices these two only further on, and names where they began as the context.
    late = (error.context or "").startswith(("while scanning a quoted", "while scanning a simple key"))
    mark = error.context_mark if late else error.problem_mark
    assert mark is not None
    return Place.of(mark)


def _worded(error: YAMLError, text: str, place: Place) -> str:
    if isinstance(error, ReaderError):
        return f"the character {quoted(chr(error.character))} is not allowed in YAML: remove it"
    assert isinstance(error, MarkedYAMLError)
    said = f"{error.context or ''} {error.problem or ''}".strip()
    if error.note == "ours":
        return said
    if "'\\t'" in said or _indented_by_tab(text, place):
        return "there is a tab here: YAML is indented with spaces only"
    for theirs, ours in _WORDING:
        if theirs in said:
            return ours
    return f"is not valid YAML: {said}"


def _indented_by_tab(text: str, place: Place) -> bool:
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    return "\t" in line[: len(line) - len(line.lstrip())]
