"""An SSH connection to a host, by the user's own configuration and known hosts, over its jump hosts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from raysched.core.host import Host
from raysched.errors import Unreachable

CONNECT_S = 10.0
"""How long a host may take to accept a connection, and again to let us in."""
KEEPALIVE_S = 5.0
KEEPALIVES = 3
"""A connection is dead that answers none of so many questions, one each `KEEPALIVE_S`."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One host on the way, the target itself the last one. `name` is what people call it."""

    name: str
    address: str
    user: str | None = None
    port: int | None = None
    key: str | None = None


async def connect(host: Host, accept_new: bool = False) -> asyncssh.SSHClientConnection:
    """A connection to a host; closing it closes those to its jump hosts. `accept_new` adds the key of a host
    that is not known yet to the user's known hosts. Raises Unreachable, in words."""
    target = Hop(host.name, host.address, host.user, host.port, host.key)
    async with AsyncExitStack() as undo:
        way: asyncssh.SSHClientConnection | None = None
        for hop in (*jumps(host), target):
            connection = await _connect(hop, way, accept_new)
            undo.callback(connection.close)
            if way is not None:
                connection.set_tunnel(way)
            way = connection
        undo.pop_all()
    assert way is not None
    return way


def resolved(address: str) -> str:
    """The host name or IP address that an alias of the SSH configuration stands for."""
    return _configured(address).host


def _configured(address: str) -> asyncssh.SSHClientConnectionOptions:
    """What the SSH configuration says of a host."""
    return asyncssh.SSHClientConnectionOptions(host=address, config=(), client_keys=None)


def jumps(host: Host) -> list[Hop]:
    """The hosts to go through, as the inventory names them, else the SSH configuration."""
    named = host.jump
    if named is None:
        named = _configured(host.address).tunnel
    if not isinstance(named, str) or not named or named.lower() == "none":
        return []
    return [_hop(each.strip()) for each in named.split(",")]


def _hop(text: str) -> Hop:
    user, _, address = text.rpartition("@")
    start, _, port = address.rpartition(":")
    if start and port.isdecimal():
        return Hop(start, start.strip("[]"), user or None, int(port))
    return Hop(address, address, user or None)


async def _connect(
    hop: Hop, way: asyncssh.SSHClientConnection | None, accept_new: bool
) -> asyncssh.SSHClientConnection:
    given: dict[str, Any] = {"username": hop.user, "port": hop.port}
    options = {name: value for name, value in given.items() if value is not None}
    if hop.key is not None:
        options["client_keys"] = [os.path.expanduser(hop.key)]
    keys = HostKeys(hop, accept_new)
    try:
        return await asyncio.wait_for(
            asyncssh.connect(
                hop.address,
                tunnel=way,
                known_hosts=keys.known,
                client_factory=keys.client,
                connect_timeout=CONNECT_S,
                login_timeout=CONNECT_S,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVES,
                **options,
            ),
            2 * CONNECT_S,
        )
    except (OSError, asyncssh.Error, asyncio.TimeoutError, ValueError) as error:
        raise Unreachable(keys.refusal or _words(hop, error)) from None


def _words(hop: Hop, error: Exception) -> str:
    """Why a connection could not be made; never what was offered as a key."""
    where = hop.name if hop.name == hop.address else f"{hop.name} ({hop.address})"
    match error:
        case asyncssh.PermissionDenied():
            who = f"as {hop.user} " if hop.user else ""
            return f"{where} does not let us in {who}with the keys that there are: is the key on the host?"
        case asyncssh.KeyImportError() | asyncssh.KeyEncryptionError():
            return f"the key for {where} can't be read ({error}): give another, or load it into ssh-agent"
        case asyncio.TimeoutError():
            return f"{where} does not answer within {CONNECT_S:.0f} s"
        case FileNotFoundError():
            return f"the key for {where} is not there: {error.filename}"
        case asyncssh.Error():
            return f"{where} can't be reached over SSH: {error.reason}"
        case OSError() if error.errno and error.errno > 0:  # what asyncio says itself is no sentence
            port = f" at port {hop.port}" if hop.port else ""
            return f"{where} can't be reached{port}: {os.strerror(error.errno)}"
        case OSError() if error.strerror:
            return f"{where} can't be reached: {error.strerror}"
        case _:
            return f"{where} can't be reached: {' '.join(str(error).split()) or type(error).__name__}"


class HostKeys:
    """Verifies the key of one hop. `refusal` says afterwards why it was not accepted, in words."""

    def __init__(self, hop: Hop, accept_new: bool) -> None:
        self.refusal = ""
        self._hop = hop
        self._accept_new = accept_new
        self._ours: set[Any] = set()

    def client(self) -> asyncssh.SSHClient:
        """What asyncssh asks about a key that is not known."""
        return _Client(self)

    def known(self, host: str, addr: str, port: int | None) -> tuple[Sequence[Any], ...]:
        """The keys that are known of a host."""
        files = [file for file in _files(self._hop.address) if os.access(file, os.R_OK)]
        found = asyncssh.read_known_hosts(files).match(host, addr, port) if files else ([],) * 7
        self._ours = set(found[0]) | set(found[1])
        return found

    def accept(self, host: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Whether a key that is not known is accepted all the same."""
        file = _files(self._hop.address)[0]
        entry = host if port == 22 else f"[{host}]:{port}"
        shown = key.get_fingerprint()
        if self._ours:
            self.refusal = (
                f"the host key of {self._hop.name} changed: it shows {shown}, which does not match the one "
                f"in {file}; if the host was made anew, run `ssh-keygen -f {file} -R '{entry}'` and then "
                f"`raysched vm check {self._hop.name} --accept-new`"
            )
            return False
        if not self._accept_new:
            self.refusal = (
                f"the host key of {self._hop.name} is not known: it shows {shown}; if that is the host's, "
                f"add it to {file} with `raysched vm check --accept-new`"
            )
            return False
        _add(Path(file), entry, key)
        return True


class _Client(asyncssh.SSHClient):
    def __init__(self, keys: HostKeys) -> None:
        self._keys = keys

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """asyncssh's question about a key that is not among the known ones."""
        return self._keys.accept(host, port, key)


def _files(address: str) -> list[str]:
    """The files of known hosts, the user's own first."""
    options = _configured(address)
    named = options.known_hosts
    files = [str(file) for file in named] if isinstance(named, list) else []
    return [os.path.expanduser(file) for file in files] or [str(Path("~/.ssh/known_hosts").expanduser())]


def _add(file: Path, entry: str, key: asyncssh.SSHKey) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(file, "a+", encoding="utf-8") as known:
        known.seek(0)
        text = known.read()
        start = "\n" if text and not text.endswith("\n") else ""
        known.write(f"{start}{entry} {key.export_public_key().decode().strip()}\n")
