"""CUDA_VISIBLE_DEVICES read as CUDA and Ray read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysched.gpu.visible import visible

GPUS = ["GPU-aa11", "GPU-aa22", "GPU-bb33"]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [(0, "GPU-aa11"), (1, "GPU-aa22"), (2, "GPU-bb33")]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,0", [(0, "GPU-bb33"), (1, "GPU-aa11")]),
        (" 1 , 2 ", [(0, "GPU-aa22"), (1, "GPU-bb33")]),
        ("GPU-bb,gpu-AA22", [(0, "GPU-bb33"), (1, "GPU-aa22")]),
        ("GPU-aa", []),
        ("0,9,1", [(0, "GPU-aa11")]),
        ("0,-1,1", [(0, "GPU-aa11")]),
        ("0,0,1", [(0, "GPU-aa11"), (2, "GPU-aa22")]),
        ("MIG-1234,1", [(1, "GPU-aa22")]),
        ("²", []),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(variable: str | None, expected: list[tuple[int, str]]) -> None:
    assert list(visible(GPUS, variable)) == expected


def test_a_gpu_that_cannot_be_read_keeps_its_place() -> None:
    assert list(visible([None, "GPU-aa22"], None)) == [(1, "GPU-aa22")]


@given(st.text("0123456789,-GPUaMIGb ", max_size=30))
def test_never_a_gpu_that_is_not_there_and_none_twice(variable: str) -> None:
    found = [uuid for _, uuid in visible(GPUS, variable)]
    assert set(found) <= set(GPUS)
    assert len(found) == len(set(found))
