"""A connection to a host with raysched's serving end at the other side: the calls of `calls.Calls`."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncssh

from raysched.backends.base import EngineRefused
from raysched.backends.ssh import boot, calls, frames
from raysched.backends.ssh.bundle import bundle
from raysched.backends.ssh.connection import connect
from raysched.core.host import Host
from raysched.errors import RayschedError, Unreachable
from raysched.gpu.driver import PartitionRefused

ANSWER_S = 15.0
"""How long a host may take for an answer."""
START_S = 60.0
"""How long the serving end may take to be there, the bundle brought and the login shell's profile run."""
CLOSE_S = 5.0
"""How long a connection that was hung up on may take to be gone."""
NOISE = 1 << 20
"""Bytes that a profile may print before the first line of ours."""


class Link:
    """One connection. `changed` is called when a run on the host may have changed."""

    def __init__(
        self, host: Host, connection: asyncssh.SSHClientConnection, changed: Callable[[], None]
    ) -> None:
        self._host = host
        self._connection = connection
        self._changed = changed
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[frames.Frame]] = {}
        self._process: Any = None
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, host: Host, system: str, changed: Callable[[], None], accept_new: bool = False
    ) -> Link:
        """Connect, start the serving end, and tell it who it is. Raises Unreachable, in words."""
        link = cls(host, await connect(host, accept_new), changed)
        try:
            await asyncio.wait_for(link._start(), START_S)
            await link.call("open", system, host.name, host.simulate)
        except asyncio.TimeoutError:
            await link.close()
            why = f"{host.name} starts nothing for us within {START_S:.0f} s: look at its profile"
            raise Unreachable(why) from None
        except BaseException as error:
            await link.close()
            if isinstance(error, (OSError, asyncssh.Error)):
                raise Unreachable(f"the connection to {host.name} broke: {error}") from None
            raise
        return link

    async def _start(self) -> None:
        """Lead the host from its login shell to the serving end (`boot.py`)."""
        code, mark = bundle(), f"raysched-{secrets.token_hex(8)}"
        self._process = await self._connection.create_process(boot.COMMAND, encoding=None)
        self._process.stdin.write(boot.script(mark, code.digest, self._host.folder, self._host.python))
        said = await self._until(mark)
        if said == boot.NEED:
            self._process.stdin.write(len(code.data).to_bytes(4, "big") + code.data)
            said = await self._until(mark)
        if said != boot.READY:
            raise Unreachable(self._worded(said))
        self._reading = asyncio.create_task(self._read())

    async def _until(self, mark: str) -> str:
        """What the host says behind the mark; what comes before is its profile's."""
        start, noise = mark.encode() + b" ", 0
        while noise < NOISE and (line := await self._process.stdout.readline()):
            if line.startswith(start):
                return line[len(start) :].decode("utf-8", "replace").strip()
            noise += len(line)
        said = (await self._process.stderr.read(400)).decode("utf-8", "replace") if noise < NOISE else ""
        why = " ".join(said.split()) or "its login shell ended or prints without an end"
        raise Unreachable(f"{self._host.name} runs no commands for us: {why}")

    def _worded(self, said: str) -> str:
        kind, _, rest = said.partition(" ")
        if kind == boot.NO_PYTHON:
            return (
                f"{self._host.name} has no Python 3.10 or later ({rest}): install one, or name it with "
                "`python` in the inventory"
            )
        return (
            f"{self._host.name} has no room for raysched in {rest}: make room, or name another `folder` in "
            "the inventory"
        )

    # ------------------------------------------------------------ calls

    async def call(self, name: str, *arguments: Any, timeout: float = ANSWER_S) -> Any:
        """Ask the host. Raises what the call does, and Unreachable where no answer comes in time."""
        signature, number = calls.signature(name), next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            frame = {"id": number, "call": name, "arguments": signature.encode_arguments(arguments)}
            self._process.stdin.write(frames.packed(frame))
            said = await asyncio.wait_for(answer, timeout)
        except asyncio.TimeoutError:
            raise Unreachable(f"{self._host.name} does not answer within {timeout:.0f} s") from None
        except (OSError, asyncssh.Error):
            raise Unreachable(f"the connection to {self._host.name} broke") from None
        finally:
            del self._waiting[number]
        return _answered(signature, said)

    async def _read(self) -> None:
        """Hand answers to those who wait for them, until the connection ends."""
        try:
            while (frame := await frames.read(self._process.stdout)) is not None:
                if "changed" in frame:
                    self._changed()
                elif (waiting := self._waiting.get(frame["id"])) is not None and not waiting.done():
                    waiting.set_result(frame)
        except (OSError, asyncssh.Error, ValueError):
            pass
        finally:
            self._connection.abort()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError())

    async def ended(self) -> None:
        """Return when the connection has ended."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def close(self) -> None:
        """Hang up; what runs on the host goes on."""
        self._connection.abort()
        await self.ended()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._connection.wait_closed(), CLOSE_S)


def _answered(signature: calls.Signature, said: frames.Frame) -> Any:
    if "refused" in said:
        raise EngineRefused(said["refused"], final=said["final"])
    if "uncut" in said:
        raise PartitionRefused(said["uncut"], frames.decode(calls.CUT, said["cut"]))
    if "error" in said:
        raise RayschedError(said["error"])
    return frames.decode(signature.answer, said["answer"])
