"""What a launch is in Kubernetes' words, and that nothing in a job file gets out of its place there."""

from __future__ import annotations

import copy
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import ordered
from running import wait_until

from raysched.backends.base import EngineRefused
from raysched.backends.kube.command import SHELL
from raysched.backends.kube.manifest import Target, manifests
from raysched.backends.kube.names import name_of
from raysched.backends.kube.ray_job import END, GROUP, script
from raysched.core.site import NOWHERE
from raysched.core.work import Launch, Run
from raysched.errors import SpecError
from raysched.specs.job import check_job

TARGET = Target("team-a", "0a1b2c")
RUN = Run("job-12ab", 3, 0)
texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=30)
names = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


def launch(entrypoint: str | tuple[str, ...] = "true", **fields: Any) -> Launch:
    env = tuple(sorted(fields.pop("env", {}).items()))
    name, package = fields.pop("name", "job"), fields.pop("package", None)
    return ordered(Launch(RUN, "job-12ab.3", NOWHERE, name, entrypoint, env, package), **fields)


def job_of(launch: Launch, parts: int = 0) -> dict[str, Any]:
    return manifests(launch, TARGET, parts)[0]


def main_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def put_in(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of `$(NAME)` and `$$` in a command or in a variable's value (its expand.go)."""
    done, at = "", 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            done, at = done + text[at], at + 1
        elif text[at + 1] == "$":
            done, at = done + "$", at + 2
        elif text[at + 1] == "(" and ")" in text[at:]:
            end = text.index(")", at)
            name = text[at + 2 : end]
            done, at = done + variables.get(name, f"$({name})"), end + 1
        else:
            done, at = done + "$", at + 1
    return done


def value_of(job: dict[str, Any], name: str) -> Any:
    (found,) = [variable for variable in main_of(job)["env"] if variable["name"] == name]
    return found


# ---------------------------------------------------------------- safety


@given(
    texts,
    st.one_of(texts, st.lists(texts, min_size=1, max_size=3).map(tuple)),
    st.dictionaries(st.sampled_from(["A", "B", "NAME"]), texts),
)
def test_no_text_of_a_job_file_escapes_its_place_in_a_manifest(
    name: str, entrypoint: str | tuple[str, ...], env: dict[str, str]
) -> None:
    """Case spec-07: names, commands and variables arrive as they are, and nothing else depends on them."""
    env = {key: value for key, value in env.items() if not value.startswith("secret:")}
    made = job_of(launch(entrypoint, name=name, env=env))
    assert json.loads(json.dumps(made)) == made
    command = [put_in(word, env) for word in main_of(made)["command"]]
    assert command == (
        ["/bin/sh", "-c", SHELL, "sh", entrypoint] if isinstance(entrypoint, str) else list(entrypoint)
    )
    assert {key: put_in(value_of(made, key)["value"], env) for key in env} == env
    plain = job_of(launch("true", name="job", env=dict.fromkeys(env, "x")))
    for job in (made, plain):
        main = main_of(job)
        del main["command"]
        main["env"] = [variable["name"] for variable in main["env"]]
        for part in (job, job["spec"]["template"]):
            del part["metadata"]["annotations"]["raysched.io/job-name"]
    assert made == plain


WAYS: dict[str, dict[str, Any]] = {
    "plugin": {"resource": "nvidia.com/gpu.shared", "share": 2_500},
    "kai": {"way": "kai", "resource": "nvidia.com/gpu", "share": 2_500},
    "hami": {"way": "hami", "resource": "nvidia.com/gpu", "share": 2_500, "gpu_memory": 20_480},
    "volcano": {"way": "volcano", "resource": "volcano.sh/vgpu-number", "share": 2_500, "gpu_memory": 20_480},
    "dra": {
        "way": "dra",
        "resource": "mig.nvidia.com",
        "type": 'NVIDIA "A100"\\-MIG-1g.10gb',
        "share": 10_000,
    },
}
WITH_QUEUES = replace(TARGET, kai={"default": "team-a"}, kueue={"default": "user-queue"})
keys = st.one_of(
    texts,
    st.sampled_from(["gpu-fraction", "gpu-memory", "nvidia.com/vgpu-mode", "kai.scheduler/queue", "a/b"]),
)


@given(
    st.sampled_from(sorted(WAYS)),
    st.dictionaries(keys, texts, max_size=3),
    st.dictionaries(keys, texts, max_size=3),
    texts,
)
def test_no_label_or_annotation_of_a_job_file_asks_for_more_of_a_gpu(
    way: str, labels: dict[str, str], annotations: dict[str, str], queue: str
) -> None:
    """Case spec-07: whichever way shares are asked for, and whatever the queue is called."""
    made = launch(kind="gpu", count=1, **WAYS[way])
    assert made.order is not None
    ours = manifests(made, WITH_QUEUES)
    try:
        words = {"labels": labels, "annotations": annotations}
        spec = check_job({"entrypoint": "true", "backend": "k8s", "k8s": words})
    except SpecError:
        return
    options = tuple(spec.as_json()["k8s"].items())
    theirs = manifests(replace(made, order=replace(made.order, options=options, queue=queue)), WITH_QUEUES)
    assert_within(ours, theirs)
    for part, own in (("labels", labels), ("annotations", annotations)):
        before = ours[0]["spec"]["template"]["metadata"][part]
        after = theirs[0]["spec"]["template"]["metadata"][part]
        assert {key: value for key, value in after.items() if key not in own} == before
        del theirs[0]["spec"]["template"]["metadata"][part], ours[0]["spec"]["template"]["metadata"][part]
    assert theirs == ours


def test_the_name_of_a_gpu_stays_one_string_in_what_is_claimed() -> None:
    """A node may call its GPUs what it likes: an expression has it as a string, whatever is in it."""
    _, template = manifests(launch(kind="gpu", count=1, **WAYS["dra"]), TARGET)
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    expressions = [one["cel"]["expression"] for one in request["exactly"]["selectors"]]
    name = expressions[1].removeprefix("device.attributes['gpu.nvidia.com'].productName == ")
    assert f"{json.loads(name)}-MIG-1g.10gb" == WAYS["dra"]["type"]


def test_without_a_queue_of_kai_scheduler_a_share_of_it_is_refused() -> None:
    with pytest.raises(EngineRefused, match=r"no queue of it serves default: name one under backends"):
        manifests(launch(kind="gpu", count=1, **WAYS["kai"]), TARGET)


def test_a_gang_has_room_for_all_before_kai_scheduler_starts_one() -> None:
    job, *_ = manifests(launch(kind="gpu", count=1, nodes=2, **WAYS["kai"]), WITH_QUEUES)
    assert job["metadata"]["annotations"]["kai.scheduler/batch-min-member"] == "2"
    assert job["metadata"]["labels"]["kai.scheduler/queue"] == "team-a"


values = st.recursive(
    st.one_of(texts, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(names, inner, max_size=2)),
    max_leaves=6,
)
PODS = (
    "restartPolicy containers initContainers volumes tolerations hostNetwork subdomain nodeSelector affinity"
)
pod_fields = st.sampled_from([*PODS.split(), "shareProcessNamespace", "securityContext", "unknown"])
mains = st.dictionaries(
    st.sampled_from(["name", "image", "command", "args", "env", "resources", "volumeMounts", "tty", "x"]),
    st.one_of(st.just("main"), values),
)
overlays = st.dictionaries(pod_fields, st.one_of(values, st.lists(mains, max_size=2)), max_size=4)


@given(overlays, st.dictionaries(texts, texts, max_size=2), st.dictionaries(texts, texts, max_size=2))
def test_no_overlay_changes_what_raysched_set(
    pod: dict[str, Any], labels: dict[str, str], selector: dict[str, str]
) -> None:
    """Case kubernetes-05: whatever is laid over a pod is refused, or stands beside ours."""
    try:
        words = {"pod": pod, "labels": labels, "node_selector": selector}
        spec = check_job({"entrypoint": "true", "backend": "k8s", "k8s": words})
        options = spec.as_json()["k8s"]
        made = job_of(launch(kind="gpu", count=2, resource="nvidia.com/gpu", memory=2048, **options), 2)
    except (SpecError, EngineRefused):
        return
    ours = job_of(launch(kind="gpu", count=2, resource="nvidia.com/gpu", memory=2048), 2)
    assert_within(ours, made)
    assert len(made["spec"]["template"]["spec"]["containers"]) == 1


def assert_within(ours: Any, made: Any) -> None:
    """All of `ours` is in `made`, in its place."""
    if isinstance(ours, dict):
        assert isinstance(made, dict)
        for key, value in ours.items():
            assert_within(value, made[key])
    elif isinstance(ours, list):
        assert isinstance(made, list)
        assert len(made) >= len(ours)
        for value, there in zip(ours, made, strict=False):
            assert_within(value, there)
    else:
        assert made == ours


@given(st.lists(st.tuples(texts, st.integers(1, 9)), min_size=2, max_size=4, unique=True))
def test_no_two_runs_have_one_name(runs: list[tuple[str, int]]) -> None:
    made = [name_of(Run(job, attempt, 0), "0a1b2c") for job, attempt in runs]
    assert len(set(made)) == len(made)
    assert all(len(name) <= 52 and name.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == "" for name in made)
    assert name_of(RUN, "another") != name_of(RUN, "0a1b2c")


# ---------------------------------------------------------------- what is where


def test_a_manifest_holds_what_was_asked_for() -> None:
    """Case kubernetes-05."""
    overlay = {
        "containers": [
            {
                "name": "main",
                "env": [{"name": "FROM_OVERLAY", "value": "1"}],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "securityContext": {"runAsUser": "1000"},
    }
    made = job_of(
        launch(
            "env",
            env={"FROM_SPEC": "1", "TOKEN": "secret:hub/token"},
            kind="gpu",
            type="NVIDIA-A100-SXM4-80GB",
            count=1,
            resource="nvidia.com/gpu",
            cpus=15_000,
            memory=2048,
            limit=3_600_000,
            service_account="trainer",
            node_selector={"zone": "a"},
            tolerations=[{"key": "team", "operator": "Exists"}],
            labels={"team": "vision"},
            grace="30s",
            pod=overlay,
        )
    )
    pod, main = made["spec"]["template"]["spec"], main_of(made)
    assert main["resources"] == {
        "requests": {"cpu": "1500m", "memory": "2048Mi"},
        "limits": {"memory": "2048Mi", "nvidia.com/gpu": "1"},
    }
    assert value_of(made, "FROM_SPEC") == {"name": "FROM_SPEC", "value": "1"}
    assert value_of(made, "FROM_OVERLAY") == {"name": "FROM_OVERLAY", "value": "1"}
    assert value_of(made, "TOKEN")["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert [mount["mountPath"] for mount in main["volumeMounts"]] == ["/raysched/work", "/scratch"]
    assert pod["nodeSelector"] == {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "team", "operator": "Exists"},
    ]
    assert pod["securityContext"] == {"runAsUser": 1000}
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("trainer", True)
    assert (pod["activeDeadlineSeconds"], pod["terminationGracePeriodSeconds"]) == (3600, 30)
    assert made["spec"]["template"]["metadata"]["labels"]["team"] == "vision"
    assert made["spec"]["backoffLimit"] == 0


def test_a_job_on_several_nodes_is_an_indexed_job_whose_pods_find_each_other() -> None:
    job, service = manifests(launch(nodes=2, kind="gpu", count=1, resource="nvidia.com/gpu"), TARGET)
    name = job["metadata"]["name"]
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    assert service["metadata"]["name"] == name == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert value_of(job, "MASTER_ADDR")["value"] == f"{name}-0.{name}"
    assert value_of(job, "RAYSCHED_NODE_ADDRESSES")["value"] == f"{name}-0.{name},{name}-1.{name}"
    for variable in ("RAYSCHED_NODE_RANK", "NODE_RANK", "RANK", "PET_NODE_RANK"):
        assert "job-completion-index" in value_of(job, variable)["valueFrom"]["fieldRef"]["fieldPath"]
    assert value_of(job, "WORLD_SIZE")["value"] == "2"


def test_a_working_directory_is_unpacked_before_the_command_starts() -> None:
    pod = job_of(launch(package="d" * 64), 3)["spec"]["template"]["spec"]
    (first,) = pod["initContainers"]
    assert "tar -xzf -" in first["command"][2]
    assert pod["containers"][0]["workingDir"] == "/raysched/work"
    sources = pod["volumes"][1]["projected"]["sources"]
    assert [source["configMap"]["items"][0]["path"] for source in sources] == [
        "part-000",
        "part-001",
        "part-002",
    ]


def test_a_mixed_mig_node_is_found_by_its_whole_gpus_product() -> None:
    mixed = launch(kind="gpu", count=1, type="NVIDIA-A100-MIG-1g.10gb", resource="nvidia.com/mig-1g.10gb")
    single = launch(kind="gpu", count=1, type="NVIDIA-A100-MIG-1g.10gb", resource="nvidia.com/gpu")
    selectors = [job_of(one)["spec"]["template"]["spec"]["nodeSelector"] for one in (mixed, single)]
    assert [one["nvidia.com/gpu.product"] for one in selectors] == ["NVIDIA-A100", "NVIDIA-A100-MIG-1g.10gb"]


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ({"volums": []}, "k8s.pod.volums: is no field that Kubernetes knows"),
        ({"containers": [{"name": "main", "envs": []}]}, "k8s.pod.containers[0].envs: is no field"),
        (
            {"securityContext": {"runAsUser": "root"}},
            "k8s.pod.securityContext.runAsUser: must be a whole number",
        ),
        ({"hostNetwork": "yes"}, "k8s.pod.hostNetwork: must be true or false"),
        (
            {"containers": [{"name": "main", "env": [{"name": "A", "value": "2"}]}]},
            "k8s.pod.containers[0].env[0].name: A is there already",
        ),
    ],
)
def test_an_overlay_that_can_not_be_is_refused_with_its_path(overlay: dict[str, Any], said: str) -> None:
    """Case kubernetes-05."""
    before = copy.deepcopy(overlay)
    with pytest.raises(EngineRefused) as refused:
        job_of(launch(env={"A": "1"}, pod=overlay))
    assert refused.value.final
    assert said in refused.value.reason
    assert overlay == before


def test_without_any_image_a_job_is_refused() -> None:
    with pytest.raises(EngineRefused, match=r"image: names none, and neither does backends.k8s.image"):
        job_of(launch(image=None))


# ---------------------------------------------------------------- Ray jobs


def ray_pods(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The templates of head, workers and submitter."""
    rays = job["spec"]["rayClusterSpec"]
    (workers,) = rays["workerGroupSpecs"]
    return rays["headGroupSpec"]["template"], workers["template"], job["spec"]["submitterPodTemplate"]


def test_a_ray_job_is_a_head_and_workers_with_the_same_devices() -> None:
    asked = {"nodes": 3, "kind": "gpu", "count": 1, "resource": "nvidia.com/mig-1g.10gb", "memory": 2048}
    pod = {"imagePullSecrets": [{"name": "hub"}], "volumes": [{"name": "scratch", "emptyDir": {}}]}
    plain = launch(env={"A": "1", "TOKEN": "secret:hub/token"}, package="d" * 64, pod=pod, **asked)
    made = job_of(launch(env={"A": "1"}, package="d" * 64, pod=pod, ray=True, **asked), 1)
    head, worker, submitter = ray_pods(made)
    for template, role in ((head, "head"), (worker, "worker")):
        (main,) = template["spec"]["containers"]
        assert "command" not in main
        assert main["resources"]["limits"] == {"memory": "2048Mi", "nvidia.com/mig-1g.10gb": "1"}
        assert {"name": "A", "value": "1"} in main["env"]
        assert "RANK" not in {variable["name"] for variable in main["env"]}
        assert template["metadata"]["labels"]["raysched.io/role"] == role
        assert template["spec"]["initContainers"]
    (workers,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (workers["replicas"], workers["rayStartParams"]) == (2, {"num-gpus": "1"})
    assert submitter["spec"]["imagePullSecrets"] == [{"name": "hub"}]
    assert "limits" not in submitter["spec"]["containers"][0]["resources"]
    assert (made["spec"]["backoffLimit"], made["spec"]["submitterConfig"]) == (0, {"backoffLimit": 0})
    assert made["metadata"]["name"] == job_of(plain)["metadata"]["name"]
    assert len(made["metadata"]["name"]) <= 47
    alone = job_of(launch(ray=True))["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in alone


@given(st.one_of(texts, st.lists(texts, min_size=1, max_size=3).map(tuple)))
def test_no_entrypoint_of_a_ray_job_gets_out_of_its_place(entrypoint: str | tuple[str, ...]) -> None:
    """It is in one annotation of the head, and nowhere else."""
    made, other = job_of(launch(entrypoint, ray=True)), job_of(launch("true", ray=True))
    for job in (made, other):
        annotations = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["annotations"]
        annotations.pop("raysched.io/entrypoint")
    assert made == other


@pytest.mark.parametrize("as_list", [False, True])
def test_a_driver_is_told_to_end_and_waited_for(tmp_path: Path, as_list: bool) -> None:
    """What the pods' shells do, done by a real one."""
    group, work = tmp_path / "group", tmp_path / "it's here"
    work.mkdir()
    program = "trap 'echo saved >saved; exit 3' TERM; echo begun >begun; while :; do sleep 0.05; done"
    entrypoint = ("sh", "-c", program) if as_list else program
    (tmp_path / "run").write_text(script(entrypoint, "work").replace(GROUP, "group"))
    (tmp_path / "work").symlink_to(work)
    driver = subprocess.Popen(["sh", str(tmp_path / "run")], cwd=tmp_path, start_new_session=True)
    try:
        wait_until((work / "begun").exists, "it has begun", 60)
        ender = subprocess.Popen(["sh", "-c", END.replace(GROUP, str(group))])
        assert driver.wait(timeout=60) == 3
        assert ender.wait(timeout=60) == 0
    finally:
        driver.kill()
    assert (work / "saved").exists()
    again = subprocess.run(["sh", "-c", END.replace(GROUP, str(group))], timeout=60, check=False)
    assert again.returncode == 0


def test_a_ray_job_has_shares_in_every_way_and_waits_in_the_queues_of_the_cluster() -> None:
    """As any job does; but what submits is not KAI Scheduler's, as it comes after the others."""
    for way in ("plugin", "hami", "volcano", "dra", "kai"):
        asked = launch(kind="gpu", count=1, nodes=2, ray=True, **WAYS[way])
        made = manifests(asked, WITH_QUEUES)
        beside = ["ResourceClaimTemplate"] if way == "dra" else []
        assert [one["kind"] for one in made] == ["RayJob", *beside]
        plain, *_ = manifests(launch(kind="gpu", count=1, **WAYS[way]), WITH_QUEUES)
        assert made[0]["metadata"]["labels"] == plain["metadata"]["labels"]
        *members, submitter = ray_pods(made[0])
        for pod in members:
            assert pod["metadata"]["labels"]["kai.scheduler/queue"] == "team-a"
            assert pod["spec"]["schedulerName"] == "kai-scheduler"
            gpus = plain["spec"]["template"]["spec"]["containers"][0]["resources"]
            assert pod["spec"]["containers"][0]["resources"] == gpus
        assert "kai" not in json.dumps(submitter)
        assert "gpu-fraction" not in json.dumps(submitter)
        assert submitter["spec"]["tolerations"] == members[0]["spec"]["tolerations"]
    with pytest.raises(EngineRefused, match="no queue of it serves"):
        manifests(launch(kind="gpu", count=1, ray=True, **WAYS["kai"]), TARGET)
