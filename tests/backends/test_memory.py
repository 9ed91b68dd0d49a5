"""The backend without processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from raysched.backends.base import EngineRefused
from raysched.core.work import Run
from raysched.testing import MemoryBackend, VirtualRun
from raysched.testing.conformance import LASTS, BackendConformance, Hands, new_launch


class TestMemory(BackendConformance):
    @pytest.fixture
    def make(self) -> Callable[[], MemoryBackend]:
        engine: dict[Run, VirtualRun] = {}
        return lambda: MemoryBackend(runs=engine)

    def test_a_run_ends_as_the_test_says(self, hands: Hands) -> None:
        backend = hands.backend
        assert isinstance(backend, MemoryBackend)
        done, lost = hands.start(LASTS), hands.start(LASTS)
        backend.write(done, b"accuracy 0.9\n")
        backend.finish(done, 3)
        backend.lose(lost, "the machine burnt down")
        assert hands.until(done, "exited").code == 3
        assert hands.output(done) == b"accuracy 0.9\n"
        assert hands.until(lost, "lost").reason == "the machine burnt down"


def test_a_refusal_lasts_until_it_is_taken_back() -> None:
    clock = iter(range(1000, 2000, 100))
    backend = MemoryBackend(clock=lambda: next(clock))
    backend.refuse("the quota is full", final=True)
    launch = new_launch(LASTS)
    with pytest.raises(EngineRefused, match="quota") as refused:
        asyncio.run(backend.start(launch))
    assert refused.value.final
    backend.refuse(None)
    asyncio.run(backend.start(launch))
    (seen,) = asyncio.run(backend.observe())
    assert (seen.state, seen.started) == ("running", 1000)
