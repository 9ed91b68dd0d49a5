"""A stand-in for the dashboards of Rays that run no process, for KubeRay on made-up nodes.

It is an HTTP proxy: started with `HTTP_PROXY` set to its `url`, the KubeRay operator asks it about the jobs
of every Ray. It answers as Ray's job API does about jobs that a test begins and ends; nothing runs.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_JOB = re.compile(r"(?:http://[^/]+)?/api/jobs/(?P<id>[^/]*)(?P<stop>/stop)?")


class RayDashboard:
    """All dashboards at once. `stopped` are the ids of the jobs that were told to stop."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Any]] = {}
        self._changing = threading.Lock()
        self.stopped: list[str] = []
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*dashboard._job(self.path))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(*dashboard._post(self.path))

            def _answer(self, status: int, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def begin(self, id: str) -> None:
        """Let a job run, as if it had been submitted."""
        now = int(time.time() * 1000)
        with self._changing:
            job = {"type": "SUBMISSION", "submission_id": id, "status": "RUNNING", "start_time": now}
            self._jobs[id] = {**job, "entrypoint": "", "message": "Job is currently running."}

    def end(self, id: str, code: int) -> None:
        """Let the driver of a job end with this exit code; a negative one is a signal."""
        message = "Job finished successfully."
        if code:
            message = (
                f"Job entrypoint command failed with exit code {code}, last available logs (truncated to "
                "20,000 chars):\n"
            )
        self._end(id, "FAILED" if code else "SUCCEEDED", message)

    def stop(self, id: str) -> None:
        """Stop a job, as `ray job stop` does."""
        self._end(id, "STOPPED", "Job was intentionally stopped.")

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _end(self, id: str, status: str, message: str) -> None:
        with self._changing:
            ended = int(time.time() * 1000)
            self._jobs[id] = {**self._jobs[id], "status": status, "message": message, "end_time": ended}

    def _job(self, path: str) -> tuple[int, Any]:
        found = _JOB.fullmatch(path)
        with self._changing:
            job = self._jobs.get(found["id"]) if found else None
        return (404, {"detail": "not found"}) if job is None else (200, job)

    def _post(self, path: str) -> tuple[int, Any]:
        found = _JOB.fullmatch(path)
        if not found or not found["stop"] or found["id"] not in self._jobs:
            return 404, {"detail": "not found"}
        self.stopped.append(found["id"])
        running = self._jobs[found["id"]]["status"] == "RUNNING"
        if running:
            self.stop(found["id"])
        return 200, {"stopped": running}
