"""A metadata service of a machine, as those of EC2 and of Google Cloud are, on this machine's loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service(ThreadingHTTPServer):
    """Answers as a cloud does, and remembers what it was asked.

    Attributes:
        cloud: "AWS", "Google Cloud", or another, that knows none of the paths.
        deadline: of the machine, in seconds since 1970, or None.
        token: that is good.
        down: whether every question is answered by 503.
        asked: (method, path, status) of every question.
    """

    daemon_threads = True

    def __init__(self, cloud: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cloud, self.deadline, self.token, self.down = cloud, None, "secret-1", False
        self.asked: list[tuple[str, str, int]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self._answer(*self._read())

    def do_PUT(self) -> None:
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        knows = self.server.cloud == "AWS" and self.path == "/latest/api/token" and seconds is not None
        self._answer(*((200, self.server.token) if knows else (404, "")))

    def _read(self) -> tuple[int, str]:
        service = self.server
        if service.cloud == "Google Cloud" and self.path == "/computeMetadata/v1/instance/preempted":
            if self.headers.get("Metadata-Flavor") != "Google":
                return 403, ""
            return 200, "FALSE" if service.deadline is None else "TRUE"
        if service.cloud != "AWS":
            return 404, ""
        if self.headers.get("X-aws-ec2-metadata-token") != service.token:
            return 401, ""
        if self.path == "/latest/meta-data/events/recommendations/rebalance":
            return 200, json.dumps({"noticeTime": "2026-01-01T00:00:00Z"})
        if self.path != "/latest/meta-data/spot/instance-action" or service.deadline is None:
            return 404, ""
        time = datetime.fromtimestamp(service.deadline, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, json.dumps({"action": "terminate", "time": time})

    def _answer(self, status: int, text: str) -> None:
        if self.server.down:
            status, text = 503, ""
        self.server.asked.append((self.command, self.path, status))
        self.send_response(status)
        if self.server.cloud == "Google Cloud":
            self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def serving(cloud: str) -> Iterator[Service]:
    """Such a service, while inside."""
    service = Service(cloud)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
