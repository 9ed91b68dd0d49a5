"""The grid of `raysched mig`, and the steps of `mig set`, as they are printed."""

from __future__ import annotations

import pytest

from raysched.cli.mig_grid import mig_lines, step_lines
from raysched.core import layouts
from raysched.core.gpu_views import Usage, gpus_view, layout_view
from raysched.core.mig import Layout
from tests.core.world import World, changed, instances, mig, mig_node, node


@pytest.fixture
def world() -> World:
    cut = Layout(True, instances((9, 4), (19, 0), (19, 1)))
    world = World(changed(mig_node("node-a"), layout=cut), mig_node("node-b", model="A30", memory=24_576))
    world.submit("train", mig("3g.40gb"))
    world.run("train")
    return world


def test_the_slices_stand_in_a_row_with_what_is_on_them(world: World) -> None:
    lines = mig_lines(gpus_view(world.state, Usage(), world.now), 80)
    shown = [line.plain.rstrip() for line in lines]
    assert shown[:6] == [
        "node-a/0  GPU-node-a-0  A100-80GB  MIG mode on",
        "        0        1        2        3        4        5        6        7",
        "    [1g.10gb][1g.10gb]    .        .    [             3g.40gb              ]",
        "    1g.10gb at 0, 9.5 GiB  free",
        "    1g.10gb at 1, 9.5 GiB  free",
        "    3g.40gb at 4-7, 39.2 GiB  train",
    ]
    assert "node-b/0  GPU-node-b-0  A30  MIG mode off" in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(world: World, width: int) -> None:
    answer = gpus_view(world.state, Usage(), world.now)
    gpu = layouts.find_gpu(world.state, "node-b/0")
    view = layout_view(gpu, layouts.steps(gpu, ["2g.12gb", "1g.6gb"]), None)
    lines = [*mig_lines(answer, width), *step_lines(view, width, plan=True)]
    assert max(line.cell_len for line in lines) <= width


def test_the_steps_are_told_before_and_after(world: World) -> None:
    gpu = layouts.find_gpu(world.state, "node-b/0")
    view = layout_view(gpu, layouts.steps(gpu, ["2g.12gb", "1g.6gb"]), None)
    would = [line.plain for line in step_lines(view, None, plan=True)]
    assert would == [
        "node-b/0 GPU-node-b-0 (A30): would",
        "  turn the MIG mode on",
        "  create 2g.12gb at 0-1, 11.7 GiB",
        "  create 1g.6gb at 2, 5.8 GiB",
    ]
    assert step_lines(view, None, plan=False)[0].plain.endswith("done")


def test_without_such_a_gpu_it_says_so() -> None:
    view = gpus_view(World(node("a", 1)).state, Usage(), 0)
    for each in view["nodes"]:
        each["gpus"] = []
    assert [line.plain for line in mig_lines(view, 80)] == ["no GPU here can be cut by MIG"]
