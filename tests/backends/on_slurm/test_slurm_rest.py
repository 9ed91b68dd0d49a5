"""A site that is reached by a real slurmrestd, with a token; `rest_conformance.py` has the long form."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ordered import OrderedHands
from running import wait_until
from slurm_site import SlurmSite

from raysched.backends.base import EngineRefused
from raysched.backends.slurm import rest_words
from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.controller import Batch, Refused, Target, Unanswered
from raysched.backends.slurm.rest import RestController, user_of
from raysched.core.request import WHOLE
from raysched.core.site import NOWHERE
from raysched.core.work import Run


def controller(site: SlurmSite, token: str | None = None) -> RestController:
    url, own = site.rest(), token or site.token()
    return RestController(url, lambda: own, os.environ)


@pytest.fixture
def hands(site: SlurmSite, tmp_path: Path) -> Iterator[OrderedHands]:
    """A backend on the site."""
    environment = {"PATH": os.environ["PATH"]}
    made = OrderedHands(
        lambda: SlurmBackend(tmp_path / "runs", controller(site), environment, tmp_path), NOWHERE
    )
    yield made
    made.close()


def test_a_job_gets_what_it_asked_for(site: SlurmSite, hands: OrderedHands) -> None:
    """Devices, cores, memory and time; it is told to end, and may save its work."""
    wait = "while :; do sleep 0.05; done"
    launch = hands.order(
        f"trap 'echo saved; exit 4' TERM; echo $CUDA_VISIBLE_DEVICES $SLURM_CPUS_ON_NODE; {wait}",
        kind="gpu",
        type="a100",
        count=1,
        cpus=2 * WHOLE,
        memory=1024,
        limit=600_000,
    )
    run = hands.start(replace(launch, name='naïve 東京 "x" \\ %j'))
    assert hands.until_output(run, b"\n") in (b"0 2\n", b"1 2\n")
    (id,) = [line.split()[0] for line in site.jobs() if line.split()[1].endswith(f"-{run}")]
    shown = site.run("scontrol", "show", "job", id)
    for words in ("NumCPUs=2", "TimeLimit=00:10:00", "MinMemoryNode=1G", "gres:gpu:a100:1", "Requeue=0"):
        assert words in shown.replace("gres/", "gres:")
    assert 'naïve 東京 "x" \\ %j' in shown
    hands.stop(run, 30)
    ended = hands.until(run, "exited")
    assert (ended.code, ended.reason) == (4, "stopped")
    assert hands.output(run).endswith(b"saved\n")


def test_a_job_on_two_nodes_runs_once_on_each(hands: OrderedHands) -> None:
    launch = hands.order(
        "echo $RAYSCHED_NODE_RANK $SLURMD_NODENAME", nodes=2, kind="gpu", type="a100", count=1
    )
    assert sorted(hands.run(launch).splitlines()) == ["0 n1", "1 n2"]


def test_an_array_is_one_and_each_of_its_tasks_is_told_apart(site: SlurmSite, hands: OrderedHands) -> None:
    """One that waits is cancelled, and the others are not."""
    first = hands.order("exit $RAYSCHED_ARRAY_INDEX", options=["--dependency=singleton"])
    group = first.run.job.replace("job-", "arr")
    launches = [
        replace(
            first,
            run=Run(f"{group}.{index}", 1, 0),
            lease=f"{group}.{index}.1",
            env=(("RAYSCHED_ARRAY_INDEX", str(index)),),
        )
        for index in range(4)
    ]

    async def start() -> None:
        await asyncio.gather(*(hands.backend.start(launch) for launch in launches))

    hands._started.update({launch.run: launch for launch in launches})
    hands.do(start())
    assert len({line.split("_")[0] for line in site.jobs() if group in line}) == 1
    hands.stop(launches[3].run, 0)
    assert [hands.until(launch.run, "exited").code for launch in launches] == [0, 1, 2, 143]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"partition": "nowhere"}, "Invalid partition name specified"),
        ({"kind": "gpu", "type": "h100", "count": 1}, "Requested node configuration is not available"),
        ({"options": ["--mail-user=ana"]}, r"--mail-user can't be said to slurmrestd v0\.0\.\d\d"),
    ],
)
def test_what_it_never_takes_fails_with_its_reason(
    hands: OrderedHands, fields: dict[str, Any], reason: str
) -> None:
    """Nothing of it is left to run."""
    launch = hands.order("true", **fields)
    with pytest.raises(EngineRefused, match=reason) as refused:
        hands.start(launch)
    assert refused.value.final


def test_a_signal_can_not_be_said_to_the_oldest() -> None:
    """Later ones have words for it."""
    batch = Batch(("--signal=B:USR1@60",), "")
    with pytest.raises(Refused, match=r"--signal can't be said to slurmrestd v0\.0\.38"):
        rest_words.submission(batch, "v0.0.38", {})


def test_a_token_that_is_refused_is_said(site: SlurmSite) -> None:
    """It can be renewed: nothing fails for good."""
    with pytest.raises(Unanswered, match="token"):
        asyncio.run(controller(site, "bad.token.here").jobs())


def test_an_id_that_is_another_jobs_by_now_is_left_alone(site: SlurmSite) -> None:
    """Ids are given again after a crash."""
    told = site.run("sbatch", "--parsable", "--output=/dev/null", "--job-name=somebody", "--wrap=sleep 600")
    id = told.strip()
    rest = controller(site)
    asyncio.run(rest.cancel([Target(id, "rs-tag-job.1.0")]))
    assert site.run("squeue", "-h", "-j", id, "-o", "%T").strip() in ("PENDING", "RUNNING")
    asyncio.run(rest.cancel([Target(id, "somebody")]))
    wait_until(
        lambda: "CANCELLED" in site.run("squeue", "-h", "-t", "all", "-j", id, "-o", "%T"), "it ends", 30
    )


def test_the_plan_shows_the_body(site: SlurmSite) -> None:
    """In the words of the version that is spoken."""
    batch = Batch(("--job-name=a", "--gres=shard:3", "--nodes=1"), "#!/bin/sh\n")
    first, _, body = asyncio.run(controller(site).shown(batch)).partition("\n")
    version = {(22, 5): "v0.0.38", (24, 11): "v0.0.42", (26, 5): "v0.0.45"}[site.version]
    assert first == f"POST {site.rest()}/slurm/{version}/job/submit"
    job = json.loads(body)["job"]
    assert job.get("gres", job.get("tres_per_node")) in ("shard:3", "gres/shard:3")


def test_later_versions_are_spoken_to_in_their_words() -> None:
    """As their documentation has them."""
    assert rest_words.api({f"/slurm/v0.0.{number}/job/submit": {} for number in (38, 40, 41)}) == "v0.0.41"
    assert rest_words.api({"/slurm/v0.0.30/job/submit": {}}) is None
    options = (
        "--gres=shard:3",
        "--mem=1024M",
        "--time=10",
        "--no-requeue",
        "--signal=B:USR1@60",
        "--nodes=2",
    )
    job = rest_words.submission(Batch(options, ""), "v0.0.41", {"PATH": "/bin"})["job"]
    assert job["tres_per_node"] == "gres/shard:3"
    assert job["memory_per_node"] == {"set": True, "infinite": False, "number": 1024}
    assert job["time_limit"]["number"] == 10
    assert job["kill_warning_signal"] == "USR1"
    assert job["environment"] == ["PATH=/bin"]
    with pytest.raises(Refused, match="--mail-user"):
        rest_words.submission(Batch(("--mail-user=a",), ""), "v0.0.41", {})


def test_a_token_tells_whose_it_is() -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1, "sun": "ana"}).encode()).decode().rstrip("=")
    assert user_of(f"head.{claims}.signature") == "ana"
    assert user_of("no token") == ""
