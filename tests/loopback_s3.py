"""An S3 server on this machine (moto's), which counts what it is asked for and can be made to fail."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from raytrain_speedup.data.index import object_store

BUCKET = "data"


class LoopbackS3:
    """Objects of one bucket.

    Attributes:
        uri: of the bucket.
        requests: (method, path, bytes sent) of what was asked for since the last `clear`.
        spans: (path, first byte, behind the last one) of the ranges among them.
        refuses: told of a request's environment, gives the status to answer with instead, or None.
    """

    uri = f"s3://{BUCKET}"

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []
        self.spans: list[tuple[str, int, int]] = []
        self.refuses: Callable[[dict[str, Any]], str | None] = lambda environ: None
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.web = f"{self.endpoint}/{BUCKET}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if status := self.refuses(environ):
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], 0))
            start_response(status, [("Content-Length", "0")])
            return []
        body = b"".join(self._moto(environ, start_response))
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], len(body)))
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", "")):
            self.spans.append((environ["PATH_INFO"], int(found[1]), int(found[2]) + 1))
        return [body]

    @property
    def bytes_sent(self) -> int:
        """Of the objects; listings are answers too."""
        return sum(sent for method, path, sent in self.requests if method == "GET" and path.count("/") > 1)

    def clear(self) -> None:
        self.requests.clear()
        self.spans.clear()

    def put(self, name: str, content: bytes) -> None:
        kind = {"Content-Type": "application/octet-stream", "x-amz-acl": "public-read-write"}
        request = urllib.request.Request(f"{self.web}/{name}", content, kind, method="PUT")
        urllib.request.urlopen(request).close()

    def put_folder(self, folder: Path, below: str) -> str:
        """Upload the files of a folder; gives its URI."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{below}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"{self.uri}/{below}"

    @contextmanager
    def running(self) -> Iterator[LoopbackS3]:
        """Serve, with the environment telling so."""
        self._thread.start()
        keys = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": "us-east-1"}
        keys |= {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything"}
        try:
            with pytest.MonkeyPatch.context() as patch:
                for key, value in keys.items():
                    patch.setenv(key, value)
                urllib.request.urlopen(urllib.request.Request(self.web, method="PUT")).close()
                yield self
        finally:
            object_store.close()
            self._server.shutdown()
            self._thread.join()
