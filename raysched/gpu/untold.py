"""The use that leases made and that was not written down yet, kept on disk for whoever measures next.

A node agent can be killed at any moment. What it kept may have reached the ledger meanwhile: told again, it
is known there by when it ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raysched.core.measured import Stretch


@dataclass(frozen=True, slots=True)
class Untold:
    """The use on the node called `node`, in the state folder `folder` of a system; without one nothing is
    kept."""

    folder: Path | None
    node: str

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / "use" / f"{self.node}.json"

    def keep(self, stretches: Sequence[Stretch]) -> None:
        """Keep these and nothing else. A full disk keeps nothing: they are only not safe then."""
        if self._path is None:
            return
        part = self._path.with_suffix(".part")
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_text(json.dumps([asdict(stretch) for stretch in stretches]), encoding="utf-8")
            os.replace(part, self._path)

    def kept(self) -> tuple[Stretch, ...]:
        """What was kept last; nothing where that can't be read."""
        with suppress(OSError, ValueError, TypeError):
            if self._path is not None:
                return tuple(Stretch(**each) for each in json.loads(self._path.read_text(encoding="utf-8")))
        return ()
