"""Runs in containers, on a real podman."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from container_kills import kills
from podman import IMAGE, Podman, podman

from raysched.backends import containers
from raysched.backends.base import EngineRefused
from raysched.backends.vm import VMBackend
from raysched.core.work import Launch, Run
from raysched.testing.conformance import PLACE, Hands, new_launch, pack

STUBBORN = "trap '' TERM; echo at work; while :; do sleep 0.05; done"


class Boxes(Hands):
    """A vm backend in the hands of a test, all of whose launches have the image."""

    def launch(self, entrypoint: Any, env: Any = None, package: str | None = None) -> Launch:
        return replace(new_launch(entrypoint, self.place, env, package), image=IMAGE)


@pytest.fixture(scope="module")
def box() -> Iterator[Podman]:
    with podman() as made:
        yield made


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


@pytest.fixture
def boxes(box: Podman, tmp_path: Path, packages: Path) -> Iterator[Boxes]:
    base = {**os.environ, **box.env, "OUTSIDE": "yes"}
    hands = Boxes(lambda: VMBackend(tmp_path / "runs", base, packages), PLACE)
    yield hands
    hands.close()
    assert box.containers() == []


def runner_of(boxes: Boxes, tmp_path: Path, run: Run) -> int:
    import json

    boxes.until(run, "running")
    return json.loads((tmp_path / "runs" / str(run) / "run.json").read_text())["pid"]


def processes(run: Run) -> list[int]:
    """All processes of a run on this machine, those in the container included."""
    found = subprocess.run(
        ["grep", "-lzx", f"RAYSCHED_RUN={run}", *environs()], capture_output=True, check=False
    )
    return [int(path.split(b"/")[2]) for path in found.stdout.split()]


def environs() -> list[str]:
    return [f"/proc/{name}/environ" for name in os.listdir("/proc") if name.isdigit()]


# ------------------------------------------------------------ what it gets


@pytest.mark.parametrize(
    ("entrypoint", "code"),
    [("exit 3", 3), ("kill -9 $$", 137), ("no-such-command", 127), (["/bin/false"], 1), ("true", 0)],
)
def test_the_exit_code_arrives(boxes: Boxes, entrypoint: Any, code: int) -> None:
    assert boxes.until(boxes.start(entrypoint), "exited").code == code


def test_a_command_that_the_image_lacks_fails_and_says_so(boxes: Boxes) -> None:
    """The words and the exit code are the init's."""
    run = boxes.start(["no-such-command"])
    assert boxes.until(run, "exited").code != 0
    assert b"No such file" in boxes.output(run)


def test_it_sees_the_image_and_its_own_variables_only(boxes: Boxes) -> None:
    said = boxes.run("ls /bin; env", {"STAGE": "inside"}).splitlines()
    assert {"busybox", "STAGE=inside"} <= set(said)
    assert not any(line.startswith(("OUTSIDE=", "CONTAINERS_CONF=")) for line in said)
    assert "NVIDIA_VISIBLE_DEVICES=void" in said


TEXTS = [
    "",
    "a  b",
    "it's",
    'say "x"',
    "$HOME `id` \\",
    "two\nlines\n",
    "naïve 東京",
    "\x01\x7f",
    "*?[a]",
    "#x=y",
]
NAMES = ["PLAIN", "PATH_OF_MINE", "LD_PRELOAD", "HTTPS_PROXY", "odd-name", "pattern*", "TMPDIR"]


def test_no_variable_and_no_argument_passes_through_a_shell(boxes: Boxes) -> None:
    """What arrives is byte for byte what was asked."""
    env = {f"TEXT_{at}": text for at, text in enumerate(TEXTS)} | dict.fromkeys(NAMES, "two\n lines ")
    said = boxes.run(["cat", "/proc/self/environ"], env)
    found = dict(entry.split("=", 1) for entry in said.split("\0") if "=" in entry)
    assert {name: found.get(name) for name in env} == env
    assert boxes.run(["/bin/sh", "-c", 'printf "%s|" "$@"', "sh", *TEXTS]) == "".join(
        f"{text}|" for text in TEXTS
    )


def test_a_secret_is_on_no_command_line(boxes: Boxes) -> None:
    run = boxes.start("echo ready; exec sleep 600", {"HF_TOKEN": "s3cr3t-of-ana"})
    boxes.until_output(run, b"ready\n")
    lines = b"".join(
        Path(path).with_name("cmdline").read_bytes() for path in environs() if Path(path).parent.exists()
    )
    assert b"raysched-" in lines
    assert b"s3cr3t-of-ana" not in lines


def test_the_working_directory_is_the_runs_own(boxes: Boxes, packages: Path, tmp_path: Path) -> None:
    launch = boxes.launch(
        "cat 'a file'; echo made > result", package=pack(packages, {"a file": b"arrived\n"})
    )
    assert boxes.run(launch) == "arrived\n"
    assert (tmp_path / "runs" / str(launch.run) / "work" / "result").read_text() == "made\n"


def test_two_containers_meet_on_the_host_network(boxes: Boxes) -> None:
    """Ranks find one another by the node's addresses, and a job the gateway by the loopback."""
    assert "lo" in boxes.run("ls /sys/class/net").split()
    assert sorted(boxes.run("ls /sys/class/net").split()) == sorted(os.listdir("/sys/class/net"))


# ------------------------------------------------------------ how it ends


def test_a_cancelled_container_ends_at_once(boxes: Boxes, box: Podman) -> None:
    """Also where its command says nothing about SIGTERM."""
    run = boxes.start("echo ready; exec sleep 600")
    boxes.until_output(run, b"ready\n")
    boxes.stop(run)
    assert boxes.until(run, "exited").code == 128 + signal.SIGTERM
    assert processes(run) == []
    assert box.containers() == []


def test_a_container_may_save_its_work_within_the_grace_and_is_told_once(boxes: Boxes) -> None:
    run = boxes.start(
        [
            "/bin/sh",
            "-c",
            "trap 'echo told; sleep 0.3; exit 7' TERM; echo ready; while :; do sleep 0.05; done",
        ]
    )
    boxes.until_output(run, b"ready\n")
    boxes.stop(run)
    assert boxes.until(run, "exited").code == 7
    assert boxes.output(run) == b"ready\ntold\n"


def test_what_ignores_sigterm_is_killed_after_the_grace(boxes: Boxes, box: Podman) -> None:
    run = boxes.start(f'setsid sh -c "{STUBBORN}" & {STUBBORN}')
    boxes.until_output(run, b"at work\nat work\n")
    boxes.stop(run, 0.2)
    assert boxes.until(run, "exited").code == 128 + signal.SIGKILL
    assert processes(run) == []
    assert box.containers() == []


def test_what_a_command_leaves_behind_is_gone_when_it_has_ended(boxes: Boxes) -> None:
    run = boxes.start("setsid sleep 600 & exit 5")
    assert boxes.until(run, "exited").code == 5
    assert processes(run) == []


def test_a_new_backend_adopts_the_container(boxes: Boxes) -> None:
    launch = boxes.launch("echo ready; exec sleep 600")
    run = boxes.start(launch)
    boxes.until_output(run, b"ready\n")
    boxes.restart()
    boxes.start(launch)
    boxes.until(run, "running")
    boxes.stop(run)
    boxes.until(run, "exited")
    assert boxes.output(run) == b"ready\n"


def test_a_container_whose_runner_was_killed_is_ended_and_never_started_again(
    boxes: Boxes, box: Podman, tmp_path: Path
) -> None:
    launch = boxes.launch("echo ready; echo begun >> begun; setsid sleep 600 & exec sleep 600")
    run = boxes.start(launch)
    boxes.until_output(run, b"ready\n")
    os.kill(runner_of(boxes, tmp_path, run), signal.SIGKILL)
    boxes.until(run, "lost")
    assert processes(run) == []
    assert box.containers() == []
    boxes.restart()
    boxes.start(launch)
    boxes.until(run, "lost")
    assert (tmp_path / "runs" / str(run) / "work" / "begun").read_text() == "begun\n"


def test_a_container_whose_engine_command_was_killed_is_ended(
    boxes: Boxes, box: Podman, tmp_path: Path
) -> None:
    """So it is with docker whenever its command dies: the container is nobody's child."""
    run = boxes.start("echo ready; exec sleep 600")
    boxes.until_output(run, b"ready\n")
    runner = runner_of(boxes, tmp_path, run)
    [command] = Path(f"/proc/{runner}/task/{runner}/children").read_text().split()[:1]
    os.kill(int(command), signal.SIGKILL)
    assert boxes.until(run, "exited").code == 128 + signal.SIGKILL
    assert processes(run) == []
    assert box.containers() == []


def test_concurrent_starts_run_it_once(boxes: Boxes, tmp_path: Path) -> None:
    launch = boxes.launch("echo begun >> begun")
    others = [boxes.make() for _ in range(3)]

    async def start_all() -> None:
        await asyncio.gather(*(each.start(launch) for each in (boxes.backend, *others)))

    boxes.do(start_all())
    boxes.until(launch.run, "exited")
    assert (tmp_path / "runs" / str(launch.run) / "work" / "begun").read_text() == "begun\n"


def test_a_container_never_begins_twice_and_never_outlives_its_run(box: Podman, tmp_path: Path) -> None:
    """`make torture` does it 400 times."""
    told = kills(box, tmp_path, "1", 8)
    assert told["lost"] + told["exited"] == 8


# ------------------------------------------------------------ what can't be had


def test_an_image_that_can_not_be_pulled_is_named(boxes: Boxes, box: Podman) -> None:
    """Case kubernetes-03. Nobody listens there."""
    image = "127.0.0.1:9/No-Such-Image:v0"
    run = boxes.start(replace(boxes.launch("true"), image=image))
    seen = boxes.until(run, "exited")
    assert seen.code == 125
    assert f"the image {image} can't be pulled" in seen.reason
    assert f"raysched: the image {image} can't be pulled" in boxes.output(run).decode()


def test_a_registry_that_is_down_is_asked_again_and_costs_no_attempt(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens there. What its engine took may be started again (`core/decide.py`)."""
    monkeypatch.setattr(containers, "PULL_PAUSES_S", (0.1, 0.1))
    image = "127.0.0.1:9/no-such-image:v0"
    run = boxes.start(replace(boxes.launch("true"), image=image))
    seen = boxes.until(run, "taken")
    assert not seen.begun
    assert f"the image {image} can't be pulled" in seen.reason
    assert boxes.output(run).decode().count("connection refused") >= 3


def test_a_machine_without_an_engine_says_so(tmp_path: Path) -> None:
    hands = Boxes(lambda: VMBackend(tmp_path / "runs", {"PATH": str(tmp_path)}, tmp_path), PLACE)
    with pytest.raises(EngineRefused, match="none of docker, podman, nerdctl answers") as refused:
        hands.start("true")
    assert not refused.value.final
    hands.close()


def test_a_docker_without_its_daemon_is_no_engine(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    assert containers.find_engine({"PATH": str(tmp_path)}) is None


# ------------------------------------------------------------ GPUs

CDI = """
cdiVersion: "0.5.0"
kind: nvidia.com/gpu
devices:
  - name: GPU-made-up
    containerEdits:
      deviceNodes: [{path: /dev/made-up-gpu, type: c, major: 1, minor: 3}]
      env: [CDI_GAVE=it]
"""


def test_a_gpu_that_no_cdi_specification_names_is_refused(boxes: Boxes) -> None:
    with pytest.raises(EngineRefused, match="nvidia-ctk cdi generate") as refused:
        boxes.start(replace(boxes.launch("true"), devices=("GPU-of-nobody",)))
    assert refused.value.final


def test_the_gpu_of_the_lease_is_given_by_cdi(box: Podman, tmp_path: Path) -> None:
    """In a mount namespace of its own: the specification lies in a folder of the system."""
    (tmp_path / "gpu.yaml").write_text(CDI)
    test = f"{Path(__file__).with_name('in_namespace.py')}"
    script = 'mount -t tmpfs tmpfs /run && mkdir /run/cdi && cp "$1" /run/cdi/gpu.yaml && shift && exec "$@"'
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        str(tmp_path / "gpu.yaml"),
        sys.executable,
        test,
    ]
    done = subprocess.run(
        [*command, str(tmp_path), IMAGE],
        env={**os.environ, **box.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"/dev/made-up-gpu", "CDI_GAVE=it", "CUDA_VISIBLE_DEVICES=GPU-made-up"}


@pytest.mark.parametrize(("engine_name", "root"), [("docker", True), ("docker", False), ("nerdctl", True)])
def test_other_engines_are_asked_for_the_gpus_by_their_own_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine_name: str, root: bool
) -> None:
    """What their command line is; no docker and no containerd runs here."""
    program = tmp_path / engine_name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    launch = replace(new_launch("true"), image=IMAGE, devices=("GPU-1", "GPU-2"))
    said = containers.in_container(launch, {"PATH": str(tmp_path)}, Path("/a,b/work"))
    line = said["entrypoint"]
    assert line[:2] == [str(program), "run"]
    assert line[line.index("--gpus") + 1] == '"device=GPU-1,GPU-2"'
    assert line[line.index("--mount") + 1] == 'type=bind,"source=/a,b/work","target=/a,b/work"'
    assert ("--user" in line) == (not root)
    assert line[-6:] == ["--entrypoint", "/bin/sh", IMAGE, "-c", "--", "true"]


def test_a_tenant_under_mps_reaches_its_daemon_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would run without MPS, and not know."""
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    env = (("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps/GPU-1"), ("RAYSCHED_SHARING", "mps"))
    launch = replace(new_launch("true"), image=IMAGE, devices=("GPU-1",), env=env)
    line = containers.in_container(launch, {"PATH": str(tmp_path)}, Path("/a/work"))["entrypoint"]
    assert "type=bind,source=/tmp/mps/GPU-1,target=/tmp/mps/GPU-1" in line
    assert line[line.index("--ipc") + 1] == "host"
