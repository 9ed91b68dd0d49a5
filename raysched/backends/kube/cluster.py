"""A Kubernetes API server, reached as the kubeconfig says: plain JSON in and out, and what its refusals mean.

The official client knows how to log in; objects stay the dictionaries that they are on the wire.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from raysched.backends.kube.names import MANAGER
from raysched.errors import Unreachable

CALL_S = 30.0
"""How long one answer may take."""
AGAIN = 5
"""How often a call is repeated that the server was too busy for."""
LONGEST_S = 10.0
"""How long it may ask us to wait before that."""
PAGE = 500
"""Objects that are asked for at once."""
SILENT_S = 75.0
"""After how much silence a stream counts as dead."""
AT_ONCE = 64
"""Connections to the API server."""
POD_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
"""Where a pod is told its namespace."""

JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"  # JSON is YAML

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Access:
    """How a cluster is reached: the kubeconfig file (None: KUBECONFIG, else the usual one, else as a pod's
    service account), its context and the namespace of our jobs (None: what is current)."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    environment: Mapping[str, str] | None = None


class Answered(Exception):
    """The API server said no. `code` is the HTTP status, `reason` the API's word for it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def missing(self) -> bool:
        """Whether there is no such object."""
        return self.code == 404

    @property
    def exists(self) -> bool:
        """Whether there is one already."""
        return self.code == 409 and self.reason == "AlreadyExists"

    @property
    def final(self) -> bool:
        """Whether it would say so every time: what changes by itself is a quota, or a namespace that is gone
        or going."""
        if self.code == 403 and re.search(r"exceeded quota|being terminated", self.message):
            return False
        return self.code in (400, 403, 405, 413, 415, 422)


class Cluster:
    """One cluster. Each call raises Answered, or Unreachable where nobody answers."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._client: Any = None
        self._former: Any = None
        self._namespace = access.namespace or ""
        self._opening = asyncio.Lock()

    @property
    def namespace(self) -> str:
        """The namespace of our jobs; known once `open` was called."""
        return self._namespace

    @property
    def context(self) -> str | None:
        """The context by which it is reached; None: the current one."""
        return self._access.context

    async def open(self) -> None:
        """Read how the cluster is reached, and log in. Raises Unreachable."""
        await self._opened()

    # ------------------------------------------------------------ calls

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        kind: str = JSON,
    ) -> Object:
        """An answer as JSON. What the server is too busy for is asked again."""
        for attempt in range(AGAIN + 1):
            client = await self._opened()
            answer = await self._send(client, method, path, body, query, kind, CALL_S)
            content = await _within(answer.read())
            if answer.status == 429 and attempt < AGAIN:
                await asyncio.sleep(_told_to_wait(answer, attempt))
                continue
            if answer.status == 401:
                await self._log_out(client)  # a token that ran out: log in anew, once
                if attempt == 0:
                    continue
            return _checked(answer.status, content)
        raise AssertionError("not reached")

    async def get(self, path: str) -> Object | None:
        """An object as it is now; None where there is none."""
        try:
            return await self.call("GET", path)
        except Answered as error:
            if error.missing:
                return None
            raise

    async def list(self, path: str, query: Mapping[str, str]) -> tuple[list[Object], str]:
        """All objects of a list as they are now, and the version of the list."""
        items: list[Object] = []
        more = ""
        while True:
            page = {"limit": str(PAGE), **({"continue": more} if more else {}), **query}
            answer = await self.call("GET", path, query=page)
            items += answer["items"]
            more = answer["metadata"].get("continue", "")
            if not more:
                return items, answer["metadata"]["resourceVersion"]

    async def create(self, path: str, body: Object) -> Object:
        """Make an object that is not there. Unknown fields are refused."""
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return await self.call("POST", path, body, query)

    async def apply(self, path: str, body: Object) -> Object:
        """Make an object be so (server-side apply, as our field manager)."""
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        return await self.call("PATCH", path, body, query, APPLY)

    async def patch(self, path: str, body: Object) -> Object:
        """Merge `body` into an object."""
        return await self.call("PATCH", path, body, {"fieldManager": MANAGER}, MERGE)

    async def delete(self, path: str, *, grace: int | None = None) -> None:
        """Delete an object and what belongs to it; silent where it is gone."""
        body: Object = {"propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self.call("DELETE", path, body)
        except Answered as error:
            if not error.missing:
                raise

    async def evict(self, pod: str, *, plan: bool = False) -> str | None:
        """Ask a pod to leave, by its path: None where it is gone, "" where it does, else what keeps it. With
        `plan` it is only asked whether it would. Other refusals raise Answered."""
        space, _, name = pod.removeprefix("/api/v1/namespaces/").partition("/pods/")
        body: Object = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": space},
            **({"deleteOptions": {"dryRun": ["All"]}} if plan else {}),
        }
        client = await self._opened()
        query = {"dryRun": "All"} if plan else {}
        answer = await self._send(client, "POST", f"{pod}/eviction", body, query, JSON, CALL_S)
        content = await _within(answer.read())
        if answer.status == 404:
            return None
        if answer.status == 429:  # a budget says no: whoever asked asks again by himself
            return _why_kept(content)
        if answer.status == 401:
            await self._log_out(client)
        _checked(answer.status, content)
        return ""

    async def stream(
        self, path: str, query: Mapping[str, str], silent: float | None = SILENT_S
    ) -> AsyncGenerator[bytes]:
        """The parts of an answer as they come. After `silent` seconds without any, nobody answers."""
        client = await self._opened()
        answer = await self._send(client, "GET", path, None, query, JSON, None)
        if answer.status == 401:
            await self._log_out(client)
        if answer.status >= 300:
            _checked(answer.status, await _within(answer.read()))
        content = answer.response.content
        try:
            while part := await _within(content.readany(), silent):
                yield part
        finally:
            answer.response.close()

    # ------------------------------------------------------------ the connection

    async def _send(
        self,
        client: Any,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, str] | None,
        kind: str,
        limit: float | None,
    ) -> Any:
        import aiohttp

        headers = {"Content-Type": kind, "Accept": JSON}
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=CALL_S)
        pairs = list((query or {}).items())
        try:
            sent = await client.param_serialize(
                method, path, {}, pairs, headers, body, auth_settings=["BearerToken"]
            )
            return await client.call_api(*sent, _request_timeout=timeout)
        except (OSError, asyncio.TimeoutError, aiohttp.ClientError) as error:
            raise Unreachable(f"{client.configuration.host} does not answer: {_said(error)}") from None

    async def _opened(self) -> Any:
        async with self._opening:
            if self._client is None:
                self._client = await self._open()
            return self._client

    async def _open(self) -> Any:
        from kubernetes.aio import client, config

        settings: Any = client.Configuration()
        settings.connection_pool_maxsize = AT_ONCE
        path = self._path()
        try:
            if path is None:
                config.load_incluster_config(settings)
                self._namespace = self._namespace or _pods_namespace()
            else:
                loader: Any = await config.load_kube_config(path, self._access.context, settings)
                current = loader.current_context["context"].get("namespace")
                self._namespace = self._namespace or current or "default"
        except Exception as error:  # whatever the file, its plugins and its certificates can have
            raise Unreachable(
                f"backends.k8s: can't log in with {path or 'the pod'}: {_said(error)}"
            ) from None
        return client.ApiClient(settings)

    def _path(self) -> str | None:
        """The kubeconfig; None inside a pod that has none."""
        environment = self._access.environment or os.environ
        named = self._access.kubeconfig or environment.get("KUBECONFIG")
        if named:
            return os.path.expanduser(named)
        usual = os.path.expanduser("~/.kube/config")
        inside = "KUBERNETES_SERVICE_HOST" in environment
        return None if inside and not os.path.exists(usual) else usual

    async def _log_out(self, refused: Any) -> None:
        """Use this client no more. The streams that it opened go on, until the one after it is refused."""
        if self._client is refused:
            self._client, former, self._former = None, self._former, refused
            await _close(former)

    async def close(self) -> None:
        """Let go of connections."""
        client, self._client = self._client, None
        former, self._former = self._former, None
        await _close(client)
        await _close(former)


async def _close(client: Any) -> None:
    if client is not None:
        with suppress(Exception):
            await client.close()


async def _within(reading: Any, limit: float | None = CALL_S) -> Any:
    import aiohttp

    try:
        return await asyncio.wait_for(reading, limit)
    except (OSError, asyncio.TimeoutError, aiohttp.ClientError) as error:
        raise Unreachable(f"the API server of Kubernetes went silent: {_said(error)}") from None


def _told_to_wait(answer: Any, attempt: int) -> float:
    """Seconds after which to ask a busy server again; of many who are told the same, not all come at once."""
    told = answer.headers.get("Retry-After", "")
    return random.uniform(1, 1.5) * min(LONGEST_S, float(told) if told.isdigit() else 0.5 * 2**attempt)


def _checked(status: int, content: bytes) -> Object:
    try:
        answer: Any = json.loads(content)
    except ValueError:
        answer = None
    if 200 <= status < 300 and isinstance(answer, dict):
        return answer
    said: Object = answer if isinstance(answer, dict) else {}
    message = str(said.get("message") or content[:500].decode(errors="replace") or f"HTTP status {status}")
    if status >= 500 or status in (401, 429):
        raise Unreachable(f"the API server of Kubernetes does not serve us: {message}")
    raise Answered(status, str(said.get("reason", "")), message)


def _why_kept(content: bytes) -> str:
    """What keeps a pod, in Kubernetes' words."""
    try:
        said: Any = json.loads(content)
    except ValueError:
        return "Kubernetes is too busy"
    causes: Any = (said.get("details") or {}).get("causes") or []
    words = [str(said.get("message", "")), *(str(cause.get("message", "")) for cause in causes)]
    return " ".join(word for word in words if word)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _pods_namespace() -> str:
    """The namespace of the pod that raysched runs in."""
    try:
        with open(POD_NAMESPACE, encoding="utf-8") as file:
            return file.read().strip() or "default"
    except OSError:
        return "default"
