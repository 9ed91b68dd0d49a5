"""Ignore files, read as git reads them (gitignore(5)).

pathspec is no help here: it judges files by their whole path, so that whoever walks a tree and asks it for a
folder gets another answer than git's, for the common `*`, `!*/`, `!*.py` for instance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
      (?P<folders> (?:^|(?<=/)) \*\*/ )               # a/**/b: any number of folders
    | (?P<below>   (?:^|(?<=/)) \*\*$ )               # a/**: everything below
    | (?P<many>    \*+ )
    | (?P<one>     \? )
    | \[ (?P<not>  [!^]? ) (?P<set> \]? (?: \[:[a-z]+:\] | \\. | [^]\\] )* ) \]
    | \\ (?P<escaped> . )
    | (?P<broken>  [\\[] )                            # git takes such a pattern for one that matches nothing
    | (?P<plain>   . )
    """,
    re.VERBOSE | re.DOTALL,
)
_WILDCARDS = {"folders": "(?:[^/]+/)*", "below": ".+", "many": "[^/]*", "one": "[^/]"}
_IN_SET = re.compile(
    r"\[:(?P<kind>[a-z]+):\] | \\(?P<escaped>.) | (?P<range>-) | (?P<plain>.)", re.VERBOSE | re.DOTALL
)
_KINDS = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r"\ \t",
    "digit": "0-9",
    "lower": "a-z",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One line: what it matches, and whether that is left out or brought back (`!`)."""

    pattern: re.Pattern[str]
    ignores: bool
    folders_only: bool
    whole_path: bool

    def matches(self, name: str, is_folder: bool) -> bool:
        """Whether the line speaks of this very file or folder, not of one around it."""
        if self.folders_only and not is_folder:
            return False
        return bool(self.pattern.fullmatch(name if self.whole_path else name.rpartition("/")[2]))


@dataclass(frozen=True, slots=True)
class Rules:
    """The lines that hold in one folder, the last one first."""

    rules: tuple[Rule, ...]

    @classmethod
    def read(cls, lines: Iterable[str]) -> Rules:
        """The rules of an ignore file; lines that mean nothing to git mean nothing here."""
        rules = [rule for line in lines if (rule := _rule(line)) is not None]
        return cls(tuple(reversed(rules)))

    def verdict(self, name: str, is_folder: bool) -> bool | None:
        """Whether the file or folder at `name`, a path from this folder, is left out; None: nothing is said.

        Whoever walks the tree asks for a folder before what is in it, and leaves that out with the folder.
        """
        return next((rule.ignores for rule in self.rules if rule.matches(name, is_folder)), None)


def _rule(line: str) -> Rule | None:
    line = line.removesuffix("\r")
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    if line.startswith("#"):
        return None
    ignores, line = not line.startswith("!"), line.removeprefix("!")
    folders_only, line = line.endswith("/"), line.removesuffix("/")
    pattern = _pattern(line.removeprefix("/"))
    return None if pattern is None else Rule(pattern, ignores, folders_only, whole_path="/" in line)


def _pattern(glob: str) -> re.Pattern[str] | None:
    """The regular expression of a pattern; None for one that matches nothing."""
    regex = ""
    for token in _TOKEN.finditer(glob):
        kind = token.lastgroup or ""
        if kind == "broken":
            return None
        if kind == "set":
            regex += _set(negated=bool(token["not"]), content=token["set"])
        else:
            regex += _WILDCARDS.get(kind) or re.escape(token[kind])
    try:
        return re.compile(regex, re.DOTALL) if regex else None
    except re.error:  # a range that runs backwards
        return None


def _set(negated: bool, content: str) -> str:
    """A set of characters, none of which is ever a slash."""
    inside = ""
    for token in _IN_SET.finditer(content):
        kind = token.lastgroup or ""
        inside += (
            _KINDS.get(token[kind], "")
            if kind == "kind"
            else "-"
            if kind == "range"
            else re.escape(token[kind])
        )
    return f"(?!/)[{'^' if negated else ''}{inside}]"
