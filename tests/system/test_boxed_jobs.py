"""Jobs with an image on a whole system: from the job file to the output, on both backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from podman import IMAGE, Podman, podman
from running import System, wait_until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def box() -> Iterator[Podman]:
    with podman() as made:
        yield made


@pytest.fixture
def boxed(box: Podman, make_system: Callable[..., System]) -> System:
    """A system whose jobs have this podman."""
    system = make_system()
    system.env |= box.env
    system.up()
    return system


def test_a_job_with_an_image_runs_in_a_container(boxed: System, box: Podman) -> None:
    file = boxed.folder / "job.yaml"
    for backend in ("vm", "ray"):
        file.write_text(
            f"name: boxed\nentrypoint: ls /; cat seed; echo $RAYSCHED_GPU_FRACTION\nimage: {IMAGE}\n"
            f"backend: {backend}\nworking_dir: seeds\nresources: {{gpu_fraction: 0.25}}\n"
        )
        (boxed.folder / "seeds").mkdir(exist_ok=True)
        (boxed.folder / "seeds" / "seed").write_text(f"{backend}\n")
        said = boxed.cli("submit", "--follow", str(file)).stdout.split()
        assert said[-2:] == [backend, "0.25"]
        assert "usr" not in said  # the image has no such folder, this machine has
    killed = boxed.submit("killed", "echo ready; exec sleep 600", image=IMAGE, resources={"gpus": 1})
    wait_until(lambda: boxed.cli("logs", killed).stdout == "ready\n", "it runs")
    boxed.kill("runner.py", killed)
    wait_until(lambda: boxed.client().job(killed)[0]["state"] == "failed", "it is lost")
    assert "its runner was killed" in boxed.client().job(killed)[0]["reason"]
    wait_until(lambda: box.containers() == [], "its container is gone")
    wait_until(lambda: boxed.client().job(killed)[0]["lease"]["state"] == "released", "its GPU is free")
    cancelled = boxed.submit("cancelled", "echo ready; exec sleep 600", image=IMAGE, resources={"gpus": 1})
    wait_until(lambda: boxed.cli("logs", cancelled).stdout == "ready\n", "it runs")
    boxed.cli("cancel", cancelled)
    wait_until(lambda: boxed.client().job(cancelled)[0]["state"] == "cancelled", "it is cancelled")
    assert box.containers() == []
    typo = boxed.submit("typo", "true", image="127.0.0.1:9/No-Such-Image:v0", resources={"gpus": 1})
    wait_until(lambda: boxed.client().job(typo)[0]["state"] == "failed", "it fails")
    assert "127.0.0.1:9/No-Such-Image:v0 can't be pulled" in boxed.client().job(typo)[0]["reason"]
