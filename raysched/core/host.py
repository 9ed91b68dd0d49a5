"""A machine that the vm backend reaches over SSH."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["file", "command"]


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the inventory; `name` is its node's name in the ledger. What is None comes from the SSH
    configuration of whoever started raysched, or from the host itself.

    `address` is a host name, an IP address, or an alias of that configuration; `key` the path of a private
    key; `jump` the hosts to go through, `[USER@]HOST[:PORT]`, with commas between. `python` and `folder` are
    paths on the host. `simulate` gives it made-up GPUs. `cpus` (ten-thousandths of a core) and `memory` (MiB)
    are how much of the host may be given away. `labels` are names and values that jobs can ask for.
    """

    name: str
    address: str
    user: str | None = None
    port: int | None = None
    key: str | None = None
    jump: str | None = None
    python: str | None = None
    folder: str | None = None
    simulate: str | None = None
    cpus: int | None = None
    memory: int | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class KnownHost:
    """A host in the ledger. `origin` says who named it: the configuration's file, or a command. `reason` is
    why it can't be used, empty where it can, None while nobody knows, and `since` when that began (ms since
    1970). `leaving`: it is to be taken out. `node` is the node of Ray that is the same machine; where there
    is none, it is empty, and the host is a node of its own."""

    host: Host
    origin: Origin
    reason: str | None = None
    leaving: bool = False
    node: str = ""
    since: int | None = None
