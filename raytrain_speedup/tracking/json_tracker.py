"""Runs as plain files: a folder that needs no database, no server and no MLflow, and that git or rsync can carry.

    FOLDER/EXPERIMENT/RUN_ID/run.jsonl      what happened to the run, a line for each, in order
    FOLDER/EXPERIMENT/RUN_ID/README.md      what `describe` says
    FOLDER/EXPERIMENT/RUN_ID/...            its files
    FOLDER/schedules/NAME.jsonl             versions and aliases of a schedule, likewise

Lines are only ever added, each with one write, so that a process that is killed or a disk that is full costs at
most the line that was being written; what is no JSON is such a line, and is passed over. Every line begins, not
ends, with the line break: what follows a torn one is whole.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.patience import Patience
from raytrain_speedup.tracking.tracker import (
    EPOCH,
    OURS,
    Entry,
    NotTracked,
    State,
    Tracker,
    TrackingLost,
    Version,
)

RUN, SCHEDULES = "run.jsonl", "schedules"
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENOTCONN}
"""A disk that is full, or a network's that is away."""


class JsonTracker(Tracker):
    """Runs in a folder.

    Args:
        uri: `json:FOLDER`; the folder is made.

    Raises:
        UserError: if it cannot be.
    """

    def __init__(self, uri: str) -> None:
        self.folder = Path(uri.removeprefix("json:")).absolute()
        self.uri = f"json:{self.folder}"
        self._patience = Patience(self.uri, _may_pass)
        self._folders: dict[str, Path] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"tracking uri {uri!r}: cannot be made ({error.strerror}); expected json: and a folder"
            ) from None

    @property
    def lost(self) -> TrackingLost | None:
        return self._patience.lost

    def impatient(self) -> JsonTracker:
        other = copy.copy(self)
        other._patience = Patience(self.uri, lambda error: False)
        return other

    def how_to_look(self, run_id: str) -> str:
        return str(self.folder)

    def start(self, experiment: str, name: str, tags: Mapping[str, str], *, parent: str | None = None) -> str:
        run_id = uuid.uuid4().hex
        folder = self.folder / quote(experiment, safe=" ") / run_id
        self._patience(folder.mkdir, parents=True, exist_ok=True)
        self._folders[run_id] = folder
        began = {"name": name, "parent": parent, "started": int(time.time() * 1000)}
        self._add(run_id, began=began, tags=dict(tags))
        return run_id

    def reopen(self, run_id: str) -> None:
        self._add(run_id, status="running")

    def end(self, run_id: str, state: State) -> None:
        self._add(run_id, status=state)

    def delete(self, run_id: str) -> None:
        shutil.rmtree(self._folder(run_id))
        del self._folders[run_id]

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._add(run_id, tags=dict(tags))

    def remove_tag(self, run_id: str, key: str) -> None:
        self._add(run_id, tags={key: None})

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        self._add(run_id, params=dict(params))

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        self._add(run_id, metrics=dict(metrics), step=step)

    def log_dataset(self, run_id: str, name: str, digest: str, source: Mapping[str, str]) -> None:
        self._add(run_id, dataset={"name": name, "digest": digest, "source": dict(source)})

    def log_text(self, run_id: str, text: str, path: str) -> None:
        self._write(self._folder(run_id) / path, text.encode("utf-8"))

    def log_file(self, run_id: str, file: Path, folder: str = "") -> None:
        self._write(self._folder(run_id) / folder / file.name, file.read_bytes())

    def describe(self, run_id: str, markdown: str) -> None:
        self.log_text(run_id, markdown, "README.md")

    def file_link(self, run_id: str, path: str) -> str:
        return path

    def experiments(self) -> list[str]:
        folders = {file.parent.parent.name for file in self.folder.glob(f"*/*/{RUN}")}
        return sorted(unquote(name) for name in folders)

    def run(self, run_id: str) -> Entry:
        return _entry(self._folder(run_id))

    def runs(
        self,
        experiment: str | None = None,
        *,
        tag: str,
        value: str | None = None,
        parent: str | None = None,
        wanted: Collection[str] | None = None,
    ) -> list[Entry]:
        among = "*" if experiment is None else quote(experiment, safe=" ")
        entries = (_entry(file.parent) for file in self.folder.glob(f"{among}/*/{RUN}"))
        found = [
            entry
            for entry in entries
            if entry.tags.get(tag) and value in (None, entry.tags[tag]) and parent in (None, entry.parent)
        ]
        return sorted(found, key=lambda entry: (entry.started, entry.run_id))

    def curve(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        lines = _lines(self._folder(run_id) / RUN)
        logged = [line for line in lines if metric in line.get("metrics", {})]
        return sorted((line["step"], line["metrics"][metric]) for line in logged)

    def read_text(self, run_id: str, path: str) -> str:
        try:
            return (self._folder(run_id) / path).read_text(encoding="utf-8")
        except OSError as error:
            raise NotTracked(f"run {run_id[:8]}: its {path} cannot be read ({error.strerror})") from None

    def publish(self, name: str, run_id: str) -> Version:
        line = {"run_id": run_id, "created": int(time.time() * 1000)}
        self._patience(_append, self._schedules(name), line)
        return next(one for one in reversed(self.versions(name)) if one.run_id == run_id)

    def versions(self, name: str | None = None) -> list[Version]:
        files = sorted((self.folder / SCHEDULES).glob("*.jsonl")) if name is None else [self._schedules(name)]
        return [version for file in files for version in _versions(file)]

    def set_alias(self, name: str, alias: str, version: int) -> None:
        if version not in [one.version for one in self.versions(name)]:
            raise NotTracked(f"{name}: there is no version {version} at {self.uri}")
        self._patience(_append, self._schedules(name), {"alias": alias, "of": version})

    def _schedules(self, name: str) -> Path:
        return self.folder / SCHEDULES / f"{quote(name, safe=' ')}.jsonl"

    def _folder(self, run_id: str) -> Path:
        if run_id not in self._folders:
            found = next(self.folder.glob(f"*/{run_id}/{RUN}"), None)
            if found is None:
                raise NotTracked(f"run {run_id[:8]}: not in {self.folder}")
            self._folders[run_id] = found.parent
        return self._folders[run_id]

    def _add(self, run_id: str, **line: Any) -> None:
        self._patience(_append, self._folder(run_id) / RUN, line)

    def _write(self, path: Path, content: bytes) -> None:
        self._patience(path.parent.mkdir, parents=True, exist_ok=True)
        self._patience(path.write_bytes, content)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, whole or (where the disk is full) not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"\n" + json.dumps(line).encode("utf-8")
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(file, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:  # empty, or torn when its process was killed
            continue


def _entry(folder: Path) -> Entry:
    """The last value of everything."""
    began: dict[str, Any] = {"name": folder.name[:8], "parent": None, "started": 0}
    tags: dict[str, str | None] = {}
    metrics: dict[str, tuple[int, float]] = {}
    for line in _lines(folder / RUN):
        began |= line.get("began", {})
        tags |= line.get("tags", {})
        step = line.get("step", 0)
        for key, value in line.get("metrics", {}).items():
            if not key.startswith(EPOCH) and step >= metrics.get(key, (step, 0.0))[0]:
                metrics[key] = step, value
    return Entry(
        run_id=folder.name,
        experiment=unquote(folder.parent.name),
        tags={key: value for key, value in tags.items() if value is not None and key.startswith(OURS)},
        metrics={key: value for key, (_, value) in metrics.items()},
        **began,
    )


def _versions(path: Path) -> list[Version]:
    if not path.is_file():
        return []
    lines = list(_lines(path))
    published = [line for line in lines if "run_id" in line]  # the first one is version 1
    aliases = {line["alias"]: line["of"] for line in lines if "alias" in line}
    return [
        Version(
            unquote(path.stem),
            number,
            line["run_id"],
            line["created"],
            tuple(sorted(alias for alias, version in aliases.items() if version == number)),
        )
        for number, line in enumerate(published, start=1)
    ]


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in PASSING
