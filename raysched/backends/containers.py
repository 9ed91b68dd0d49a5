"""A run in a container: the engine that this machine has, and the command line that it gets.

docs/decisions/0009-containers.md says why each option is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysched.backends.base import EngineRefused
from raysched.backends.environment import inherited, own
from raysched.core.work import Launch, Run

ENGINES = ("docker", "podman", "nerdctl")
"""The engines that will do, the preferred one first."""

ANSWER_S = 10.0
"""How long an engine may take to say its version."""

LOOK_S = 60.0
"""How long it counts which engine there is."""

LABEL = "io.raysched.run"
"""The label of a container that names its run."""

CONTAINER = "raysched-"
"""How the name of a container begins; the run's id follows."""

PULL_PAUSES_S = (2, 6, 18)
"""Seconds between two attempts to pull an image."""

PULL = f"""\
pauses=$1
shift
for pause in $pauses last; do
  said=$("$@" 2>&1) && exit 0
  printf '%s\\n' "$said"
  case "$said" in
    *unknown* | *"not found"* | *"not exist"* | *invalid* | *"must be"*) exit 1 ;;
    *denied* | *unauthorized* | *forbidden*) exit 1 ;;
  esac
  [ "$pause" = last ] || sleep "$pause"
done
exit {os.EX_TEMPFAIL}
"""
"""Pulls an image, and tries again where that may help: not where a registry says that there is no such image,
or not for us. Its arguments are the pauses and the command that pulls."""

CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
CDI_KIND = "nvidia.com/gpu"

INITS = ("/usr/libexec/podman/catatonit", "/usr/lib/podman/catatonit")
"""Where podman looks for an init, beside the PATH."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_READ_BY_ENGINES = re.compile(
    r"(LD_|DOCKER_|CONTAINER|NERDCTL_|BUILDAH_|REGISTRY_|XDG_|SSL_|_CONTAINERS_|NOTIFY_|DBUS_|LISTEN_|"
    r"GO(DEBUG|GC|MAXPROCS|MEMLIMIT|TRACEBACK)$|(HTTPS?|NO|ALL)_PROXY$|TMPDIR$|HOME$|PATH$|USER$)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Engine:
    """One of `ENGINES`, and the file that is run for it."""

    name: str
    path: str


def find_engine(env: Mapping[str, str]) -> Engine | None:
    """The first engine on the PATH of `env` that answers: a docker without its daemon is none."""
    for name in ENGINES:
        path = shutil.which(name, path=env.get("PATH", os.defpath))
        if path is not None and _answers(path, env):
            return Engine(name, path)
    return None


class Engines:
    """Which engine runs containers on this machine, looked for again every minute."""

    def __init__(self, base: Mapping[str, str]) -> None:
        self._env = inherited(base)
        self._name = ""
        self._next = 0.0

    def name(self) -> str:
        """The engine's name, empty where there is none. Blocks: call it in a thread."""
        if time.monotonic() >= self._next:
            engine = find_engine(self._env)
            self._name = engine.name if engine else ""
            self._next = time.monotonic() + LOOK_S
        return self._name


def _answers(path: str, env: Mapping[str, str]) -> bool:
    try:
        done = subprocess.run(
            [path, "version"],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def in_container(launch: Launch, base: Mapping[str, str], work: Path) -> dict[str, Any]:
    """What `launch.json` says of a launch with an image, whose working directory is `work`. Raises
    EngineRefused where this machine has no engine, or its engine can't give the GPUs."""
    env = inherited(base)
    engine = find_engine(env)
    if engine is None:
        raise EngineRefused(f"image: none of {', '.join(ENGINES)} answers on this machine: install one")
    gpus = list(_gpu_options(engine, launch.devices))
    variables = own(launch, base)
    if "--gpus" not in gpus:
        # What this says to the NVIDIA runtime, where that is the engine's default: no GPU by this way.
        variables["NVIDIA_VISIBLE_DEVICES"] = "void"
    by_name, by_value = _divided(variables, env)
    options = [*_options(engine, env, work), *gpus, *_daemon(launch)]
    options += [word for name in sorted(by_name) for word in ("--env", name)]
    options += [word for name, value in sorted(by_value.items()) for word in ("--env", f"{name}={value}")]
    return {
        "entrypoint": _run(engine, launch, options),
        "env": {**env, **by_name},
        "cwd": str(work),
        "container": _calls(engine, launch),
    }


def _run(engine: Engine, launch: Launch, options: Sequence[str]) -> list[str]:
    """The command line that runs the container to its end."""
    line = launch.entrypoint
    command, *arguments = ("/bin/sh", "-c", "--", line) if isinstance(line, str) else line
    named = ["--name", container_name(launch.run), "--label", f"{LABEL}={launch.run}"]
    start = [engine.path, "run", "--rm", *named, "--pull", "never"]
    return [*start, *options, "--entrypoint", command, str(launch.image), *arguments]


def _calls(engine: Engine, launch: Launch) -> dict[str, Any]:
    """What else the runner asks of the engine: whether the image is there, to bring it, whether the container
    is, to end it."""
    image = str(launch.image)
    at_once = ["--time", "0"] if engine.name == "podman" else []
    return {
        "image": image,
        "there": [engine.path, "image", "inspect", image],
        "pull": [
            "/bin/sh",
            "-c",
            PULL,
            "pull",
            " ".join(map(str, PULL_PAUSES_S)),
            engine.path,
            "pull",
            image,
        ],
        "find": [engine.path, "ps", "--all", "--quiet", "--filter", f"label={LABEL}={launch.run}"],
        "remove": [engine.path, "rm", "--force", *at_once, container_name(launch.run)],
    }


def container_name(run: Run) -> str:
    """The name of a run's container: an argument of the processes that look after it."""
    return f"{CONTAINER}{run}"


def _options(engine: Engine, env: Mapping[str, str], work: Path) -> list[str]:
    """What every container of ours is run with."""
    mount = f"type=bind,{_csv('source', work)},{_csv('target', work)}"
    host = ["--network", "host", *_memory(), "--security-opt", "label=disable"]
    return [
        *host,
        "--mount",
        mount,
        "--workdir",
        str(work),
        *_user(engine),
        *_logging(engine),
        *_init(engine, env),
    ]


def _divided(variables: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that the engine takes from its own environment, so that `ps` shows no value of them, and
    those that it is told: they mean something to the engine itself, or have a name that it takes for a
    pattern."""
    by_name = {
        name: value
        for name, value in variables.items()
        if _PLAIN_NAME.fullmatch(name) and name not in env and not _READ_BY_ENGINES.match(name)
    }
    return by_name, {name: value for name, value in variables.items() if name not in by_name}


def _gpu_options(engine: Engine, devices: Sequence[str]) -> Iterator[str]:
    if not devices:
        return
    if engine.name == "podman":
        known = _cdi_specs()
        for device in devices:
            if device not in known:
                raise EngineRefused(
                    f"image: podman can't give {device} to a container, as no CDI specification of this "
                    "machine names it: run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` as root",
                    final=True,
                )
            yield from ("--device", f"{CDI_KIND}={device}")
    else:
        # One value of a CSV list, so that the commas within are the runtime's.
        yield from ("--gpus", f'"device={",".join(devices)}"')


def _cdi_specs() -> str:
    """The text of all CDI specifications; the names of devices stand in it as they are."""
    texts: list[str] = []
    for folder in CDI_FOLDERS:
        with suppress(OSError):
            files = [path for path in folder.iterdir() if path.suffix in (".yaml", ".yml", ".json")]
            texts += [path.read_text(encoding="utf-8", errors="replace") for path in files]
    return "\n".join(texts)


def _memory() -> list[str]:
    """The host's shared memory; but where the kernel's message queues are not mounted, as in some containers,
    an engine without root fails over them."""
    return ["--ipc", "host"] if os.geteuid() == 0 or os.path.exists("/dev/mqueue") else []


def _user(engine: Engine) -> list[str]:
    """Whoever raysched runs as owns what the job writes to its working directory."""
    if os.geteuid() == 0 or engine.name == "nerdctl":
        return []
    return (
        ["--userns", "keep-id"] if engine.name == "podman" else ["--user", f"{os.geteuid()}:{os.getegid()}"]
    )


def _logging(engine: Engine) -> list[str]:
    """The output goes to the run's own file; a second copy with the engine helps nobody."""
    return [] if engine.name == "nerdctl" else ["--log-driver", "none"]


def _init(engine: Engine, env: Mapping[str, str]) -> list[str]:
    """An init as the container's first process: without one, a command that says nothing about SIGTERM
    ignores it, and cancelling takes all of the grace."""
    if engine.name == "podman":
        there = shutil.which("catatonit", path=env.get("PATH", os.defpath)) or any(map(os.path.exists, INITS))
        return ["--init"] if there else []
    return ["--init"] if engine.name == "docker" else []


def _daemon(launch: Launch) -> list[str]:
    """The pipe directory of a tenant's MPS daemon: a program that does not find it runs without MPS."""
    env = dict(launch.env)
    if env.get("RAYSCHED_SHARING") != "mps":
        return []
    pipe = Path(env["CUDA_MPS_PIPE_DIRECTORY"])
    return ["--mount", f"type=bind,{_csv('source', pipe)},{_csv('target', pipe)}"]


def _csv(name: str, path: Path) -> str:
    """A field of the comma-separated value of `--mount`."""
    field = f"{name}={path}".replace('"', '""')
    return f'"{field}"' if set('",') & set(field) else field
