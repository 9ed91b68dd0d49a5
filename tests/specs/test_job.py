"""The job file: users' cases, every problem at once, and what the gateway reads back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysched.errors import FileMissing, Problem, SpecError
from raysched.specs.job import JobSpec, check_job, load_jobs
from raysched.specs.resources import Resources

FILE = Path("job.yaml")


def load(text: str | bytes) -> JobSpec:
    (job,) = load_jobs(FILE, text if isinstance(text, bytes) else text.encode())
    return job


def complaints(text: str) -> list[str]:
    with pytest.raises(SpecError) as refused:
        load_jobs(FILE, text.encode())
    lines = str(refused.value).splitlines()
    assert lines == [str(problem) for problem in refused.value.problems]
    return lines


def complaint(text: str) -> str:
    (line,) = complaints(text)
    return line


def resources(fields: str) -> str:
    return f"name: x\nentrypoint: 'true'\nresources: {{{fields}}}\n"


def test_a_file_with_every_field() -> None:
    """The example of the design, as whole numbers."""
    job = load(
        "name: embed\nentrypoint: python embed.py\nworking_dir: .\nimage: null\nenv: {}\narray: 1\n"
        "resources:\n  gpus: 1\n  gpu_fraction: 0.25\n  gpu_memory: 10GB\n  use_mig: false\n"
        "  mig_profile: null\n  sharing: null\n  isolation: soft\n  gpu_type: [A100, H100]\n  nodes: null\n"
        "  cpus: 4\n  memory: 16GB\nbackend: vm\nqueue: default\npriority: 0\npreemptible: true\n"
        "max_runtime: 2h\nretries: 0\nk8s: {}\n"
    )
    asked = job.resources
    assert (asked.gpu_fraction, asked.gpu_memory, asked.cpus, asked.memory) == (2500, 9537, 40_000, 15_259)
    assert (asked.gpu_type, asked.mode, job.max_runtime) == (("A100", "H100"), "fraction", 7_200_000)


def test_a_file_with_only_an_entrypoint() -> None:
    """It is named after its file, and asks for one whole GPU on this machine."""
    job = load("entrypoint: python train.py\n")
    assert (job.name, job.backend, job.queue, job.array, job.grace) == ("job", "vm", "default", 1, 10_000)
    assert (job.resources.gpus, job.resources.mode) == (1, "exclusive")


def test_several_documents_are_several_jobs() -> None:
    """In the order of the file."""
    jobs = load_jobs(FILE, b"entrypoint: a\n---\nname: second\nentrypoint: b\n")
    assert [job.name for job in jobs] == ["job", "second"]


def test_a_part_of_each_of_several_gpus() -> None:
    """Case spec-01: half of each of three."""
    asked = load(resources("gpus: 3, gpu_fraction: 0.5")).resources
    assert (asked.gpus, asked.gpu_fraction, asked.mode) == (3, 5000, "fraction")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0.5", ["gpus", "gpu_fraction"]),
        ("all", ["gpus", "all", "whole number"]),
        ("'A100:2'", ["gpus", "gpu_type"]),
        ("true", ["gpus", "true"]),
        ("-1", ["gpus", "0 or more"]),
    ],
)
def test_a_gpu_count_that_is_no_whole_number(value: str, words: list[str]) -> None:
    """Case spec-02: refused with file, line and field."""
    line = complaint(resources(f"gpus: {value}"))
    assert line.startswith("job.yaml:3: resources.gpus: ")
    assert all(word in line for word in words)


def test_a_gpu_count_in_quotes() -> None:
    """Case spec-02: quotes do not matter."""
    assert load(resources("gpus: '2'")).resources.gpus == 2


@pytest.mark.parametrize("value", ["10", "10G"])
def test_a_size_that_could_be_two_things(value: str) -> None:
    """Case spec-03: refused with both of them named."""
    line = complaint(resources(f"gpu_memory: {value}"))
    assert all(word in line for word in ("job.yaml:3", "gpu_memory", "GB", "GiB"))


@pytest.mark.parametrize(
    ("value", "profile"),
    [
        ("MIG 3g.40gb", "3g.40gb"),
        ("mig-1g.10gb", "1g.10gb"),
        ("nvidia.com/mig-1g.10gb.me", "1g.10gb+me"),
        ("1g.24gb+me.all", "1g.24gb+me.all"),
        ("1g.24gb-me", "1g.24gb-me"),
    ],
)
def test_a_mig_profile_as_other_tools_write_it(value: str, profile: str) -> None:
    assert load(resources(f"mig_profile: {value}")).resources.mig_profile == profile


@pytest.mark.parametrize("value", ["1c.3g.40gb", "a100_3g.39gb", "mig", "3g.40gb and 1g.10gb", "all"])
def test_what_is_no_mig_profile(value: str) -> None:
    assert "resources.mig_profile" in complaint(resources(f"mig_profile: {value}"))


def test_mps_needs_a_part_of_the_gpu() -> None:
    line = complaint(resources("sharing: mps"))
    assert all(word in line for word in ("sharing", "mps", "gpu_fraction or gpu_memory"))


def test_mps_is_for_one_gpu_a_node() -> None:
    line = complaint(resources("sharing: mps, gpu_fraction: 0.5, gpus: 2"))
    assert all(word in line for word in ("gpus", "mps", "one GPU", "nodes"))
    assert load(resources("sharing: mps, gpu_fraction: 0.5, gpus: 2, nodes: 2")).resources.nodes == 2


@pytest.mark.parametrize("value", ["3g.40gb", "3G.40GB", "3g.39gb", "1g.10gb+me"])
def test_the_name_of_a_mig_profile(value: str) -> None:
    """Case spec-04: as nvidia-smi prints it, whatever the case."""
    asked = load(resources(f"mig_profile: {value}")).resources
    assert (asked.mig_profile, asked.mode) == (value.lower(), "mig")


def test_half_the_name_of_a_mig_profile() -> None:
    """Case spec-04: `3g` alone is refused."""
    assert "resources.mig_profile: '3g'" in complaint(resources("mig_profile: 3g"))


def test_the_same_key_twice() -> None:
    """Case spec-05: refused with both lines; and the other faults of the file are told too."""
    text = (
        "name: twice\nentrypoint: python train.py\nresources:\n  gpu_memory: 8GB\n  cpus: 2\n"
        "  gpu_memory: 40GB\nname: again\nenv:\n  A: 1\n  A: 2\npriority: high\n"
    )
    found = complaints(text)
    assert found[0] == "job.yaml:6: resources.gpu_memory: is here twice: line 4 has it already"
    assert [line.split(": ")[:2] for line in found[1:]] == [
        ["job.yaml:7", "name"],
        ["job.yaml:10", "env.A"],
        ["job.yaml:11", "priority"],
    ]


def test_files_of_other_editors_are_equal() -> None:
    """Case spec-06: a byte order mark and CRLF change no value."""
    body = b"name: bom\nentrypoint: |\n  a\n  b\nresources:\n  gpu_fraction: 0.5\nenv: {A: x}\n"
    crlf = body.replace(b"\n", b"\r\n")
    assert load(body) == load(b"\xef\xbb\xbf" + body) == load(crlf) == load(b"\xef\xbb\xbf" + crlf)


def test_an_entrypoint_of_several_commands() -> None:
    """Case spec-07: one text for one shell, or a list for none."""
    script = 'echo "one $STAGE"; echo two && echo "three ; four"\nhostname\nexit 3\n'
    text = "entrypoint: |\n" + "".join(f"  {line}\n" for line in script.splitlines())
    assert load(text).entrypoint == script
    assert load("entrypoint: [echo, '$STAGE; echo x', 5]\n").entrypoint == ("echo", "$STAGE; echo x", "5")


@pytest.mark.parametrize("value", ["''", "'  '", "[]", "['']", "", "{a: b}", '"a\\0b"'])
def test_an_entrypoint_that_runs_nothing(value: str) -> None:
    """Told with its line."""
    assert complaint(f"name: x\nentrypoint: {value}\n").startswith("job.yaml:2: entrypoint: ")


def test_an_isolation_that_nobody_knows() -> None:
    """Case sharing-02: `strict` is refused, and hard and soft are named."""
    line = complaint(resources("gpu_memory: 4GB, isolation: strict"))
    assert all(word in line for word in ("job.yaml:3", "isolation", "hard", "soft", "strict"))


@pytest.mark.parametrize(
    "name", ["Big simulation (v2) #3", "proj-sub:test1", "a;touch pwned;$(touch pwned2)"]
)
def test_a_name_with_spaces_and_signs(name: str) -> None:
    """Case slurm-05: a name is what people call the job."""
    assert load(f"name: '{name}'\nentrypoint: a\n").name == name


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ('"x\\n#SBATCH --gres=gpu:8"', "line break"),
        ("a" * 300, "128"),
        ("' '", "empty"),
        ('"a\\e[31m"', "character"),
    ],
)
def test_a_name_of_several_lines_or_too_many_characters(value: str, word: str) -> None:
    """Case slurm-05: refused with the reason."""
    line = complaint(f"name: {value}\nentrypoint: a\n")
    assert line.startswith("job.yaml:1: name: ")
    assert word in line


def test_the_environment_is_text() -> None:
    """Numbers and true come as they are written, for a file and for JSON alike."""
    assert load("entrypoint: a\nenv: {A: 010, B: true, C: on, D: ''}\n").env == {
        "A": "010", "B": "true", "C": "on", "D": "",
    }  # fmt: skip
    assert check_job({"entrypoint": "a", "env": {"A": 1, "B": True}}).env == {"A": "1", "B": "true"}


@pytest.mark.parametrize(
    ("variable", "word"),
    [
        ("CUDA_VISIBLE_DEVICES: 0", "the lease decides"),
        ("NVIDIA_VISIBLE_DEVICES: all", "the lease decides"),
        ("RAYSCHED_LEASE: x", "RAYSCHED_"),
        ("TOKEN: secret:HF", "secret"),
        ("A=B: c", "="),
        ("EMPTY:", "''"),
        ("LIST: [a]", "text"),
    ],
)
def test_a_variable_that_can_not_be_set(variable: str, word: str) -> None:
    """Each with its line."""
    line = complaint(f"entrypoint: a\nenv:\n  OK: 1\n  {variable}\n")
    assert line.startswith(f"job.yaml:4: env.{variable.split(':', maxsplit=1)[0]}: ")
    assert word in line


def test_no_secret_is_repeated_in_a_message() -> None:
    """What is wrong with a variable is told without its value."""
    assert "hunter2" not in complaint("entrypoint: a\nenv: {RAYSCHED_PASSWORD: hunter2}\n")


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("entrypont: b", "did you mean entrypoint?"),
        ("gpus: 2", "belongs under resources"),
        ("gpu_fraction: 0.5", "belongs under resources"),
        ("backend: slrum", "did you mean slurm?"),
        ("resources: {gpu_mem: 5GB}", "did you mean gpu_memory?"),
        ("resources: {sharing: timeslice}", "did you mean time_slice?"),
        ("vm: {grase: 5s}", "did you mean grace?"),
        ("zzz: 1", "use name, "),
    ],
)
def test_a_misspelt_field_gets_a_suggestion(field: str, hint: str) -> None:
    """The nearest name, or where it belongs."""
    assert hint in complaint(f"entrypoint: a\n{field}\n")


def test_all_problems_of_a_file_come_at_once() -> None:
    """In the order of their lines, over documents and syntax."""
    text = (
        "nam: x\nentrypoint: a\nresources:\n  gpu_fracton: 1\n  gpu_fraction: 1.5\n  nodes: 2\n"
        "  isolation: strict\nbackend: slrm\npriority: 5000\npreemptible: yes\nmax_runtime: 12:00:00\n"
        "array: 0\nqueue: a b\nretries: -1\nvm: 3\n---\nentrypoint: b\nimage: -c\n---\n]\n"
    )
    places = [line.split(": ")[:2] for line in complaints(text)]
    assert places == [
        ["job.yaml:1", "nam"],
        ["job.yaml:4", "resources.gpu_fracton"],
        ["job.yaml:5", "resources.gpu_fraction"],
        ["job.yaml:6", "resources.nodes"],
        ["job.yaml:7", "resources.isolation"],
        ["job.yaml:8", "backend"],
        ["job.yaml:9", "priority"],
        ["job.yaml:10", "preemptible"],
        ["job.yaml:11", "max_runtime"],
        ["job.yaml:12", "array"],
        ["job.yaml:13", "queue"],
        ["job.yaml:14", "retries"],
        ["job.yaml:15", "vm"],
        ["job.yaml:18", "image"],
        ["job.yaml:20:1", "a value is missing or a bracket is not closed"],
    ]


def test_a_fault_hides_no_fault_elsewhere_and_makes_up_none() -> None:
    """`nodes: 2` is not compared with a number of GPUs that is wrong itself."""
    assert len(complaints(resources("gpus: x, nodes: 2"))) == 1


@pytest.mark.parametrize(
    ("fields", "blamed", "words"),
    [
        ("gpu_fraction: 0.5, mig_profile: 1g.10gb", "gpu_fraction", ["MIG", "mig_profile"]),
        ("gpu_memory: 5GB, mig_profile: 1g.10gb", "gpu_memory", ["mig_profile"]),
        ("use_mig: false, mig_profile: 1g.10gb", "use_mig", ["mig_profile"]),
        ("use_mig: true", "use_mig", ["mig_profile", "gpu_memory"]),
        ("sharing: mps, mig_profile: 1g.10gb", "sharing", ["MIG"]),
        ("sharing: mig", "sharing", ["mig_profile"]),
        ("sharing: fraction", "sharing", ["gpu_fraction", "gpu_memory"]),
        ("sharing: exclusive, gpu_fraction: 0.5", "sharing", ["exclusive", "whole"]),
        ("gpu_fraction: 1, gpu_memory: 5GB", "gpu_fraction", ["whole"]),
        ("gpus: 3, nodes: 2", "nodes", ["gpus", "3", "2"]),
        ("gpus: 0, gpu_fraction: 0.5", "gpu_fraction", ["gpus: 0"]),
        ("gpus: 0, gpu_type: A100", "gpu_type", ["gpus: 0"]),
        ("gpus: 0, use_mig: true", "use_mig", ["gpus: 0"]),
        ("gpu_type: []", "gpu_type", ["empty"]),
        ("gpu_type: 'A100, H100'", "gpu_type", ["list"]),
        ("nodes: 0", "nodes", ["1 or more"]),
    ],
)
def test_contradictions_are_explained(fields: str, blamed: str, words: list[str]) -> None:
    """The field to blame and those it can't stand with."""
    line = complaint(resources(fields))
    assert line.startswith(f"job.yaml:3: resources.{blamed}: ")
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ("gpus: 0", "exclusive"),
        ("gpus: 0, nodes: 2, cpus: 1", "exclusive"),
        ("gpu_fraction: 1.0", "exclusive"),
        ("gpu_memory: 5GB", "fraction"),
        ("gpu_fraction: 0.5, gpu_memory: 5GB", "fraction"),
        ("sharing: time_slice, gpu_memory: 5GB", "time_slice"),
        ("use_mig: true, gpu_memory: 5GB", "mig"),
        ("use_mig: false, gpu_fraction: 0.5", "fraction"),
    ],
)
def test_how_a_gpu_is_shared_follows_from_the_fields(fields: str, mode: str) -> None:
    """`sharing` need not be written."""
    assert load(resources(fields)).resources.mode == mode


@pytest.mark.parametrize("image", ["python:3.12", "ghcr.io:443/a/b@sha256:0f", "localhost/x_y-z:1"])
def test_an_image_has_a_name(image: str) -> None:
    assert load(f"entrypoint: a\nimage: {image}\n").image == image


@pytest.mark.parametrize("image", ["--privileged", "a b", "''", "/etc", "'a\tb'"])
def test_what_an_engine_would_take_for_something_else_is_no_image(image: str) -> None:
    """An option, two words, or nothing."""
    assert "is no name of an image" in complaint(f"entrypoint: a\nimage: {image}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{any: thing}", "k8s.any: is no field here"),
        ("{ray: maybe}", "k8s.ray: "),
        ("{service_account: a b}", "k8s.service_account: 'a b' is no name of Kubernetes"),
        ("{node_selector: {a: b c}}", "k8s.node_selector.a: 'b c' can't be the value of a label"),
        ("{labels: {raysched.io/system: x}}", "is set by raysched or by Kubernetes"),
        ("{annotations: {gpu-fraction: '0.9'}}", "k8s.annotations.gpu-fraction: asks for GPUs"),
        ("{labels: {kai.scheduler/queue: x}}", "names a queue: use resources, queue, and backends.k8s"),
        ("{labels: {job-name: x}}", "is set by raysched or by Kubernetes"),
        ("{tolerations: [a]}", "k8s.tolerations: must be a list of tolerations"),
        ("{pod: {restartPolicy: Always}}", "k8s.pod.restartPolicy: is set by raysched"),
        ("{pod: {containers: [{name: other}]}}", "k8s.pod.containers[0].name: must be main"),
        ("{pod: {containers: [{name: main, image: a}]}}", "k8s.pod.containers[0].image: is set by raysched"),
        (
            "{pod: {containers: [{name: main, env: [{name: NVIDIA_VISIBLE_DEVICES, value: all}]}]}}",
            "k8s.pod.containers[0].env[0].name: NVIDIA_VISIBLE_DEVICES is set by raysched",
        ),
        (
            "{pod: {containers: [{name: main, resources: {limits: {nvidia.com/gpu: 8}}}]}}",
            "k8s.pod.containers[0].resources.limits.nvidia.com/gpu: is set by raysched",
        ),
        (
            "{pod: {containers: [{name: main, volumeMounts: [{name: a, mountPath: /raysched/work}]}]}}",
            "k8s.pod.containers[0].volumeMounts[0].mountPath: /raysched is raysched's own",
        ),
        (
            "{pod: {volumes: [{name: raysched-work}]}}",
            "k8s.pod.volumes[0].name: is a name that raysched uses",
        ),
    ],
)
def test_what_is_said_to_kubernetes_is_checked(words: str, message: str) -> None:
    """Case kubernetes-05: what raysched sets is refused with its path."""
    assert message in complaint(f"entrypoint: a\nbackend: k8s\nk8s: {words}\n")


def test_a_variable_may_refer_to_a_secret_of_kubernetes() -> None:
    job = load("entrypoint: a\nbackend: k8s\nenv: {TOKEN: secret:hub/token}\n")
    assert job.env == {"TOKEN": "secret:hub/token"}
    assert "env: TOKEN refers to a Secret of Kubernetes" in complaint(
        "entrypoint: a\nenv: {TOKEN: secret:hub/x}\n"
    )
    assert "must be secret:NAME/KEY" in complaint("entrypoint: a\nbackend: k8s\nenv: {TOKEN: secret:hub}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{signal: KILL@60}", "slurm.signal: 'KILL@60' must be one of USR1"),
        ("{signal: USR1}", "slurm.signal: 'USR1' must be one of USR1"),
        ("{options: [--gres=gpu:8]}", "slurm.options: --gres is set by raysched"),
        ("{options: [--time=1]}", "slurm.options: --time is set by raysched"),
        ("{options: [--arra=0-3]}", "slurm.options: --arra (--array) is set by raysched"),
        ("{options: [--version]}", "slurm.options: --version submits nothing: remove it"),
        ("{options: [--tes]}", "slurm.options: --tes (--test-only) submits nothing: remove it"),
        ("{ray: maybe}", "slurm.ray: 'maybe' must be true, false or join"),
        ("{options: ['--nice=1\\n--gres=gpu:8']}", "slurm.options: "),
        ("{options: [-n5]}", "must be one option of sbatch on one line"),
        ("{options: --exclusive}", "slurm.options: must be a list of options"),
        ("{partition: ''}", "slurm.partition: "),
        ("{partion: a}", "slurm.partion: is no field here; did you mean partition?"),
    ],
)
def test_what_is_said_to_slurm_is_checked(words: str, message: str) -> None:
    """Nothing that raysched sets can be set a second time, and no line adds another."""
    fields = words.replace("\\n", "\\n")
    assert message in complaint(f"entrypoint: a\nslurm: {fields.replace(chr(39), chr(34))}\n")


def test_the_grace_is_that_of_the_backend() -> None:
    """Ten seconds where nothing is said."""
    text = "entrypoint: a\nvm: {grace: 3s}\nray: {grace: 0s}\nbackend: "
    assert [load(text + backend).grace for backend in ("vm", "ray", "auto")] == [3000, 0, 3000]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n"])
def test_a_file_without_a_job(text: str) -> None:
    """Says what to write."""
    assert "entrypoint" in complaint(text)


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "3\n"])
def test_a_document_that_holds_no_fields(text: str) -> None:
    """Says what a field looks like."""
    assert "`field: value`" in complaint(text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Named, with another exit code than a wrong file; a folder is none."""
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(FileMissing, match=str(path)):
            load_jobs(path)


def test_a_file_on_the_disk(tmp_path: Path) -> None:
    """Read, and named after."""
    (tmp_path / "train.xl.yaml").write_text("entrypoint: a\n")
    assert load_jobs(tmp_path / "train.xl.yaml")[0].name == "train.xl"


def test_json_is_checked_in_the_same_words() -> None:
    """The gateway names where in its body a fault is."""
    with pytest.raises(SpecError) as refused:
        check_job({"entrypoint": "a", "resources": {"gpus": 0.5}}, "jobs[1].spec")
    assert str(refused.value).startswith("jobs[1].spec.resources.gpus: must be a whole number")


words = st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
names = (
    st.sampled_from([*JobSpec.model_fields, "gpus", "gpu_fraction", "gpu_memory", "nodes", "cpus"]) | words
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4)
)
SCRAPS = [
    "entrypoint: a\n",
    "resources:\n",
    "  gpus: 2\n",
    "env: {A: ",
    '"\\UFFFFFFFF"',
    "\\ud800",
    "%YAML 9.9\n",
]
SCRAPS += [
    "\t",
    "  - ",
    "{",
    "}",
    "[",
    "]\n",
    "&a ",
    "*a",
    "!!x ",
    "'",
    '"',
    "|\n",
    "---\n",
    "? ",
    "<<: ",
    ": ",
]
SCRAPS += ["\x00", "\r", "\ufeff", "\u2028"]
scraps = st.sampled_from(SCRAPS)
files = st.lists(scraps | st.text(max_size=5), max_size=12).map(
    lambda parts: "".join(parts).encode("utf-8", "replace")
)


@given(files | st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_the_loader_raises_nothing_but_spec_errors(text: bytes) -> None:
    """Whatever stands in a file; and each problem is one line that names the file."""
    problems: tuple[Problem, ...] = ()
    try:
        load_jobs(FILE, text)
    except SpecError as error:
        problems = error.problems
    assert all(str(problem).startswith("job.yaml:") and "\n" not in str(problem) for problem in problems)


@given(values)
@settings(deadline=None, max_examples=300)
def test_json_raises_nothing_but_spec_errors(value: object) -> None:
    """Whatever is posted to the gateway; and what passes reads back as the same job."""
    try:
        job = check_job(value)
    except SpecError:
        return
    assert check_job(job.as_json()) == job


def sizes(units: str = "GB") -> st.SearchStrategy[str]:
    return st.integers(1, 200).map(lambda count: f"{count}{units}")


jobs = st.fixed_dictionaries(
    {"entrypoint": st.sampled_from(["a", ["a", "b"]])},
    optional={
        "array": st.integers(1, 100_000),
        "max_runtime": st.integers(1, 10**6).map(lambda seconds: f"{seconds}s"),
        "env": st.dictionaries(st.sampled_from("ABC"), st.just("x")),
        "backend": st.sampled_from(["ray", "k8s", "slurm", "vm", "auto"]),
        "vm": st.fixed_dictionaries({}, optional={"grace": st.just("500ms")}),
        "resources": st.fixed_dictionaries(
            {},
            optional={
                "gpus": st.integers(0, 8),
                "gpu_fraction": st.floats(0.0001, 1),
                "gpu_memory": sizes(),
                "use_mig": st.booleans(),
                "gpu_type": st.sampled_from(["A100", ["A100", "H100"]]),
                "cpus": st.floats(0, 64),
                "memory": sizes("GiB"),
            },
        ),
    },
)


@given(jobs)
@settings(deadline=None)
def test_a_checked_job_reads_back_as_the_same(value: dict[str, object]) -> None:
    """The gateway checks what the command line has checked."""
    try:
        job = check_job(value)
    except SpecError:
        return
    assert check_job(job.as_json()) == job
    assert JobSpec.model_validate(job.model_dump()) == job


def test_every_field_stands_in_the_page_on_the_job_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
    names = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))
    told = set(re.findall(r"`(\w+)`", names))
    fields = {*JobSpec.model_fields, *Resources.model_fields} - {"resources"}
    assert fields <= told, fields - told
