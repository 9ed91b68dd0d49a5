"""What comes from the kubelet as output and is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from raysched.backends.kube.output import Output
from raysched.core.work import Run

RUN = Run("job", 1, 0)
STATUS = {"containerStatuses": [{"containerID": "containerd://9aa20a66", "state": {"terminated": {}}}]}
METADATA = {"name": "p", "namespace": "team-a", "uid": "u-1", "labels": {}}
POD = {"metadata": METADATA, "status": STATUS}
GONE = [
    b"unable to retrieve container logs for containerd://9aa20a66",
    b'failed to try resolving symlinks in path "/var/log/pods/team-a_p_u-1/main/0.log": lstat: none\n',
]


class Kubelet:
    """Answers each question for output with the next of these, as a real one did whose container was gone."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)

    async def stream(self, path: str, query: dict[str, str], silent: float | None) -> AsyncIterator[bytes]:
        yield self._answers.pop(0)


def brought(folder: Path, *answers: bytes) -> bytes:
    """The output of a run whose end was asked for so often."""

    async def bring() -> bytes:
        cluster: Any = Kubelet(*answers)
        output = Output(folder, cluster)
        for _ in answers:
            await output.finish(RUN, [POD])
        return output.read(RUN, 0, 1000)

    return asyncio.run(bring())


@pytest.mark.parametrize("gone", GONE)
def test_words_about_a_container_that_is_gone_are_no_output(tmp_path: Path, gone: bytes) -> None:
    """Neither in place of the output nor as the rest of it."""
    assert brought(tmp_path / "rest", b"begun\n", gone) == b"begun\n"
    assert brought(tmp_path / "all", gone) == b""


def test_output_that_goes_on_is_brought_along_from_where_it_was(tmp_path: Path) -> None:
    """Also where a job writes what a kubelet says of another container."""
    said = b"unable to retrieve container logs for containerd://other\n"
    assert brought(tmp_path, said, said + b"more\n") == said + b"more\n"
