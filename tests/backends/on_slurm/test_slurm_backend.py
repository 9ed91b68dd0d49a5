"""What is Slurm's own: GPUs, arrays, several nodes, what others do to our jobs, and what gets lost."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ordered import OrderedHands
from running import wait_until
from slurm_site import SlurmSite

from raysched.backends.base import EngineRefused
from raysched.backends.slurm import verdict
from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.commands import CommandController
from raysched.backends.slurm.controller import Unanswered
from raysched.core.commands import NodeSeen, Outside, Placed
from raysched.core.request import WHOLE
from raysched.core.site import NOWHERE
from raysched.core.work import Launch, Run

A_GPU = {"kind": "gpu", "type": "a100", "count": 1}


@pytest.fixture
def hands(site: SlurmSite, tmp_path: Path) -> Iterator[OrderedHands]:
    """A backend on the site."""
    made = make_hands(site, tmp_path)
    yield made
    made.close()


def make_hands(site: SlurmSite, folder: Path, **environment: str) -> OrderedHands:
    def make() -> SlurmBackend:
        controller = CommandController(environment={**site.env, **environment})
        return SlurmBackend(folder / "runs", controller, {"PATH": os.environ["PATH"]}, folder)

    return OrderedHands(make, NOWHERE)


def settings_of(site: SlurmSite, run: Run) -> dict[str, str]:
    """What scontrol shows of a run's job."""
    (id,) = [line.split()[0] for line in site.jobs() if line.split()[1].endswith(f"-{run}")]
    shown = site.run("scontrol", "show", "job", id)
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)


# ---------------------------------------------------------------- what a job gets


def test_a_job_gets_what_it_asked_for(site: SlurmSite, hands: OrderedHands) -> None:
    """Case slurm-05: whatever it is called, nothing is added and nothing dropped."""
    names = [
        "Big simulation (v2) #3",
        "proj-sub:test1",
        "a;touch pwned;$(touch pwned2)",
        'naïve 東京 🚀 it\'s "x" \\ %j',
        "x" * 128,
    ]
    show = "echo $CUDA_VISIBLE_DEVICES $SLURM_CPUS_ON_NODE; sleep 600"
    for name in names:
        launch = hands.order(
            show, kind="gpu", type="a100", count=1, cpus=2 * WHOLE, memory=1024, limit=600_000
        )
        run = hands.start(replace(launch, name=name))
        assert hands.until_output(run, b"\n") in (b"0 2\n", b"1 2\n")
        settings = settings_of(site, run)
        assert (settings["NumCPUs"], settings["TimeLimit"]) == ("2", "00:10:00")
        assert settings["MinMemoryNode"] == "1G"
        assert settings["TresPerNode"].replace("/", ":") == "gres:gpu:a100:1"
        (comment,) = [line for line in site.jobs("%k") if line.startswith("rs-") and f"-{run} " in line]
        assert comment.partition(" ")[2].rstrip() == name.rstrip()
        hands.stop(run, 0)
        hands.until(run, "exited")
    assert not list(hands.backend.root.rglob("pwned*"))  # type: ignore[attr-defined]


def test_a_long_script_arrives_byte_for_byte(hands: OrderedHands) -> None:
    """Ten thousand characters with everything in them that a shell could touch."""
    text = "".join(chr(0x20 + number % 0x5F) for number in range(10_000)) + "\n\t東京 🚀 #SBATCH --gres=gpu:8"
    output = hands.run(hands.order(f"cat <<'the end'\n{text}\nthe end\n"))
    assert output == f"{text}\n"


def test_a_job_on_two_nodes_runs_once_on_each(hands: OrderedHands, tmp_path: Path) -> None:
    """With the variables of its rank; its code is that of the one that failed."""
    begun = tmp_path / "begun"
    say = 'echo "$RAYSCHED_NODE_RANK of $RAYSCHED_NUM_NODES $SLURMD_NODENAME $MASTER_ADDR"'
    first = f"[ $RAYSCHED_NODE_RANK = 1 ] || {{ touch {begun}; sleep 600; }}"  # srun ends it, by a signal
    other = f"until [ -e {begun} ]; do sleep 0.05; done; exit 5"
    launch = hands.order(f"{say}; {first}; {other}", nodes=2, kind="gpu", type="a100", count=1)
    run = hands.start(launch)
    assert hands.until(run, "exited").code == 5
    assert sorted(line for line in hands.output(run).decode().splitlines() if " of " in line) == [
        "0 of 2 n1 n1",
        "1 of 2 n2 n1",
    ]


def test_a_warning_comes_before_the_end(site: SlurmSite, hands: OrderedHands) -> None:
    """Slurm signals the script, and the command gets it."""
    wait = "echo ready; while :; do sleep 0.05; done"
    run = hands.start(
        hands.order(f"trap 'echo warned; exit 0' USR1; {wait}", signal="USR1@60", limit=600_000)
    )
    hands.until_output(run, b"ready\n")
    (id,) = [line.split()[0] for line in site.jobs() if str(run) in line]
    site.run("scancel", "--batch", "--signal=USR1", id)
    assert hands.until(run, "exited").code == 0
    assert hands.output(run).endswith(b"warned\n")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"partition": "nowhere"}, "invalid partition name specified: nowhere"),
        ({"kind": "gpu", "type": "h100", "count": 1}, "Requested node configuration is not available"),
        ({"kind": "gpu", "type": "a100", "count": 9}, "Requested node configuration is not available"),
        ({"options": ["--no-such-option"]}, "unrecognized option"),
        ({"options": ["--m"]}, "ambiguous"),
        ({"reservation": "nosuch"}, "reservation is invalid: nosuch"),
    ],
)
def test_what_slurm_never_takes_fails_with_its_reason(
    hands: OrderedHands, fields: dict[str, Any], reason: str
) -> None:
    """Nothing of it is left in the queue."""
    launch = hands.order("true", **fields)
    with pytest.raises(EngineRefused, match=f"(?i){reason}") as refused:
        hands.start(launch)
    assert refused.value.final


# ---------------------------------------------------------------- arrays


def elements(hands: OrderedHands, entrypoint: str, count: int, **fields: Any) -> list[Launch]:
    """Launches of the elements of a new array."""
    group = hands.launch("true").run.job.replace("job-", "arr")
    first = hands.order(entrypoint, **fields)
    return [
        replace(
            first,
            run=Run(f"{group}.{index}", 1, 0),
            lease=f"{group}.{index}.1",
            name=f"sweep[{index}]",
            env=(("RAYSCHED_ARRAY_INDEX", str(index)),),
        )
        for index in range(count)
    ]


def start_all(hands: OrderedHands, launches: list[Launch]) -> None:
    async def start() -> None:
        await asyncio.gather(*(hands.backend.start(launch) for launch in launches))

    hands._started.update({launch.run: launch for launch in launches})
    hands.do(start())


def test_an_array_is_one_array_and_its_elements_are_jobs_of_their_own(
    site: SlurmSite, hands: OrderedHands
) -> None:
    """Case slurm-03: each has its own state, code and output; the end of one leaves the others."""
    launches = elements(
        hands, "echo $RAYSCHED_ARRAY_INDEX; sleep 1; exit $RAYSCHED_ARRAY_INDEX", 10, cpus=8 * WHOLE
    )
    start_all(hands, launches)
    assert (
        len(
            {
                line.split()[0].partition("_")[0]
                for line in site.jobs()
                if f"{launches[0].run.job[:-2]}" in line
            }
        )
        == 1
    )
    hands.stop(launches[9].run, 0)
    for index, launch in enumerate(launches[:9]):
        assert hands.until(launch.run, "exited").code == index
        assert hands.output(launch.run) == f"{index}\n".encode()
    assert hands.until(launches[9].run, "exited").code == 143


# ---------------------------------------------------------------- what others do


def test_a_job_that_somebody_cancels_in_slurm_says_so(site: SlurmSite, hands: OrderedHands) -> None:
    """Running or waiting."""
    running = hands.start("exec sleep 600")
    hands.until(running, "running")
    waiting = hands.start(
        hands.order("true", kind="gpu", type="a100", count=1, options=["--begin=now+1hour"])
    )

    def told() -> bool:
        seen = hands.seen(waiting)
        reason = r"waits in Slurm as job \d+: its time has not come \(BeginTime\)"
        return seen is not None and re.fullmatch(reason, seen.reason) is not None

    wait_until(told, "Slurm's reason is told", 30)
    for run in (running, waiting):
        (id,) = [line.split()[0] for line in site.jobs() if line.split()[1].endswith(f"-{run}")]
        site.run("scancel", id)
    ended = hands.until(running, "exited")
    assert (ended.code, ended.reason) == (143, "cancelled in Slurm, not by raysched")
    assert hands.until(waiting, "lost").reason == "cancelled in Slurm, not by raysched"


def test_a_cancel_that_hit_another_job_costs_it_an_attempt_only(site: SlurmSite, hands: OrderedHands) -> None:
    """A controller that lost a job gives its id to the next one, while scancel waits for it: seen in one of
    17 kills. Here the backend has meant another job by that id."""
    run = hands.start(hands.order("true", options=["--begin=now+1hour"]))
    (id,) = [line.split()[0] for line in site.jobs() if line.split()[1].endswith(f"-{run}")]
    backend: Any = hands.backend
    backend._cancels.meant[id] = "rs-tag-another.1.0"
    site.run("scancel", id)
    assert hands.until(run, "taken").reason == "Slurm lost sight of it and ended it"


def test_a_job_whose_number_another_one_has_costs_it_an_attempt_only(
    site: SlurmSite, hands: OrderedHands
) -> None:
    """A controller that was killed gives the number of a job that it lost to the next one; the node that
    still runs the first has both cancelled: seen in 9 of 200 jobs. Here the other one says that it began
    under this number."""
    other = hands.start("exec sleep 600")
    hands.until(other, "running")
    run = hands.start(hands.order("true", options=["--begin=now+1hour"]))
    (id,) = [line.split()[0] for line in site.jobs() if line.split()[1].endswith(f"-{run}")]
    root: Path = hands.backend.root  # type: ignore[attr-defined]
    (root / str(other) / "began.json").write_text(f'{{"job": "{id}"}}')
    site.run("scancel", id)
    assert hands.until(run, "taken").reason == "Slurm lost sight of it and ended it"
    (mine,) = [line.split()[0] for line in site.jobs() if line.split()[1].endswith(f"-{other}")]
    site.run("scancel", mine)
    assert hands.until(other, "taken").reason == "Slurm lost sight of it and ended it"


def test_a_job_that_is_preempted_is_taken_and_not_failed(site: SlurmSite, hands: OrderedHands) -> None:
    """It may be started again, as another attempt."""
    everything = {"nodes": 2, "kind": "gpu", "type": "a100", "count": 2}
    low = hands.start(hands.order("echo here; exec sleep 600", partition="low", **everything))
    hands.until_output(low, b"here\n")
    high = hands.start(hands.order("true", partition="main", **everything))
    assert hands.until(low, "taken").reason == "Slurm took its nodes for a job that goes before it"
    assert hands.until(high, "exited").code == 0


@pytest.mark.parametrize("end", ["trap 'echo saved; exit 9' TERM", "true"])
def test_a_job_that_ends_while_it_is_preempted_is_taken_too(
    site: SlurmSite, hands: OrderedHands, end: str
) -> None:
    """Where a partition leaves it time, Slurm tells its steps, and calls what ends by itself completed."""
    everything = {"nodes": 2, "kind": "gpu", "type": "a100", "count": 2}
    site.run("scontrol", "update", "PartitionName=low", "GraceTime=60")
    try:
        wait = f"{end}; echo here; while :; do sleep 0.05; done"
        low = hands.start(hands.order(wait, partition="low", **everything))
        wait_until(lambda: hands.output(low).count(b"here\n") == 2, "both have begun", 60)
        high = hands.start(hands.order("true", partition="main", **everything))
        assert hands.until(low, "taken").reason == "Slurm took its nodes for a job that goes before it"
        assert hands.until(high, "exited").code == 0
    finally:
        site.run("scontrol", "update", "PartitionName=low", "GraceTime=0")


def test_what_slurm_starts_a_second_time_runs_once(
    site: SlurmSite, hands: OrderedHands, tmp_path: Path
) -> None:
    """A controller that was restarted may do so without counting it."""
    mark = tmp_path / "starts"
    run = hands.start(f"echo started >> {mark}; exit 3")
    hands.until(run, "exited")
    (id,) = [line.split()[0] for line in site.jobs() if str(run) in line]
    script = site.run("scontrol", "write", "batch_script", id, "-")
    again = subprocess.run(
        ["sbatch", "--wait", "--output=/dev/null"], input=script, env=site.env, text=True, check=False
    )
    assert again.returncode == 0
    assert mark.read_text() == "started\n"
    assert hands.seen(run) == hands.until(run, "exited")


def test_what_slurm_holds_for_a_run_that_is_over_is_given_back(
    site: SlurmSite, hands: OrderedHands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that was killed may never learn that a job ended, and holds it for running for ever: 48
    of 200 in one run of the proofs, until the site was full. Here another job has the name of the run. What
    runs itself is left alone."""
    monkeypatch.setattr(verdict, "STUCK_S", 0.5)
    going = hands.start("exec sleep 600")
    hands.until(going, "running")
    run = hands.start("exit 3")
    (name,) = {line.split()[1] for line in site.jobs() if line.split()[1].endswith(f"-{run}")}
    assert hands.until(run, "exited").code == 3
    held = ["--parsable", "--output=/dev/null", f"--job-name={name}", "--wrap=sleep 600"]
    id = site.run("sbatch", *held).strip()

    def state() -> str:
        hands.do(hands.backend.observe())
        return site.run("squeue", "-h", "-t", "all", "-j", id, "-o", "%T").strip()

    wait_until(lambda: state() == "CANCELLED", "Slurm holds it no more", 60)
    assert hands.seen(run) == hands.until(run, "exited")
    seen = hands.seen(going)
    assert seen is not None
    assert seen.state == "running"
    hands.stop(going, 0)


def test_a_controller_that_is_away_takes_no_job_away(
    site: SlurmSite, hands: OrderedHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """22.05's squeue then ends with code 0 and tells of no jobs: what ran would be handed over again, and run
    twice."""
    monkeypatch.setattr(verdict, "MISSING_S", 0.0)
    mark, go = tmp_path / "starts", tmp_path / "go"
    run = hands.start(f"echo started >> {mark}; until test -e {go}; do sleep 0.1; done; exit 3")
    hands.until(run, "running")
    site.stop_controller()
    try:
        controller = CommandController(environment=site.env)
        for said in hands.do(all_of(controller.jobs(), controller.nodes())):
            assert isinstance(said, Unanswered)
            assert "is slurmctld up?" in str(said)
        for _ in range(2):
            seen = hands.seen(run)
            assert seen is not None
            assert seen.state == "running"
    finally:
        site.start_controller()
    go.touch()
    assert hands.until(run, "exited").code == 3
    assert mark.read_text() == "started\n"


async def all_of(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def test_sbatch_may_talk(site: SlurmSite, tmp_path: Path) -> None:
    """Case slurm-04: no number that the site's own sbatch prints is taken for the job's id."""
    real = shutil.which("sbatch")
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(
        "#!/bin/sh\n"
        'echo "Welcome to Cluster3 - maintenance on day 12"\n'
        'echo "--> quota 128 GB ... OK"\n'
        'echo "sbatch: note: 64 nodes are busy" >&2\n'
        f'{real} --parsable "$@" | sed "s/$/;alpha/"\n'
        'echo "have a nice day 365"\n'
    )
    wrapper.chmod(0o755)
    hands = make_hands(site, tmp_path, PATH=f"{wrapper.parent}:{os.environ['PATH']}")
    run = hands.start("echo done; exit 6")
    assert hands.until(run, "exited").code == 6
    assert hands.output(run) == b"done\n"
    hands.close()


# ---------------------------------------------------------------- nodes


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever runs this site may drain its nodes")
def test_a_node_that_this_user_may_not_drain_says_who_may(site: SlurmSite, tmp_path: Path) -> None:
    """Slurm itself refuses it; nothing is changed."""
    wrapper = tmp_path / "bin" / "scontrol"
    wrapper.parent.mkdir()
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    wrapper.write_text(f'#!/bin/sh\nexec {nobody} {shutil.which("scontrol")} "$@"\n')
    wrapper.chmod(0o755)
    hands = make_hands(site, tmp_path, PATH=f"{wrapper.parent}:{os.environ['PATH']}")
    backend: Any = hands.backend
    with pytest.raises(EngineRefused, match=r"n3 is not drained: .*scontrol update NodeName=n3"):
        hands.do(backend.cordon("n3", True, "raysched: drained by ana"))
    assert "DRAIN" not in site.run("scontrol", "show", "node", "n3")
    hands.close()


# ---------------------------------------------------------------- the mirror


def test_the_site_is_told_as_it_is(site: SlurmSite, hands: OrderedHands) -> None:
    """What others use, what is drained and why, and where our jobs really are."""
    user = subprocess.Popen(["srun", "-Q", "--gres=gpu:a100:1", "-wn2", "sleep", "600"], env=site.env)
    site.run("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=fans broken")
    try:
        run = hands.start(hands.order("exec sleep 600", kind="shard", type="a100", count=2))
        hands.until(run, "running")

        def told(kind: type) -> list[Any]:
            hands.do(hands.backend.observe())
            backend: Any = hands.backend
            backend._site.hurry()
            return [each for each in hands.do(backend.mirror()) if isinstance(each, kind)]

        wait_until(lambda: any(each.gpus for each in told(Outside)), "others are seen", 30)
        (placed,) = wait_until(lambda: told(Placed), "the job is placed", 30)
        (place,) = placed.places
        assert placed.lease == f"{run.job}.1"
        assert [slice.share for slice in place.slices] == [5000]
        assert {each.node: len(each.gpus) for each in told(Outside)} == {"n1": 0, "n2": 1, "n3": 0}
        closed = {each.node.name: each.node.closed for each in told(NodeSeen)}
        assert closed == {"n1": "", "n2": "", "n3": "drained: fans broken"}
        site_backend: Any = hands.backend
        with pytest.raises(EngineRefused, match=r"somebody else drained it \(fans broken\).*State=RESUME"):
            hands.do(site_backend.cordon("n3", False, ""))
        assert "DRAIN" in site.run("scontrol", "show", "node", "n3")
    finally:
        user.terminate()
        user.wait()
        site.run("scontrol", "update", "NodeName=n3", "State=RESUME")
