"""Slurm by its commands: on this machine, or over SSH on a login node."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysched.backends.slurm import records
from raysched.backends.slurm.controller import Batch, Refused, Target, Unanswered
from raysched.backends.slurm.reasons import FINAL, UNANSWERED, refusal
from raysched.backends.slurm.records import Job, Node

PATIENCE_S = 60.0
"""How long a command may take; Slurm's own give up after about ten seconds."""
MOST_IDS = 500
"""Job ids in one command."""

_VERSION = re.compile(r"(\d+)\.(\d+)")

log = logging.getLogger(__name__)


NAMED = ("account", "partition", "qos", "reservation", "wckey")
"""Options whose values are names that an administrator gave."""


class Said(Exception):
    """A command failed; `words` is what it said on stderr."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


class CommandController:
    """Runs sbatch, squeue and scancel: here, or on `login`, a destination that ssh knows."""

    signals = True

    def __init__(self, login: str | None = None, environment: Mapping[str, str] = os.environ) -> None:
        self._login = login
        self._environment = plain(environment)
        self._version = 0
        self._folder = tempfile.TemporaryDirectory(prefix="raysched-ssh-") if login else None

    async def submit(self, batch: Batch) -> None:
        """See `Controller.submit`. What the site's sbatch says beside is not looked at: sites make it print
        all kinds of numbers, and the job is found by its name."""
        try:
            said = await self._run("sbatch", *batch.options, stdin=batch.script)
        except Said as error:
            words = _naming(refusal(error.words), batch.options)
            raise Refused(f"sbatch: {words}", final=bool(FINAL.search(error.words))) from None
        log.info("sbatch: %s", said.strip())

    async def shown(self, batch: Batch) -> str:
        """See `Controller.shown`: text for a shell that does what `submit` does."""
        options = "".join(f" \\\n    {shlex.quote(option)}" for option in batch.options)
        return f"sbatch{options} <<'END'\n{batch.script}END\n"

    async def jobs(self) -> list[Job]:
        """See `Controller.jobs`."""
        # 22.05 heeds none of these and tells of all jobs; later ones would leave those out that have ended.
        return records.jobs(await self._json("squeue", "--states=all", "--me"))

    async def nodes(self) -> list[Node]:
        """See `Controller.nodes`."""
        asked = ("sinfo",) if await self._is_old() else ("scontrol", "show", "nodes")
        return records.nodes(await self._json(*asked))

    async def drain(self, node: str, reason: str | None) -> None:
        """See `Controller.drain`."""
        how = ("State=RESUME",) if reason is None else ("State=DRAIN", f"Reason={reason}")
        try:
            await self._run("scontrol", "update", f"NodeName={node}", *how)
        except Said as error:
            raise Refused(f"scontrol: {refusal(error.words)}", final=True) from None

    async def cancel(self, targets: Sequence[Target], signal: str | None = None) -> None:
        """See `Controller.cancel`."""
        how = () if signal is None else ("--batch", f"--signal={signal}")
        tasks = [target.id for target in targets if target.is_task]
        # With a name beside the id both have to match. But of an array 22.05 then ends every task.
        calls = [(f"--name={target.name}", target.id) for target in targets if not target.is_task]
        calls += [tuple(tasks[at : at + MOST_IDS]) for at in range(0, len(tasks), MOST_IDS)]
        for call in calls:
            try:
                await self._run("scancel", *how, *call)
            except Said as error:
                log.info("scancel: %s", error.words.strip())  # it is gone, or about to start

    async def close(self) -> None:
        """End the connection that calls over SSH share."""
        if self._folder is not None:
            await self._call([*self._ssh(), "-O", "exit", "--", str(self._login)], b"")
            self._folder.cleanup()

    async def _is_old(self) -> bool:
        """Whether scontrol has no JSON: before 23.02."""
        if not self._version:
            try:
                found = _VERSION.search(await self._run("sinfo", "--version"))
            except Said as error:
                raise Unanswered(f"sinfo: {refusal(error.words)}") from None
            self._version = int(found[1]) * 100 + int(found[2]) if found else 2205
        return self._version < 2302

    async def _json(self, *command: str) -> Any:
        try:
            text = await self._run(*command, "--json")
            answer = json.loads(text[text.index("{") :])
        except Said as error:
            raise Unanswered(f"{command[0]}: {refusal(error.words)}") from None
        except ValueError as error:
            raise Unanswered(f"{command[0]} printed no JSON: {error}") from None
        if said := records.errors(answer):
            raise Unanswered(f"{command[0]}: {said[0]}: is slurmctld up?")
        return answer

    async def _run(self, *command: str, stdin: str = "") -> str:
        """What a command prints. Raises Said, and Unanswered where it reached nobody."""
        if self._login is None:
            code, out, err = await self._call(list(command), stdin.encode("utf-8", "surrogateescape"))
        else:
            code, out, err = await self._remotely(command, stdin)
        words = err.decode("utf-8", "replace")
        if code == 0:
            return out.decode("utf-8", "replace")
        if UNANSWERED.search(words):
            raise Unanswered(f"{command[0]}: {refusal(words)}")
        raise Said(words or out.decode("utf-8", "replace") or f"ended with code {code}")

    async def _remotely(self, command: Sequence[str], stdin: str) -> tuple[int, bytes, bytes]:
        """Run a command on the login node: an explicit sh reads it as data, so that no login shell touches
        it, and marks tell what it printed from what that shell did."""
        mark = secrets.token_hex(8)
        line = f"printf %s {shlex.quote(stdin)} | SLURM_BITSTR_LEN=0 {shlex.join(command)}"
        script = f"echo {mark}\n{line}\ncode=$?\necho {mark}\nexit $code\n"
        destination = ["--", str(self._login), "exec /bin/sh -s"]
        code, out, err = await self._call(
            [*self._ssh(), *destination], script.encode("utf-8", "surrogateescape")
        )
        parts = out.split(f"{mark}\n".encode())
        if len(parts) != 3:
            raise Unanswered(f"ssh {self._login}: {refusal(err.decode('utf-8', 'replace'))}")
        return code, parts[1], err

    def _ssh(self) -> list[str]:
        """One connection serves all calls, and goes away by itself."""
        assert self._folder is not None
        # Its path, with 17 characters that ssh puts behind it at first, may have 104 in all.
        socket = Path(self._folder.name) / "s"
        options = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ControlMaster=auto")
        shared = (f"ControlPath={socket}", "ControlPersist=120")
        return ["ssh", *(f"-o{option}" for option in (*options, *shared))]

    async def _call(self, command: Sequence[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr of a process. Raises Unanswered where it can't be run, or takes too
        long."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise Unanswered(f"{command[0]} can't be run on this machine: {error.strerror}") from None
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), PATIENCE_S)
        except asyncio.TimeoutError:
            raise Unanswered(f"{command[0]} did not answer within {PATIENCE_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out, err


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for Slurm's commands: those that would change what they do are left out, and so is all
    that the job does not get from here."""
    kept = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "SSH_AUTH_SOCK", "SLURM_CONF", "SLURM_JWT")
    return {name: environment[name] for name in kept if name in environment} | {"SLURM_BITSTR_LEN": "0"}


def _naming(words: str, options: Sequence[str]) -> str:
    """What sbatch said, with the name that it does not know: it tells only what kind of name that is."""
    for option in options:
        kind, _, value = option.removeprefix("--").partition("=")
        if kind in NAMED and kind in words.lower() and value not in words:
            return f"{words}: {value}"
    return words
