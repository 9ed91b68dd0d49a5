"""The configuration file: which one is read, its defaults, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysched.errors import ConfigError, FileMissing
from raysched.specs.config import Config, load_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "raysched.yaml"


def complaints(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(file, {})
    assert len(refused.value.problems) == len(str(refused.value).splitlines())
    return str(refused.value).splitlines()


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    """This machine, an own Ray, loopback."""
    config = load_config(None, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert config == Config()
    assert (config.gateway.host, config.gateway.port) == ("127.0.0.1", 8274)
    assert (config.backends.ray.address, config.simulate, config.store.folder) == (None, None, None)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "gateway:\nbackends:\n", "backends: {vm: , ray: null}\n"]
)
def test_what_is_left_empty_has_its_defaults(file: Path, text: str) -> None:
    """A file, a section."""
    file.write_text(text)
    assert load_config(file, {}) == Config()


def test_a_file_with_every_setting(file: Path) -> None:
    """In words and units of a job file."""
    file.write_text(
        "store: {folder: ~/gpus}\ngateway: {host: 0.0.0.0, port: 0}\n"
        "backends: {ray: {address: 10.0.0.1:6379}, vm: {}}\n"
        "simulate: 2xA100-80GB,A30\n"
    )
    config = load_config(file, {})
    assert (config.store.folder, config.gateway.host, config.gateway.port) == ("~/gpus", "0.0.0.0", 0)
    assert (config.backends.ray.address, config.simulate) == ("10.0.0.1:6379", "2xA100-80GB,A30")


def test_which_file_is_read(tmp_path: Path) -> None:
    """The one that is named, else RAYSCHED_CONFIG, else the user's."""
    for name, port in (("named.yaml", 1), ("variable.yaml", 2), ("raysched/raysched.yaml", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"gateway: {{port: {port}}}\n")
    user = {"XDG_CONFIG_HOME": str(tmp_path)}
    variable = {**user, "RAYSCHED_CONFIG": str(tmp_path / "variable.yaml")}
    assert load_config(tmp_path / "named.yaml", variable).gateway.port == 1
    assert load_config(None, variable).gateway.port == 2
    assert load_config(None, user).gateway.port == 3


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    """Whoever names one means it."""
    missing = tmp_path / "no.yaml"
    with pytest.raises(FileMissing, match=str(missing)):
        load_config(missing, {})
    with pytest.raises(FileMissing, match=f"RAYSCHED_CONFIG: {missing}"):
        load_config(None, {"RAYSCHED_CONFIG": str(missing)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gatway: {}\n", "1: gatway: is no field here; did you mean gateway?"),
        ("backends:\n  slurm: {}\n", "2: backends.slurm.folder: is missing"),
        ("backends: {slurm: {folder: here}}\n", "1: backends.slurm.folder: 'here' must start with / or ~/"),
        ("backends: {slurm: {folder: /a, login: -oX}}\n", "1: backends.slurm.login: '-oX' is no destination"),
        (
            "backends: {slurm: {folder: /a, gpu_memory: {a100: 80}}}\n",
            "1: backends.slurm.gpu_memory.a100: ",
        ),
        ("backends:\n  k8s: {kubeconfig: a/b}\n", "2: backends.k8s.kubeconfig: 'a/b' must start with /"),
        ("backends:\n  k8s: {namespace: My_Own}\n", "2: backends.k8s.namespace: 'My_Own' is no name"),
        ("backends: {k8s: {clusters: {e/1: {}}}}\n", "1: backends.k8s.clusters.e/1: 'e/1' can't be the name"),
        (
            "backends: {k8s: {clusters: {east: {clusters: {}}}}}\n",
            "1: backends.k8s.clusters.east.clusters: is no field here",
        ),
        ("backends: {vm: {host: []}}\n", "1: backends.vm.host: is no field here; did you mean hosts?"),
        ("backends: {vm: {hosts: [{}]}}\n", "1: backends.vm.hosts[0].name: is missing"),
        (
            "backends: {vm: {hosts: [{name: a}, {name: a}]}}\n",
            "1: backends.vm.hosts: two hosts are named 'a'",
        ),
        (
            "backends: {vm: {hosts: [{name: a}, {name: b, address: a}]}}\n",
            "1: backends.vm.hosts: a and b have one address: a machine is one host",
        ),
        (
            "backends: {vm: {hosts: [{name: -a}]}}\n",
            "1: backends.vm.hosts[0].name: '-a' is no name of a host",
        ),
        (
            "backends: {vm: {hosts: [{name: a, address: -oProxyCommand=x}]}}\n",
            "1: backends.vm.hosts[0].address: '-oProxyCommand=x' is no address",
        ),
        (
            "backends: {vm: {hosts: [{name: a, jump: 'me@gate, -x'}]}}\n",
            "1: backends.vm.hosts[0].jump: '-x' is no jump host",
        ),
        (
            "backends: {vm: {hosts: [{name: a, port: 0}]}}\n",
            "1: backends.vm.hosts[0].port: must be 1 or more",
        ),
        (
            "backends: {vm: {hosts: [{name: a, password: x}]}}\n",
            "1: backends.vm.hosts[0].password: is no field here",
        ),
        ("backends: {ray: {address: 'ray://x:1'}}\n", "1: backends.ray.address: must be auto"),
        ("gateway: {port: 70000}\n", "1: gateway.port: must be 65535 or less"),
        ("simulate: 2 A100\n", "1: simulate: '2 A100' is no list"),
        ("simulate: 0xA100\n", "1: simulate: '0xA100' is no list"),
        ("store: {folder: here}\n", "1: store.folder: 'here' must start with / or ~/"),
        ("gateway: 8274\n", "1: gateway: must hold fields"),
        ("gateway: {}\ngateway: {}\n", "2: gateway: is here twice: line 1 has it already"),
        ("gateway: {}\n---\nstore: {}\n", "3: a second document starts here"),
        ("- a\n", "1:1: must hold fields"),
        ("a: [\n", "2:1: a value is missing"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(file: Path, text: str, message: str) -> None:
    """In the same words as in a job file."""
    (line,) = complaints(file, text)
    assert line.startswith(f"{file}:{message}")


def test_all_problems_come_at_once(file: Path) -> None:
    """In the order of their lines."""
    assert len(complaints(file, "gateway: {port: x}\nstore: {floder: /a}\nsimulate: 2 x\n")) == 3


def test_what_is_said_beside_clusters_holds_for_each(tmp_path: Path) -> None:
    """But for what one says itself. One cluster needs no name."""
    (tmp_path / "raysched.yaml").write_text(
        "backends:\n  k8s:\n    image: debian:12\n    namespace: team\n    kueue: {default: first}\n"
        "    clusters: {east: {context: e}, west: {namespace: other, kueue: {}, image: null}, north: }\n"
    )
    several = load_config(tmp_path / "raysched.yaml", {}).backends.k8s
    assert several is not None
    assert {
        name: (one.context, one.namespace, one.image, one.kueue) for name, one in several.each().items()
    } == {
        "east": ("e", "team", "debian:12", {"default": "first"}),
        "west": (None, "other", None, {}),
        "north": (None, "team", "debian:12", {"default": "first"}),
    }
    (tmp_path / "raysched.yaml").write_text("backends: {k8s: {context: e}}\n")
    one = load_config(tmp_path / "raysched.yaml", {}).backends.k8s
    assert one is not None
    assert one.each() == {"": one}
