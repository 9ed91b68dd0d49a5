"""Every error that raysched raises on purpose, and the exit code that the command line gives it.

    RayschedError                 70
    ├── SpecError                 65   a job file or field is wrong
    ├── ConfigError               78   the configuration is wrong
    ├── FileMissing               66   a file that was named is not there
    ├── Refused                   80   no node could ever give what was asked
    ├── NotFound                  81   no such job
    ├── Conflict                  82   not possible in this state
    ├── AlreadyUp                 83   a second `up`
    ├── PortBusy                  84   the gateway's port is taken
    ├── Unreachable               69   nothing answers: not up, or the cluster is dead
    ├── Unauthorized              77   the token is wrong
    ├── StorageError              74   the disk is full, or the journal can't be written
    └── LeaseLost                 75   a lease ended under its holder

Codes up to 78 are those of BSD's sysexits.h. A message is one sentence that says what is wrong, where,
and what to do; it never needs the traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in what somebody wrote. Lines and columns count from 1, None without a file.

    `field` is empty where the text itself is wrong, and is then told by line and column.
    """

    message: str
    field: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self._where(), self.field, self.message) if part)

    def _where(self) -> str:
        column = None if self.field else self.column
        return ":".join(str(part) for part in (self.file, self.line, column) if part is not None)


class RayschedError(Exception):
    """The base of all. `exit_code` is what the command line exits with, `code` its name in JSON."""

    exit_code = 70

    @property
    def code(self) -> str:
        """The error's stable name in JSON answers, such as `not_found`."""
        name = type(self).__name__
        return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class SpecError(RayschedError):
    """A job file is wrong. The message holds one line a problem, each with file, line and field.

    `problems` are the same, one by one; empty where the error came over HTTP.
    """

    exit_code = 65

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class ConfigError(RayschedError):
    """The configuration is wrong, in the same words and with the same `problems` as a job file."""

    exit_code = 78

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class FileMissing(RayschedError):
    """A file that was named does not exist or can't be read."""

    exit_code = 66


class Refused(RayschedError):
    """A request that no node could grant, even with nothing else running."""

    exit_code = 80


class NotFound(RayschedError):
    """No such job."""

    exit_code = 81


class Conflict(RayschedError):
    """The command is not possible in the state that the job is in."""

    exit_code = 82


class AlreadyUp(RayschedError):
    """raysched is up already."""

    exit_code = 83


class PortBusy(RayschedError):
    """Another program listens on the gateway's port."""

    exit_code = 84


class Unreachable(RayschedError):
    """No gateway answers: raysched is not up, or its cluster is dead."""

    exit_code = 69


class Unauthorized(RayschedError):
    """The token is missing or wrong."""

    exit_code = 77


class StorageError(RayschedError):
    """The journal or a package could not be written, for example because the disk is full."""

    exit_code = 74


class LeaseLost(RayschedError):
    """A lease ended while somebody still counted on it."""

    exit_code = 75


def by_code(code: str, message: str) -> RayschedError:
    """The error named `code` in a JSON answer, to be raised again on the client's side."""
    for kind in RayschedError.__subclasses__():
        error = kind(message)
        if error.code == code:
            return error
    return RayschedError(message)
