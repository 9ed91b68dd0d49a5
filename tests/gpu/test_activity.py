"""How busy GPUs, processes and MIG instances are, through the real pynvml on a fake library."""

from __future__ import annotations

from typing import Any

import pytest
from fake_nvml import fake_state

H100 = "GPU-9b1c0001-aaaa-bbbb-cccc-000000000001"
A100 = "GPU-3f2a0001-aaaa-bbbb-cccc-000000000001"
PLAIN = [fake_state.DRIVER, *fake_state.gpu(0, A100, "A100-80GB", used=4000)]
CUT = [fake_state.DRIVER, *fake_state.gpu(0, H100, "H100-80GB", mig=1)]
THREE, ONE = [9, 0], [19, 4]


def of(answer: dict[str, Any], gpu: str) -> dict[str, Any]:
    return answer["uses"][gpu]


def by_pid(answer: dict[str, Any], gpu: str) -> dict[int, int | None]:
    return {process["pid"]: process["busy"] for process in of(answer, gpu)["processes"]}


def test_tells_how_busy_a_gpu_is_and_who_keeps_it_so(script: Any) -> None:
    uses = ["process 0 100 2000 compute", "process 0 200 1000 mps", "process 0 300 50 compute"]
    state = [*PLAIN, *uses, "busy 0 80", "active 0 100 50", "active 0 200 25", "watts 0 312", "celsius 0 61"]
    (first, second) = script(tuple(state), "look", "look")
    for answer in (first, second):
        use = of(answer, A100)
        assert (use["busy"], use["power"], use["temperature"]) == (8000, 312, 61)
        assert by_pid(answer, A100) == {100: 5000, 200: 2500, 300: 0}


def test_where_nobody_does_anything_all_are_idle(script: Any) -> None:
    (answer,) = script((*PLAIN, "process 0 100 2000 compute", "busy 0 0"), "look")
    assert of(answer, A100)["busy"] == 0
    assert by_pid(answer, A100) == {100: 0}


def test_what_a_gpu_does_not_tell_is_not_made_up(script: Any) -> None:
    (answer,) = script((*PLAIN, "process 0 100 2000 compute"), "look")
    use = of(answer, A100)
    assert (use["busy"], use["power"], use["temperature"], use["memory_mib"]) == (None, None, None, 4000)
    assert by_pid(answer, A100) == {100: None}


def test_who_only_draws_is_told_from_who_computes(script: Any) -> None:
    uses = ["process 0 1 90 graphics", "process 0 2 500 graphics", "process 0 2 500 compute"]
    (answer,) = script((*PLAIN, *uses), "look")
    assert {each["pid"]: each["graphics"] for each in of(answer, A100)["processes"]} == {1: True, 2: False}


def test_a_mig_instance_is_busy_in_parts_of_the_whole_gpu(script: Any) -> None:
    """From the second look on: what is told happened between two."""
    lines = (*CUT, "gpm 0 1 70", "gpm 0 2 35")
    (_, first, second) = script(lines, [H100, True, [], [THREE, ONE]], "look", "look")
    there = {each["cut"]["profile"]: each["uuid"] for each in first["gpus"][0]["layout"]["instances"]}
    assert of(second, H100)["instances"] == {there[9]: 3000, there[19]: 500}
    assert of(second, H100)["busy"] == 3500


def test_a_new_instance_has_no_past(script: Any) -> None:
    lines = (*CUT, "gpm 0 1 70")
    steps = [[H100, True, [], [THREE]], "look", "look", [H100, True, [THREE], []], [H100, True, [], [THREE]]]
    *_, again = script(lines, *steps)
    assert of(again, H100)["instances"] == {}
    assert of(again, H100)["busy"] is None


def test_an_a100_in_mig_mode_can_not_tell(script: Any) -> None:
    lines = (fake_state.DRIVER, *fake_state.gpu(0, A100, "A100-80GB", mig=1), "watts 0 99")
    *_, answer = script(lines, [A100, True, [], [THREE]], "look")
    assert (of(answer, A100)["busy"], of(answer, A100)["instances"]) == (None, {})
    assert of(answer, A100)["power"] == 99


@pytest.mark.parametrize("line", ["watts 0 5", "busy 0 5", "gpm 0 1 5"])
def test_a_gpu_that_is_lost_hides_nothing_of_the_others(script: Any, line: str) -> None:
    other = fake_state.gpu(1, "GPU-other-0002", "A100-80GB", used=7)
    (answer,) = script((*PLAIN, *other, line, "lost 0"), "look")
    assert of(answer, "GPU-other-0002")["memory_mib"] == 7
