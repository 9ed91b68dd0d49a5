"""What Slurm's answers mean, whichever version gave them. Those of 22.05.8 and 24.11.5 are recorded, and
(`tests/slurm_answers.py`) what 24.11.5 and 26.05.5 print in the formats of other versions; of all but the
first what nobody reads is left out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysched.backends.slurm import mirror, reasons, records
from raysched.backends.slurm.records import Gres, Job, gres, hostlist, task_numbers
from raysched.backends.slurm.script import ranges
from raysched.backends.slurm.waiting import waits
from raysched.core.request import WHOLE

ANSWERS = Path(__file__).parent / "answers"
VERSIONS = ("22.05", "24.11")
LIKE_MADE = ("23.11", "24.05", "25.05", "25.11", "26.05")
"""Those whose answers are of the jobs and nodes that `tests/slurm_answers.py` makes."""


def answer(what: str, version: str) -> Any:
    return json.loads((ANSWERS / f"{what}-{version}.json").read_text())


def jobs(version: str) -> dict[str, Job]:
    return {job.id: job for job in records.jobs(answer("jobs", version))}


@pytest.mark.parametrize(
    ("version", "whole", "task", "index", "waiting"),
    [("22.05", "1", "2_0", 1, "2_2-9%2"), ("24.11", "69", "70_0", 0, "70_1-9%1")],
)
def test_jobs_are_read(version: str, whole: str, task: str, index: int, waiting: str) -> None:
    """States, reasons, arrays, and the GPUs that each has."""
    found = jobs(version)
    one = found[whole]
    assert (one.states, one.comment, one.nodes) == ({"RUNNING"}, 'raysched "é', ("n1",))
    assert one.gres == ((Gres("gpu", "a100", 1, (0,)),),)
    assert (one.cpus, one.memory) == (1, 100)
    assert found[task].gres == ((Gres("shard", "a100", 3, (index,)),),)
    array = found[waiting]
    assert array.pending
    assert array.is_waiting_array
    assert array.waiting == set(range(int(waiting.partition("_")[2][0]), 10))
    assert array.reason == "JobArrayTaskLimit"


def test_one_that_is_ending_is_not_over() -> None:
    """24.11 tells both in a list."""
    ending = jobs("24.11")["72"]
    assert ending.states >= {"CANCELLED", "COMPLETING"}
    assert not ending.over


@pytest.mark.parametrize("version", VERSIONS)
def test_nodes_are_read(version: str) -> None:
    """Devices, what is in use of them, and why nothing starts."""
    found = {node.name: node for node in records.nodes(answer("nodes", version))}
    infos = {name: mirror.node_info(node, name, {"A100": 81920}) for name, node in found.items()}
    assert [(gpu.model, gpu.parts, gpu.memory, gpu.mechanisms) for gpu in infos["n1"].gpus] == [
        ("a100", 4, 81920, ("mps",))
    ] * 2
    assert [gpu.model for gpu in infos["n3"].gpus] == ["1g.10gb"] * 7 + ["3g.40gb"] * 2
    assert infos["n3"].gpus[8].memory == 40 * 10**9 // 2**20
    assert (infos["n1"].cpus, infos["n1"].memory, infos["n1"].closed) == (16 * WHOLE, 64000, "")
    used = {"22.05": [0], "24.11": [0, 1]}[version]
    assert set(mirror.used_by_others(found["n1"], set())) == {mirror.uuid_of("n1", index) for index in used}
    assert mirror.used_by_others(found["n1"], set(used)) == ()


@pytest.mark.parametrize("version", LIKE_MADE)
def test_each_version_tells_the_same(version: str) -> None:
    """Jobs of every kind and the nodes they are on, in the format of that version."""
    told = {(job.name, job.task): job for job in records.jobs(answer("jobs", version))}
    whole, waiting = told["whole", None], told["part", None]
    assert (whole.states, whole.comment, whole.nodes) == ({"RUNNING"}, "raysched é", ("n1",))
    assert (whole.gres, whole.cpus, whole.memory) == (((Gres("gpu", "a100", 1, (0,)),),), 1, 100)
    assert whole.started > 0
    assert [told["part", task].gres for task in (0, 1)] == [
        ((Gres("shard", "a100", 3, (index,)),),) for index in (0, 1)
    ]
    assert waiting.pending
    assert (waiting.waiting, waiting.reason) == (set(range(2, 10)), "JobArrayTaskLimit")
    assert told["slice", None].gres == ((Gres("gpu", "3g.40gb", 1, (7,)),),)
    assert (told["two", None].nodes, told["two", None].memory) == (("n1", "n2"), 1024)
    assert (told["later", None].pending, told["later", None].reason) == (True, "BeginTime")
    assert (told["failed", None].over, told["failed", None].states) == (True, {"FAILED"})
    assert (told["cancelled", None].over, told["cancelled", None].states) == (True, {"CANCELLED"})
    found = {node.name: node for node in records.nodes(answer("nodes", version))}
    used = {name: [each for each in node.used if each.indices] for name, node in found.items()}
    assert used == {
        "n1": [Gres("gpu", "a100", 1, (0,))],
        "n2": [Gres("shard", "a100", 6, (0, 1))],
        "n3": [Gres("gpu", "3g.40gb", 1, (7,))],
    }
    infos = {name: mirror.node_info(node, name, {}) for name, node in found.items()}
    assert {name: info.closed for name, info in infos.items()} == {
        "n1": "",
        "n2": "",
        "n3": "drained: fans broken",
    }


def test_nodes_that_start_nothing_say_why() -> None:
    """With the administrator's words."""
    closed = {
        node.name: mirror.node_info(node, "x", {}).closed for node in records.nodes(answer("nodes", "24.11"))
    }
    assert closed == {"n1": "", "n2": "drained: fans broken", "n3": "down: Not responding"}


def test_a_job_on_two_nodes_has_a_place_on_each() -> None:
    """In the order in which Slurm tells them."""
    nodes = {
        node.name: mirror.node_info(node, node.name, {}) for node in records.nodes(answer("nodes", "24.11"))
    }
    first, second = mirror.places(jobs("24.11")["73"], nodes)
    assert (first.node, second.node) == ("n1", "n2")
    assert second.slices[0].gpu == mirror.uuid_of("n2", 1)
    assert (first.cpus, first.memory) == (WHOLE, 1024)


def test_an_array_as_squeue_prints_it() -> None:
    """Case slurm-03: one line may be many tasks, and raw ids are no task numbers."""
    lines = [
        ("71_[5,7-10%3]", 71, "PENDING"),
        ("71_1", 72, "COMPLETED"),
        ("71_2", 73, "RUNNING"),
        ("71_3", 74, "RUNNING"),
        ("71_4", 75, "CANCELLED"),
        ("71_6", 76, ["COMPLETED", "COMPLETING"]),
    ]
    found: dict[int, Job] = {}
    for shown, raw, state in lines:
        text = shown.partition("_")[2]
        record: dict[str, Any] = {"job_id": raw, "array_job_id": 71, "job_state": state, "name": "sweep"}
        task = {"array_task_id": int(text)} if text.isdigit() else {"array_task_string": text}
        (job,) = records.jobs({"jobs": [{**record, **task}]})
        for number in [job.task] if job.task is not None else sorted(job.waiting or ()):
            assert number is not None
            found[number] = job
    assert sorted(found) == list(range(1, 11))
    assert [number for number, job in found.items() if job.pending] == [5, 7, 8, 9, 10]
    assert [number for number, job in sorted(found.items()) if job.over] == [1, 4]
    assert found[6].id == "71_6"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu:2", [Gres("gpu", "", 2)]),
        ("gpu:4090:2(S:0-1)", [Gres("gpu", "4090", 2)]),
        ("gpu:nvidia_h100_nvl_1g.12gb:7,gpu:a100-sxm:1(IDX:0,2-3)", [
            Gres("gpu", "nvidia_h100_nvl_1g.12gb", 7),
            Gres("gpu", "a100-sxm", 1, (0, 2, 3)),
        ]),
        ("shard:a100:6(0/4,2/4,4/4)", [Gres("shard", "a100", 6, (1, 2))]),
        ("gpu:a100:0(IDX:N/A)", [Gres("gpu", "a100", 0)]),
        ("", []),
        ("(null)", []),
    ],
)  # fmt: skip
def test_generic_resources_are_read(text: str, found: list[Gres]) -> None:
    """Types may have digits, dots and dashes in them."""
    assert list(gres(text)) == found


def test_numbers_that_slurm_cut_short_are_unknown() -> None:
    """Nobody is taken for lost because of it."""
    assert task_numbers("1,3,5,7,9,...") is None
    assert task_numbers("0-10:5%2") == {0, 5, 10}


@given(st.frozensets(st.integers(0, 1000), min_size=1, max_size=60))
def test_task_numbers_come_back(numbers: frozenset[int]) -> None:
    """What is written for sbatch is what squeue's form means."""
    assert task_numbers(ranges(numbers)) == numbers


@pytest.mark.parametrize("text", ["n1", "n[1-2]", "n1,gpu-[01-03,7]", "rack[1-2]n[08-11],login", "a-b[9-10]"])
def test_node_lists_mean_what_slurm_says(site: Any, text: str) -> None:
    """`scontrol show hostnames` expands them too."""
    said = subprocess.run(
        ["scontrol", "show", "hostnames", text], env=site.env, capture_output=True, text=True, check=True
    )
    assert list(hostlist(text)) == said.stdout.split()


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "jobs with a higher priority are before it"),
        ("QOSMaxGRESPerUser", "its user has as much as its QOS gives one: GPUs or other GRES"),
        ("AssocGrpGRES", "all jobs of its account together have as much as they may: GPUs or other GRES"),
        ("QOSMaxCpuMinutesPerJobLimit", "it asks for more than its QOS gives a job: minutes of cores"),
        ("QOSGrpCPURunMinutesLimit", "as they may for what runs: minutes of cores"),
        ("MaxJobsPerAccount", "its account has as much as its QOS gives one: jobs"),
        ("AssocMaxJobsLimit", "its account has as much as it may: jobs"),
        ("QOSMinGRES", "it asks for less than its QOS wants of a job: GPUs or other GRES"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "nodes that it needs are down"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED", "nodes that it needs are down"),
        ("SomethingNew", "waits in Slurm as job 7_2: SomethingNew"),
    ],
)
def test_why_a_job_waits_is_told_in_words(reason: str, words: str) -> None:
    """And in Slurm's own word, which people search for."""
    assert words in waits("7_2", reason)
    assert reason in waits("7_2", reason)


def test_every_reason_that_slurm_has_is_told_in_words() -> None:
    """All codes of 22.05, 24.11 and 26.05, as their library names them."""
    lines = (ANSWERS / "reasons.txt").read_text().splitlines()
    codes = [line for line in lines if not line.startswith("#")]
    assert len(codes) > 200
    assert [code for code in codes if not waits("7", code).endswith(f" ({code})")] == []


def test_the_nodes_that_are_missing_are_named() -> None:
    """Slurm says which, beside the code."""
    said = "ReqNodeNotAvail, UnavailableNodes:n[1-2]"
    assert waits("7", "ReqNodeNotAvail", said).endswith(f"down, drained or reserved ({said})")
    assert waits("7", "Priority", "anything else") == waits("7", "Priority")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("TIMEOUT", "ran longer than its max_runtime of 60 s"),
        ("OUT_OF_MEMORY", "ran out of memory on n1"),
        ("NODE_FAIL", "a node of it failed on n1"),
        ("PREEMPTED", "Slurm took its nodes for a job that goes before it"),
        ("CANCELLED", "cancelled in Slurm, not by raysched"),
        ("COMPLETED", ""),
    ],
)
def test_how_slurm_ended_a_job_is_told(state: str, words: str) -> None:
    """Out of memory was never seen here: that needs cgroups."""
    job = Job("1", "a", "", frozenset({state}), "None", "ana", ("n1",))
    assert reasons.ended(job, 60_000).startswith(words)


def test_the_last_error_is_what_sbatch_means() -> None:
    """Sites let it say much before."""
    said = (
        "sbatch: note: 64 nodes are busy\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available\n"
    )
    assert reasons.refusal(said) == "Requested node configuration is not available"
    assert reasons.FINAL.search(said)
