"""What the commands show, from answers of the API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import samples
from rich.text import Text

from raysched.cli import checks, gpu_map, job_detail, job_list, top, usage_lines

LONG = "a-name-of-sixty-characters-that-goes-on-and-on-until-it-ends"
MIXED = [
    samples.job(),
    *samples.array(["succeeded", "failed", "running", "stopping"]),
    samples.waiting_job(
        id="aa11bb22cc", group="aa11bb22cc", display=LONG, name=LONG, reason="image not found"
    ),
]
VIEWS: list[Callable[[int | None], list[Text]]] = [
    lambda width: gpu_map.gpu_map(samples.gpus(), width),
    lambda width: gpu_map.gpu_map(
        {"nodes": [{**samples.gpus()["nodes"][0], "gpus": [samples.cut_gpu()]}]}, width
    ),
    lambda width: top.top_lines(samples.busy_gpus(), width),
    lambda width: usage_lines.usage_lines(samples.usage(), width),
    lambda width: usage_lines.usage_lines(samples.usage("job"), width),
    lambda width: usage_lines.advice_lines(samples.advice(), width),
    lambda width: usage_lines.advice_lines({**samples.advice(), "advice": []}, width),
    lambda width: job_list.queue_table([samples.waiting(), samples.waiting(display=LONG)], width),
    lambda width: job_list.system_summary(samples.status(), "http://127.0.0.1:8274", MIXED, width),
    lambda width: job_list.overview(MIXED, width),
    lambda width: job_list.job_table(MIXED, width),
    lambda width: job_detail.jobs_detail(MIXED[:1], width),
    lambda width: job_detail.jobs_detail(MIXED[1:5], width),
    lambda width: job_detail.explanation(samples.explanation(), width),
    lambda width: job_detail.plan_lines([samples.plan()], width, with_env=True),
]


def _plain(lines: Sequence[Text]) -> list[str]:
    return [line.plain for line in lines]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", [40, 80, 120])
def test_every_view_stands_at_any_width(view: Callable[[int | None], list[Text]], width: int) -> None:
    """Case ui-01: no line is longer than the terminal, and nothing ends in an ellipsis."""
    lines = view(width)
    assert all(line.cell_len <= width for line in lines)
    assert not any("…" in line.plain or "..." in line.plain for line in lines)


def test_the_map_of_gpus() -> None:
    assert _plain(gpu_map.gpu_map(samples.gpus(), 80)) == [
        "node-a   2 x A100-80GB   driver 570.86 (CUDA 12.8)   ray, vm   8 of 32 CPUs",
        "    12.0 of 251.0 GiB",
        " 0  GPU-3f2a8c1d  shared     ███████████████░░░░░    75 %    59.7 of 79.6 GiB",
        "        25 %  hpo[0]  ana  ray  12m  18.2 of 19.9 GiB used",
        "        50 %  embed   bo   vm   3h   12.4 of 39.8 GiB used",
        " 1  GPU-9b1c77e0  free       ░░░░░░░░░░░░░░░░░░░░     0 %     0.0 of 79.6 GiB",
    ]


def test_in_a_pipe_the_map_has_whole_uuids() -> None:
    """Case ui-01."""
    text = "\n".join(_plain(gpu_map.gpu_map(samples.gpus(), None)))
    assert all(uuid in text for uuid in samples.UUIDS)


def test_uuids_that_begin_alike_are_told_apart() -> None:
    assert gpu_map.shortened(["GPU-12345678-a", "GPU-12345678-b"]) == {
        "GPU-12345678-a": "GPU-12345678-a",
        "GPU-12345678-b": "GPU-12345678-b",
    }


def test_the_map_of_a_gpu_that_is_cut() -> None:
    answer = samples.gpus()
    answer["nodes"][0]["gpus"] = [samples.cut_gpu()]
    assert _plain(gpu_map.gpu_map(answer, 80))[2:] == [
        " 0  GPU-3f2a8c1d  mig        █████████░░░░░░░░░░░  42.8 %    39.2 of 79.6 GiB",
        "          0  1g.10gb  free                                 9.5 GiB",
        "        2-3  2g.20gb  used without a lease                 19.5 GiB",
        "        4-7  3g.40gb  hpo[0]                ana  ray  12m  39.2 GiB",
        "      room for 2 x 1g.10gb or 1 x 2g.20gb",
        "      2.0 GiB used by processes without a lease",
    ]


def test_in_a_pipe_the_map_has_the_uuids_of_instances_too() -> None:
    answer = samples.gpus()
    gpu = samples.cut_gpu()
    answer["nodes"][0]["gpus"] = [gpu]
    lines = "\n".join(_plain(gpu_map.gpu_map(answer, None)))
    assert all(there["uuid"] in lines for there in gpu["mig"]["instances"])


def test_an_instance_that_does_not_exist_yet_is_to_be_made() -> None:
    answer = samples.gpus()
    gpu = samples.cut_gpu()
    gpu["mig"]["instances"] = [samples.instance(uuid=None)]
    answer["nodes"][0]["gpus"] = [gpu]
    assert "4-7  3g.40gb  hpo[0], to be made  ana" in "\n".join(_plain(gpu_map.gpu_map(answer, 80)))


def test_the_map_tells_of_faults_turns_and_nodes_that_are_cordoned() -> None:
    answer = samples.gpus()
    node = answer["nodes"][0]
    node["cordoned"] = True
    node["gpus"][0]["sharing"] = "time_slice"
    node["gpus"][1] |= {"fault": "XID 79"}
    text = "\n".join(_plain(gpu_map.gpu_map(answer, 80)))
    assert "node-a   cordoned" in text
    assert "time-sliced: 2 of 4 turns taken" in text
    assert "under MPS" not in text
    node["gpus"][0]["sharing"] = "mps"
    assert "under MPS" in "\n".join(_plain(gpu_map.gpu_map(answer, 80)))
    assert "GPU-9b1c77e0  faulty" in text
    assert "not used: XID 79" in text


def test_what_others_use_of_a_gpu_is_shown() -> None:
    answer = samples.gpus()
    answer["nodes"][0]["gpus"][1] |= {"outside": True, "foreign_mib": 2_048}
    text = "\n".join(_plain(gpu_map.gpu_map(answer, 80)))
    assert "outside" in text
    assert "held in Ray by somebody who did not ask raysched" in text
    assert "2.0 GiB used by processes without a lease" in text


def test_top_has_what_is_used_beside_what_is_had() -> None:
    lines = _plain(top.top_lines(samples.busy_gpus(), 80))
    assert lines[:4] == [
        "2 GPUs  granted 37.5 %  busy 73 %  memory 30.3 of 79.6 GiB",
        "GPU, job          has  busy  1 min       memory used  remark",
        " 0 GPU-3f2a8c1d  75 %  73 %   61 %  30.3 of 79.6 GiB  shared, 312 W, 61 °C",
        "   hpo[0]        25 %  31 %   28 %  20.5 of 19.9 GiB  over its memory, ends at",
    ]
    assert lines[7:] == [
        "   pid 4711                                  2.0 GiB  python3: no lease",
        "   pid 12                                          ?  python3: not on this GPU:",
        "                                                      0b1c2d3e4f.1",
        " 1 GPU-9b1c77e0   0 %     -      -     - of 79.6 GiB  free",
    ]


def test_top_on_a_wide_terminal_has_users_too_and_a_line_each() -> None:
    lines = _plain(top.top_lines(samples.busy_gpus(), 200))
    assert len(lines) == 8
    assert lines[3].startswith("   hpo[0]        25 %  31 %   28 %  20.5 of 19.9 GiB  ana   over its memory")
    assert lines[3].endswith("unless it uses less")


def test_top_names_the_nodes_where_there_are_several() -> None:
    answer = samples.busy_gpus()
    answer["nodes"].append({**samples.gpus()["nodes"][0], "name": "node-b", "alive": False, "gpus": []})
    lines = _plain(top.top_lines(answer, 80))
    assert lines[2] == "node-a"
    assert lines[-1].split() == ["node-b", "lost"]


def test_usage() -> None:
    assert _plain(usage_lines.usage_lines(samples.usage(), 80)) == [
        "queue       jobs  leases  GPU-hours  used    busy  memory  peak memory",
        "nlp/search    12      14      1,234   402  33.5 %    61 %  18.2 GiB",
        "vision         1       1     0.0123     -       -       -  -",
        "- was not measured: the GPU does not tell, or none was used for long enough",
    ]
    assert _plain(usage_lines.usage_lines(samples.usage("job"), 200))[1].split()[:3] == [
        "nlp/search",
        "77aa01b2c3",
        "12",
    ]


def test_advice() -> None:
    assert _plain(usage_lines.advice_lines(samples.advice(), 80)) == [
        "job    user  leases    has    busy      peak memory  could ask for      frees",
        "embed  ana       31  100 %  12.5 %  9.1 of 80.0 GiB  gpu_fraction: 0.2  80 %",
        "serve  bo         1   25 %  12.5 %  9.1 of 20.0 GiB  gpu_memory: 12GiB  10 %",
        "2 jobs would free 97.40 of 124 GPU-hours",
    ]


def test_memory_that_nobody_measured_is_not_made_up() -> None:
    answer = samples.gpus()
    answer["nodes"][0]["gpus"][0]["tenants"] = [samples.tenant(memory_used_mib=None)]
    assert "19.9 GiB used" not in "\n".join(_plain(gpu_map.gpu_map(answer, 80)))


def test_simulated_and_lost_nodes_say_so() -> None:
    answer = samples.gpus()
    answer["nodes"][0] |= {"simulated": True, "alive": False}
    assert _plain(gpu_map.gpu_map(answer, None))[0].startswith("node-a   lost   2 x A100-80GB   simulated")


def test_an_empty_share_has_an_empty_bar_and_the_smallest_one_shows() -> None:
    assert [gpu_map.bar(share).plain.count("█") for share in (0, 1, 500, 9_999, 10_000)] == [0, 1, 1, 20, 20]


def test_the_queue() -> None:
    assert _plain(job_list.queue_table([samples.waiting()], 80)) == [
        "#  job       id          asks for  waits  why",
        "1  train-xl  0b1c2d3e4f  2 GPUs      14m  1 of 2 whole GPUs free; GPU-3f2a8c1d",
        "                                          is shared until hpo[0] and embed end",
    ]
    assert _plain(job_list.queue_table([], 80)) == ["nothing waits"]


def test_in_a_pipe_each_job_is_one_line_with_its_id() -> None:
    """Case ui-01."""
    lines = _plain(job_list.overview(MIXED, None))
    assert [line.split()[0] for line in lines[1:]] == [job["id"] for job in MIXED]
    assert LONG in lines[-1]


def test_on_a_terminal_an_array_is_one_line() -> None:
    lines = _plain(job_list.overview(samples.array(["running"] * 3 + ["waiting"]), 80))
    assert lines[1].split()[:5] == ["77aa01b2c3", "hpo", "(4", "jobs)", "mixed"]
    assert lines[1].endswith("1 waiting, 3 running")


def test_a_terminal_shows_the_last_ended_jobs_and_says_what_it_leaves_out() -> None:
    ended = [samples.job(id=f"{n:010}", group=f"{n:010}", state="succeeded") for n in range(15)]
    lines = _plain(job_list.overview(ended, 80))
    assert [line.split()[0] for line in lines[1:-1]] == [job["id"] for job in ended[5:]]
    assert lines[-1] == "5 more that ended earlier: raysched status --all"


def test_a_job_in_full() -> None:
    lines = _plain(
        job_detail.jobs_detail([samples.job(state="failed", exit_code=3, reason="exit code 3")], 80)
    )
    assert lines[0] == "embed  5d0c4be1f2  failed"
    text = "\n".join(lines)
    assert "exit code  3" in text
    assert "isolation  soft, by variables" in text
    assert "node-a: GPU 0 GPU-3f2a8c1d A100-80GB, 25 %, 19.9 GiB; 4 CPUs" in text


def test_an_explanation_has_the_smallest_change() -> None:
    lines = _plain(job_detail.explanation(samples.explanation(), 120))
    assert lines[-1] == "  smallest change  gpus: 1 would start now"


def test_an_explanation_of_a_job_that_runs_is_short() -> None:
    answer = samples.explanation(
        state="running", why="runs on node-a", short_of=None, nearest=None, change=None
    )
    assert _plain(job_detail.explanation(answer, 80)) == [
        "train-xl  0b1c2d3e4f  running",
        "  why  runs on node-a",
    ]


def test_a_plan_says_that_soft_is_soft() -> None:
    """Case sharing-02: a soft lease is never shown as enforced."""
    assert "soft, by variables" in "\n".join(
        _plain(job_detail.plan_lines([samples.plan()], 80, with_env=False))
    )


def test_a_plan_shows_the_environment_on_demand() -> None:
    assert "  RAYSCHED_GPU_FRACTION=0.25" in _plain(
        job_detail.plan_lines([samples.plan()], None, with_env=True)
    )


def test_a_plan_shows_what_would_be_sent_on_demand() -> None:
    """Nothing in it can change the terminal; where nothing is sent, that is said."""
    assert _plain(job_detail.script_lines([samples.plan()]))[-1] == "nothing would be sent to a site"
    sent = samples.plan(backend="slurm", script="sbatch \\\n    --job-name=rs-a \x1b[1m\n")
    assert _plain(job_detail.script_lines([sent]))[1:] == [
        "what would be sent to slurm for embed",
        "sbatch \\",
        "    --job-name=rs-a \\x1b[1m",
    ]


def test_an_array_is_submitted_as_one() -> None:
    jobs = [samples.job(), *samples.array(["waiting"] * 8)]
    assert job_detail.submitted(jobs) == [
        "submitted embed as 5d0c4be1f2",
        "submitted hpo as 77aa01b2c3 (8 jobs)",
    ]


def test_a_name_can_not_colour_the_terminal() -> None:
    hostile: dict[str, Any] = samples.waiting(display="a\x1b[31mred", why="two\nlines\r")
    assert not any("\x1b" in line or "\r" in line for line in _plain(job_list.queue_table([hostile], None)))


class Bad:
    """A check that failed."""

    name = "port"
    ok = False
    detail = "8274 is taken"
    hint = "set gateway.port in raysched.yaml"


def test_a_bad_check_says_what_to_do() -> None:
    assert _plain(checks.check_lines([Bad()], 80)) == [
        "bad port  8274 is taken",
        "    -> set gateway.port in raysched.yaml",
    ]


def test_a_job_that_its_site_lets_wait_shows_why() -> None:
    """It has a lease, and no place yet."""
    lease = {**samples.job()["lease"], "places": []}
    why = "waits in Slurm: nodes are busy"
    lines = job_list.job_table([samples.job(state="starting", reason=why, lease=lease)], None)
    assert lines[1].plain.endswith(why)
