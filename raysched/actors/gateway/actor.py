"""The gateway: the HTTP API, in an actor of its own on the head node."""

from __future__ import annotations

import asyncio
import json
import logging

import uvicorn

from raysched.actors.gateway.api import build_app
from raysched.actors.gateway.link import Link
from raysched.actors.settings import Settings
from raysched.backends.runner import forget_worker
from raysched.cluster.listening import listen, url_host
from raysched.package import PackageStore

RETRY_S = 1.0
GOODBYE_S = 1
"""How long open streams may take when the server ends."""

log = logging.getLogger(__name__)


class Gateway:
    """Serves the API. Detached, restarted for ever at the same address with the same token."""

    async def __init__(self, settings: Settings) -> None:
        forget_worker()
        self.address = f"http://{url_host(settings.host)}:{settings.port}"
        token = json.loads(settings.endpoint.read_text(encoding="utf-8"))["token"]
        app = build_app(Link(settings.journal), PackageStore(settings.packages), token)
        self.config = uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=GOODBYE_S,
        )
        self.task = asyncio.create_task(self._serve_for_ever(settings.host, settings.port))

    def __repr__(self) -> str:
        return f"Gateway({self.address})"

    async def ping(self) -> str:
        """The gateway's address."""
        return self.address

    async def _serve_for_ever(self, host: str, port: int) -> None:
        while True:
            try:
                with listen(host, port) as listening:
                    await uvicorn.Server(self.config).serve(sockets=[listening])
            except OSError as error:
                log.warning("gateway: can't listen at %s: %s; trying again", self.address, error.strerror)
            await asyncio.sleep(RETRY_S)
