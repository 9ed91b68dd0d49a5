"""Slurm by its REST daemon, slurmrestd, with a JSON Web Token."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

from raysched.backends.slurm import records, rest_words
from raysched.backends.slurm.commands import plain
from raysched.backends.slurm.controller import Batch, Refused, Target, Unanswered
from raysched.backends.slurm.reasons import FINAL, UNANSWERED
from raysched.backends.slurm.records import Job, Node

PATIENCE_S = 60.0
"""How long an answer may take."""
AT_ONCE = 4
"""How many calls are made at a time."""

log = logging.getLogger(__name__)


class RestController:
    """Speaks to the slurmrestd at `url`. `token` is asked for the JWT at each call, and may raise OSError;
    scripts get the `environment`."""

    signals = False

    def __init__(self, url: str, token: Callable[[], str], environment: Mapping[str, str]) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._environment = {name: value for name, value in plain(environment).items() if name != "SLURM_JWT"}
        self._opener = build_opener(ProxyHandler({}))
        self._threads = ThreadPoolExecutor(AT_ONCE, "slurmrestd")
        self._version = ""

    async def submit(self, batch: Batch) -> None:
        """See `Controller.submit`."""
        body = rest_words.submission(batch, await self._api(), self._environment)
        await self._ask("POST", "job/submit", body)

    async def shown(self, batch: Batch) -> str:
        """See `Controller.shown`."""
        version = await self._api()
        body = rest_words.submission(batch, version, self._environment)
        told = json.dumps(body, indent=2, ensure_ascii=False)
        return f"POST {self._url}/slurm/{version}/job/submit\n{told}\n"

    async def jobs(self) -> list[Job]:
        """See `Controller.jobs`."""
        return records.jobs(await self._ask("GET", "jobs"))

    async def nodes(self) -> list[Node]:
        """See `Controller.nodes`."""
        return records.nodes(await self._ask("GET", "nodes"))

    async def drain(self, node: str, reason: str | None) -> None:
        """See `Controller.drain`."""
        if await self._api() == rest_words.OLD:
            raise Refused("the slurmrestd of this version drains nothing", final=True)
        await self._ask("POST", f"node/{quote(node, safe='')}", rest_words.drained(reason))

    async def cancel(self, targets: Sequence[Target], signal: str | None = None) -> None:
        """See `Controller.cancel`. Nothing signals a script here: it looks for itself whether it is to end
        (`batch.py`)."""
        if signal is None:
            await asyncio.gather(*(self._end(target) for target in targets))

    async def _end(self, target: Target) -> None:
        """By the id, once it is seen to have that name still."""
        with suppress(Refused):  # it is gone
            found = records.jobs(await self._ask("GET", f"job/{quote(target.id, safe='')}"))
            if any(job.name == target.name for job in found):
                await self._ask("DELETE", f"job/{quote(target.id, safe='')}")

    async def close(self) -> None:
        """Nothing is kept open."""
        self._threads.shutdown(wait=False)

    async def _api(self) -> str:
        """The version of the API that both sides speak."""
        if not self._version:
            answer = await self._call("GET", "/openapi/v3", None)
            version = rest_words.api(answer.get("paths") or {})
            if version is None:
                spoken = ", ".join(reversed(rest_words.VERSIONS))
                raise Unanswered(f"{self._url} speaks none of the versions {spoken} of Slurm's API")
            self._version = version
        return self._version

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer. Raises Refused with what Slurm says, and Unanswered."""
        answer = await self._call(method, f"/slurm/{await self._api()}/{path}", body)
        said = records.errors(answer)
        if not said:
            return answer
        words = said[0]
        if any("authentication" in sentence.lower() for sentence in said):
            raise Unanswered(f"slurmrestd: {words}: if its token is over, renew it (scontrol token)")
        if any(UNANSWERED.search(sentence) for sentence in said):
            raise Unanswered(f"slurmrestd: {words}")
        raise Refused(f"slurmrestd: {words}", final=any(FINAL.search(sentence) for sentence in said))

    async def _call(self, method: str, path: str, body: Any) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._talk, method, path, body)

    def _talk(self, method: str, path: str, body: Any) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            token = self._token()
        except OSError as error:
            raise Unanswered(f"the token for slurmrestd can't be read: {error}") from None
        headers = {"X-SLURM-USER-TOKEN": token, "Content-Type": "application/json"}
        if name := user_of(token):
            headers["X-SLURM-USER-NAME"] = name
        request = Request(self._url + path, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=PATIENCE_S) as answer:
                return _read(answer.read())
        except HTTPError as error:
            with error:
                if error.code == 401:
                    raise Unanswered(f"{self._url} refuses the token: renew it (scontrol token)") from None
                return _read(error.read())
        except (URLError, OSError, ValueError) as error:
            raise Unanswered(f"{self._url} does not answer: {getattr(error, 'reason', error)}") from None


def user_of(token: str) -> str:
    """The user that a JWT is made for; empty where it does not say."""
    with suppress(ValueError, IndexError, binascii.Error, AttributeError):
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return str(claims.get("sun") or claims.get("username") or "")
    return ""


def _read(answer: bytes) -> dict[str, Any]:
    """Raises Unanswered for what is no answer of slurmrestd's."""
    try:
        found = json.loads(answer)
    except ValueError:
        raise Unanswered(f"slurmrestd answers no JSON: {answer[:200].decode(errors='replace')}") from None
    return found if isinstance(found, dict) else {}
