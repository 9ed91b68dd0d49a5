"""Which runs were let go, on this machine: were all of a run's objects deleted, its namespace with them,
nothing else would keep it from being started again.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from raysched.backends.kube.records import end_text, read_end
from raysched.core.work import Run, Seen

END = ".sent"


class Sent:
    """A file a run in `folder`, empty until the run is seen to be gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.runs: dict[Run, Seen | None] = {}
        for path in folder.glob(f"*{END}"):
            with suppress(ValueError):
                run = Run.parse(path.name.removesuffix(END))
                self.runs[run] = _read(run, path)

    def add(self, run: Run) -> None:
        """A run is about to be let go."""
        if run not in self.runs:
            self._write(run, "")
            self.runs[run] = None

    def lose(self, lost: Seen) -> None:
        """A run is gone with all that the cluster knew of it."""
        self._write(lost.run, end_text(lost))
        self.runs[lost.run] = lost

    def delete(self, run: Run) -> None:
        """Forget a run."""
        self.runs.pop(run, None)
        (self._folder / f"{run}{END}").unlink(missing_ok=True)

    def _write(self, run: Run, text: str) -> None:
        new = self._folder / f".{run}{END}"
        new.write_text(text, encoding="utf-8")
        new.rename(self._folder / f"{run}{END}")


def _read(run: Run, path: Path) -> Seen | None:
    text = path.read_text(encoding="utf-8")
    with suppress(ValueError, TypeError, KeyError):
        return read_end(run, text) if text else None
    return None
