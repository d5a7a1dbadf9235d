"""Objects in S3, GCS, Azure or behind HTTP, listed and read by ranges, through obstore.

Endpoint, region and credentials are the usual variables of the environment (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME ...), or an instance's role.

obstore's threads outlive no fork: a process that has read through it once and then forks has children that hang in
their first read (tried with obstore 0.12). And a training reads a few samples before it forks its loaders. So
obstore runs only where nothing can be forked any more, in daemonic processes, as loaders are; any other process
asks a daemonic helper of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import obstore
from obstore.exceptions import GenericError
from obstore.store import from_url

from raytrain_speedup import retry
from raytrain_speedup.data.processes import START_METHOD
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

T = TypeVar("T")

PARALLEL = 32
"""Requests that a process has on the way at a time."""
TIMEOUT = "60s"
"""Of one request, its answer included."""
_LASTING = re.compile(r"status code: (?!408|429)4\d\d|redirect|builder error")
"""What a store says that will say the same at the next attempt; obstore has one exception for it and for a network
that is away."""
_CLOUDS = ("AWS_", "GOOGLE_", "AZURE_", "HTTP_PROXY", "HTTPS_PROXY")


class Stat(NamedTuple):
    """An object as it is: size in bytes, time of the last change, and a number that is another one for other
    contents (of the ETag, or of that time where a server gives none)."""

    size: int
    changed_ns: int
    tag: int


class Span(NamedTuple):
    """Bytes [start, stop) of an object, at least one."""

    name: str
    start: int
    stop: int


class Refused(Exception):
    """An object that cannot be read, and could not be at another attempt; the message says why."""


Found = tuple[Stat, bytes] | Refused


def is_remote(place: str) -> bool:
    """Whether a place is a URI, and no path."""
    return "://" in place


def list_objects(root: str) -> list[tuple[str, Stat]]:
    """The names below a URI, in order, and what there is.

    Raises:
        UserError: if the store does not answer, or refuses.
    """
    return _ask("listing", root)


def stat_object(root: str, name: str) -> Stat:
    """One object below a URI.

    Raises:
        UserError: if it is not there, or the store does not answer.
    """
    return _ask("stat", root, name)


def read_spans(root: str, spans: Sequence[Span]) -> list[Found]:
    """The bytes of some spans, requested together, in their order; fewer where an object ends before.

    Raises:
        UserError: naming the object, if the store has not answered for `retry.PATIENCE_SECONDS`.
    """
    return _ask("read", root, list(spans))


def read_here() -> None:
    """Let this process read by itself: it forks no others. (A daemonic one cannot, and does so anyway.)"""
    global _forks
    _forks = False


def close() -> None:
    """End this process's helper, if it has one; the next call starts another."""
    global _helper
    if _helper is not None:
        _helper.end()
    _helper = None


# --- where obstore runs --------------------------------------------------------------------------------------


class _Away(Exception):
    """A store that did not answer, but may at another attempt."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(why)
        self.where = where


class _Client:
    """A place in a store."""

    def __init__(self, root: str) -> None:
        self.root = root
        options: dict[str, Any] = {
            "client_options": {"allow_http": True, "timeout": TIMEOUT},
            "retry_config": {"max_retries": 0},  # `retry` says what it waits for, and sees cut answers too
        }
        try:
            self._store = from_url(root, **options)
        except Exception as error:  # ValueError, and obstore's own
            raise UserError(
                f"{root}: {_line(error)}; expected s3://, gs://, az://, http:// or https://, and what comes after"
            ) from None

    def listing(self) -> list[tuple[str, Stat]]:
        def attempt() -> list[tuple[str, Stat]]:
            try:
                found = [meta for chunk in obstore.list(self._store) for meta in chunk]
            except Exception as error:
                raise self._told(error, "") from None
            return sorted((meta["path"], _stat(meta)) for meta in found)

        return self._patiently(attempt, self.root)

    def stat(self, name: str) -> Stat:
        def attempt() -> Stat:
            try:
                return _stat(obstore.head(self._store, name))
            except Exception as error:
                raise self._told(error, name) from None

        return self._patiently(attempt, f"{self.root}/{name}")

    def read(self, spans: Sequence[Span]) -> list[Found]:
        found: dict[int, Found] = {}

        def attempt() -> None:
            left = [number for number in range(len(spans)) if number not in found]
            away = asyncio.run(self._get_all(spans, left, found))
            if away is not None:
                raise away

        self._patiently(attempt, self.root)
        return [found[number] for number in range(len(spans))]

    async def _get_all(
        self, spans: Sequence[Span], left: Sequence[int], found: dict[int, Found]
    ) -> _Away | None:
        """Fill in `found` what can be; the last that did not answer."""
        free = asyncio.Semaphore(PARALLEL)
        away: list[_Away] = []

        async def get(number: int) -> None:
            try:
                async with free:
                    if not away:  # the others wait for the next attempt
                        found[number] = await self._get(spans[number])
            except _Away as error:
                away.append(error)
            except Refused as error:
                found[number] = error

        await asyncio.gather(*map(get, left))
        return away[0] if away else None

    async def _get(self, span: Span) -> tuple[Stat, bytes]:
        try:
            answer = await obstore.get_async(
                self._store, span.name, options={"range": (span.start, span.stop)}
            )
            return _stat(answer.meta), bytes(await answer.bytes_async())
        except Exception as error:
            if "status code: 416" not in str(error):
                raise self._told(error, span.name) from None
        try:  # it begins behind the end of the object, which is shorter than it was
            return _stat(await obstore.head_async(self._store, span.name)), b""
        except Exception as error:
            raise self._told(error, span.name) from None

    def _told(self, error: Exception, name: str) -> Exception:
        """What an error of obstore means."""
        if isinstance(error, FileNotFoundError):
            return Refused("there is no such object")
        if isinstance(error, GenericError) and not _LASTING.search(str(error)):
            return _Away(f"{self.root}/{name}" if name else self.root, _line(error))
        return Refused(_line(error))

    @staticmethod
    def _patiently(attempt: Callable[[], T], where: str) -> T:
        """The result of an attempt, repeated while the store is away.

        Args:
            where: what is read, for the message of a store that refuses.
        """
        seconds = retry.PATIENCE_SECONDS

        def say(error: Exception) -> None:
            away = error.where if isinstance(error, _Away) else where
            log.warning("%s: the store does not answer (%s); trying for %.0f s", away, error, seconds)

        try:
            return retry.retry(
                attempt, may_pass=lambda error: isinstance(error, _Away), say=say, seconds=seconds
            )
        except _Away as error:
            raise UserError(
                f"{error.where}: the store has not answered for {seconds:.0f} s ({error}); expected it within "
                "reach, with its endpoint, region and credentials in the environment"
            ) from None
        except Refused as error:
            raise UserError(f"{where}: {error}; expected a place that can be read") from None


def _stat(meta: Any) -> Stat:
    changed = meta["last_modified"]
    identity = meta["e_tag"] or changed.isoformat()
    if meta["e_tag"] and not identity.endswith('"'):
        identity = f'"{identity}"'  # so it stands in every answer, but not in Azure's listings
    tag = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")
    return Stat(meta["size"], int(changed.timestamp()) * 10**9, tag)


def _line(error: Exception) -> str:
    """The first line of what obstore says, without the answer's XML."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(": <?xml")[0].strip()


_clients: dict[str, _Client] = {}


def _call(method: str, root: str, *arguments: Any) -> Any:
    """Call a method of the client of a root, in this process."""
    if root not in _clients:
        _clients[root] = _Client(root)
    return getattr(_clients[root], method)(*arguments)


# --- the helper ----------------------------------------------------------------------------------------------


def _ask(*request: Any) -> Any:
    """Call a method of the client of a root where obstore may run."""
    global _helper
    if not _forks or multiprocessing.current_process().daemon:
        return _call(*request)
    with _lock:
        if _helper is not None and _helper.environment != _environment():
            close()
        _helper = helper = _helper or _Helper()
    return helper.ask(request)


class _Helper:
    """A process that reads for this one.

    Attributes:
        environment: what it knows of stores.
    """

    def __init__(self) -> None:
        self.environment = _environment()
        self._lock = threading.Lock()
        self._asked = 0
        context = multiprocessing.get_context(START_METHOD)
        self._here, there = context.Pipe()
        process = context.Process  # type: ignore[attr-defined]
        self._process = process(target=_serve, args=(there, os.getpid()), name="object store", daemon=True)
        self._process.start()
        there.close()

    def ask(self, request: tuple[Any, ...]) -> Any:
        with self._lock:
            self._asked += 1
            try:
                self._here.send((self._asked, request))
                number, answer = self._here.recv()
                while number != self._asked:  # Ctrl-C came between a request and its answer
                    number, answer = self._here.recv()
            except (EOFError, OSError):
                raise UserError(
                    f"{request[1]}: the process that reads it died; expected enough memory for it"
                ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def end(self) -> None:
        self._here.close()
        self._process.terminate()
        self._process.join()


def _serve(there: Connection, parent: int) -> None:
    """Answer requests until the process that asks is gone; it may have been killed, and loaders have its end of the
    pipe too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while os.getppid() == parent:
        if not there.poll(1.0):
            continue
        try:
            number, request = there.recv()
        except (EOFError, OSError):
            return
        try:
            answer = _call(*request)
        except UserError as error:
            answer = error
        there.send((number, answer))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.upper().startswith(_CLOUDS)}


def _forget() -> None:
    """A forked process has neither its parent's helper nor its clients."""
    global _helper, _lock, _forks
    _helper, _lock, _forks = None, threading.Lock(), True
    _clients.clear()


_helper: _Helper | None = None
_lock = threading.Lock()
_forks = True
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
