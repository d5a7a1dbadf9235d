"""Azurite, Microsoft's emulator of Azure's blobs, behind a server that counts what it is asked for.

It is no Python package: `npm install azurite` brings `azurite-blob`, and what needs it is left out without.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raytrain_speedup.data.index import object_store

CONTAINER = "data"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's only account, the same for everybody; it opens nothing else."""
HERE = "127.0.0.1"


class LoopbackAzure:
    """Blobs of one container.

    Attributes:
        requests: (method, path, bytes sent) of what was asked for since the last `clear`.
    """

    uri = f"az://{CONTAINER}"

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []
        with socket.socket() as free:
            free.bind((HERE, 0))
            self._port = free.getsockname()[1]
        self._server = ThreadingHTTPServer((HERE, 0), _counted(self.requests, self._port))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def bytes_sent(self) -> int:
        """Of the blobs; listings are answers too."""
        return sum(
            sent for method, path, sent in self.requests if method == "GET" and "comp=list" not in path
        )

    def clear(self) -> None:
        self.requests.clear()

    def put(self, name: str, content: bytes) -> None:
        kind = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"}
        self._signed(f"{CONTAINER}/{name}", "", content, kind)

    def put_folder(self, folder: Path, below: str) -> str:
        """Upload the files of a folder; gives its URI."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{below}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"{self.uri}/{below}"

    def _signed(self, path: str, query: str, content: bytes, headers: dict[str, str]) -> None:
        """PUT by the rules of a shared key (learn.microsoft.com, "Authorize with Shared Key")."""
        headers = headers | {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        own = "".join(f"{key}:{headers[key]}\n" for key in sorted(headers) if key.startswith("x-ms-"))
        length, kind = str(len(content) or ""), headers.get("Content-Type", "")
        resource = f"/{ACCOUNT}/{ACCOUNT}/{path}" + query.replace("?", "\n").replace("=", ":")
        text = f"PUT\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{own}{resource}"
        signature = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
        connection = http.client.HTTPConnection(HERE, self._port, timeout=30)
        connection.request("PUT", f"/{ACCOUNT}/{path}{query}", content, headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        connection.close()

    @contextmanager
    def running(self) -> Iterator[LoopbackAzure]:
        """Serve, with the environment telling so."""
        program = shutil.which("azurite-blob")
        assert program is not None, "see above"
        quiet = ("--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck")
        process = subprocess.Popen([program, "--blobHost", HERE, "--blobPort", str(self._port), *quiet])
        self._thread.start()
        keys = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}
        keys["AZURE_STORAGE_ENDPOINT"] = f"http://{HERE}:{self._server.server_port}/{ACCOUNT}"
        try:
            with pytest.MonkeyPatch.context() as patch:
                for key, value in keys.items():
                    patch.setenv(key, value)
                self._wait()
                self._signed(CONTAINER, "?restype=container", b"", {})
                yield self
        finally:
            object_store.close()
            self._server.shutdown()
            self._thread.join()
            process.terminate()
            process.wait()

    def _wait(self) -> None:
        for _ in range(300):
            with socket.socket() as attempt:
                if attempt.connect_ex((HERE, self._port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("azurite-blob did not start in 30 s")


def _counted(requests: list[tuple[str, str, int]], port: int) -> type[BaseHTTPRequestHandler]:
    """Hands requests on to a port of this machine, and notes them."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _hand_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(HERE, port, timeout=30)
            connection.request(self.command, self.path, content or None, dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            requests.append((self.command, self.path, len(body)))
            self.send_response(answer.status)
            length = answer.headers["Content-Length"] if self.command == "HEAD" else len(body)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "keep-alive"):
                    self.send_header(key, value)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = _hand_on

        def log_message(self, *_: object) -> None:
            pass

    return Handler
