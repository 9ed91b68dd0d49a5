"""`raysched up`."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raysched.actors.settings import KubeSite, Settings, SlurmSite
from raysched.backends import runner
from raysched.client import Client
from raysched.cluster import home as homes
from raysched.cluster import own_ray, record, system
from raysched.cluster.apart import apart
from raysched.cluster.interrupts import held, interruptible
from raysched.cluster.listening import listen, url_host
from raysched.cluster.own_ray import RayLost
from raysched.cluster.record import Record
from raysched.core.clusters import backend_of
from raysched.core.compile import compile_host
from raysched.core.measured import Policy
from raysched.errors import AlreadyUp, ConfigError, Conflict, PortBusy, RayschedError, Unreachable
from raysched.folders import state_folder
from raysched.specs.config import Config, Watchdog
from raysched.store.usual import data_folder

View = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` is to start. `ray` is the HOST:PORT of a Ray that runs, None to start one; `own` is set where
    that is one of ours from before. `gpus` counts the simulated ones."""

    home: Path
    settings: Settings
    token: str
    ray: str | None
    before: Record | None
    gpus: int | None

    @property
    def address(self) -> str:
        """The gateway's URL."""
        return f"http://{url_host(self.settings.host)}:{self.settings.port}"


def up(
    config: Config, *, simulate: str | None = None, address: str | None = None, port: int | None = None
) -> View:
    """Start raysched: on the Ray at `address` (or that the configuration or RAY_ADDRESS names, or that runs
    here), else on a Ray of its own. The arguments go before the configuration.

    Answers with the gateway's `address`, `folder`, `simulated`, `nodes`, `gpus` and `ray` (its `address`,
    `dashboard`, whether it was `started` here, and the `environment` that its own commands need). When this
    fails or is interrupted, nothing that it started is left.

    Raises AlreadyUp, PortBusy, ConfigError, Conflict, StorageError, and Unreachable where Ray is at fault.
    """
    home = homes.prepare(state_folder())
    with homes.exclusive(home), interruptible():
        plan = _plan(home, config, simulate, address, port)
        with ExitStack() as undo:
            answer = _start(plan, undo)
            undo.pop_all()
        return answer


def _plan(home: Path, config: Config, simulate: str | None, address: str | None, port: int | None) -> Plan:
    before = _before(home)
    simulate = simulate or config.simulate or (before.simulate if before else None)
    if before is not None and before.simulate != simulate:
        raise Conflict("raysched runs here with other GPUs: run `raysched down` first")
    ray = before.ray if before else _given_ray(config, address, simulate)
    host = config.gateway.host
    number = config.gateway.port if port is None else port
    slurm, k8s = _slurm(config), _k8s(config)
    settings = Settings(
        folder=str(homes.prepare(data_folder(config))),
        host=host,
        port=_port_from_before(before, number) if before else free_port(host, number),
        simulate=simulate,
        silence=config.policy.silence / 1000,
        watchdog=_watchdog(config.policy.watchdog),
        sample=config.policy.watchdog.sample / 1000,
        replicas=config.policy.replicas,
        environment=dict(os.environ) | {"RAYSCHED_HOME": str(home)},
        hosts=tuple(compile_host(spec) for spec in config.backends.vm.hosts),
        store=config.store.url,
        backends=("ray", "vm", *(("slurm",) if slurm is not None else ()), *k8s),
        slurm=slurm,
        k8s=k8s,
    )
    return Plan(home, settings, _token(home), ray, before, _count(simulate))


def _k8s(config: Config) -> dict[str, KubeSite]:
    """The Kubernetes clusters of the configuration, by backend."""
    clusters = config.backends.k8s.each() if config.backends.k8s is not None else {}
    return {
        backend_of(name): KubeSite(
            kubeconfig=one.kubeconfig,
            context=one.context,
            namespace=one.namespace,
            image=one.image,
            patience=one.pull_timeout,
            kai=one.kai,
            kueue=one.kueue,
        )
        for name, one in clusters.items()
    }


def _slurm(config: Config) -> SlurmSite | None:
    """The Slurm site of the configuration. Raises ConfigError where its folder can't be made."""
    site = config.backends.slurm
    if site is None:
        return None
    folder = Path(site.folder).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"backends.slurm.folder: {folder} can't be made ({runner.words(error).lower()}): name one that "
            "this machine and the nodes of the site share"
        ) from None
    return SlurmSite(
        folder=str(folder),
        login=site.login,
        rest=site.rest,
        token_file=site.token_file,
        python=site.python,
        account=site.account,
        partition=site.partition,
        qos=site.qos,
        simulate=site.simulate,
        gpu_memory=site.gpu_memory,
    )


def _watchdog(settings: Watchdog) -> Policy:
    return Policy(settings.over_memory, settings.orphans, settings.without_lease, settings.grace)


def _port_from_before(before: Record, port: int) -> int:
    """`port`, or for 0 the one that was taken then: the gateway may still listen there."""
    return port or urlsplit(before.gateway).port or 0


def _before(home: Path) -> Record | None:
    """The system that was started before and lacks something now. What is left of one whose Ray is dead, or
    never was whole, is ended. Raises AlreadyUp for one that lacks nothing."""
    found = record.read(home)
    if found is None:
        return None
    if _answers(home, found.gateway):
        raise AlreadyUp(f"raysched is up already at {found.gateway}: `raysched down` ends it")
    if homes.ray_alive(found) and (found.ready or found.own is None):
        return found
    homes.clear(home, found)
    return None


def _answers(home: Path, gateway: str) -> bool:
    """Whether the system of this folder is whole. Somebody else's, at the same address, has another token."""
    try:
        Client(gateway, _token(home), patience=0).status()
    except RayschedError:
        return False
    return True


def _given_ray(config: Config, address: str | None, simulate: str | None) -> str | None:
    """The Ray that is to be used, or None to start one. Simulated GPUs need a Ray that counts them, so with
    them a Ray is used only if it was named."""
    named = address or config.backends.ray.address or os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return named
    local = own_ray.local_address()
    running = local if local is not None and system.reachable(local) else None
    if named == "auto" and running is None:
        raise Unreachable("no Ray runs on this machine: start one, or leave the address out")
    return running if named == "auto" or simulate is None else None


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0, if the gateway could listen there. Raises PortBusy."""
    try:
        with listen(host, port) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise PortBusy(
            f"the gateway can't listen on port {port} of {host}: {runner.words(error).lower()}; choose "
            "another with --port, or with gateway.port in raysched.yaml"
        ) from None


def _token(home: Path) -> str:
    """The token from before, so that clients stay valid, or a new one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((home / "gateway.json").read_text(encoding="utf-8"))["token"]
    return secrets.token_urlsafe(32)


def _count(simulate: str | None) -> int | None:
    """How many GPUs to make up. Raises ConfigError for what can't be."""
    if simulate is None:
        return None
    from raysched.gpu.simulated import parse_simulation

    return len(parse_simulation(simulate))


def _start(plan: Plan, undo: ExitStack) -> View:
    if plan.before is not None:
        return _populate(plan, plan.before)
    if plan.ray is not None:
        undo.callback(record.delete, plan.home)
        return _populate(plan, _record(plan))
    return _on_own_ray(plan, undo)


def _record(plan: Plan) -> Record:
    """What is to be told of the system; of a Ray of its own nothing yet."""
    return Record(
        gateway=plan.address,
        folder=plan.settings.folder,
        ray=plan.ray or "",
        dashboard=None,
        simulate=plan.settings.simulate,
        own=None,
        at=runner.now(),
    )


def _on_own_ray(plan: Plan, undo: ExitStack) -> View:
    """Start a Ray and the system on it, and all of it again at other ports where somebody was quicker at one,
    such as another `up`, or where Ray did not live to the end of it."""
    for usual in (True, False):
        with suppress(RayLost):
            return _try_own_ray(plan, undo, usual)
    return _try_own_ray(plan, undo, usual=False)


def _try_own_ray(plan: Plan, undo: ExitStack, usual: bool) -> View:
    with held():
        starting = own_ray.spawn(plan.home, plan.gpus, plan.settings.environment, usual=usual)
        ours = replace(_record(plan), ray=starting.address, dashboard=starting.dashboard, own=starting.own)
        undo.callback(homes.clear, plan.home, ours)
    ours.write(plan.home)
    try:
        own_ray.wait_started(starting)
        return _populate(plan, ours)
    except RayLost:
        homes.clear(plan.home, ours)
        raise


def _populate(plan: Plan, found: Record) -> View:
    """Make the system on a Ray that runs, and answer as `up` does."""
    answer = apart(found.own, plan.home / "up.log", _connect_and_create, plan, found)
    replace(found, gateway=plan.address, ready=True).write(plan.home)
    return answer


def _connect_and_create(plan: Plan, found: Record) -> View:
    with ExitStack() as undo:
        system.connect(found.ray)
        undo.callback(system.disconnect)
        if plan.before is None:
            if found.own is None:
                _check_foreign_ray(plan, found.ray)
            else:
                system.end_former_actors()
            undo.callback(system.end_actors)
        _write_endpoint(plan)
        found.write(plan.home)
        system.create(plan.settings)
        status = system.wait_ready(plan.address, plan.token)
        undo.pop_all()
    system.disconnect()
    return _answer(plan, found, status)


def _check_foreign_ray(plan: Plan, address: str) -> None:
    import ray

    if system.is_there():
        raise AlreadyUp(f"raysched is up already on the Ray at {address}, with another state folder")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if plan.gpus is not None and gpus < plan.gpus:
        raise ConfigError(
            f"the Ray at {address} has too few GPUs for --simulate {plan.settings.simulate} ({gpus}): "
            f"start it with --num-gpus={plan.gpus}, or give no address, and a Ray of its own is started"
        )


def _write_endpoint(plan: Plan) -> None:
    content = {"address": plan.address, "token": plan.token}
    for folder in {plan.home, Path(plan.settings.folder)}:
        record.write_private(folder / "gateway.json", content)


def _answer(plan: Plan, found: Record, status: View) -> View:
    token_needed = found.own is not None and os.environ.get("RAY_AUTH_MODE") == "token"
    return {
        "address": plan.address,
        "folder": plan.settings.folder,
        "simulated": status["simulated"],
        "nodes": status["nodes"],
        "gpus": status["gpus"]["total"],
        "ray": {
            "address": found.ray,
            "dashboard": found.dashboard,
            "started": found.own is not None,
            "environment": {"RAY_AUTH_MODE": "token"} if token_needed else {},
        },
    }
