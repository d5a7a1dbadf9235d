"""Checkpoints behind a URI such as s3://bucket/runs: brought there file by file, complete with their manifest."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import (
    AzureFileSystem,
    FileSelector,
    FileSystem,
    FileType,
    GcsFileSystem,
    LocalFileSystem,
    S3FileSystem,
    copy_files,
)

from raytrain_speedup.engine.checkpoints.checkpoint import CheckpointFailed, is_rank_file, rank_file
from raytrain_speedup.engine.checkpoints.outage import outlast, reason_of
from raytrain_speedup.engine.checkpoints.store import (
    MANIFEST,
    NAME,
    CheckpointStore,
    FolderStore,
    checkpoint_name,
    manifest,
)
from raytrain_speedup.scaling.held_folder import HeldFolder, remove_left_folders, temporary_place
from raytrain_speedup.scaling.storage import PathOrUri, inside, is_uri
from raytrain_speedup.settings import UserError


def store_of(folder: PathOrUri) -> CheckpointStore:
    """The checkpoints of the run in a folder or behind a URI."""
    return UriStore(str(folder)) if is_uri(folder) else FolderStore(Path(folder))


def _no_room(what: str, error: OSError) -> str:
    """The line that a temporary folder cannot be made."""
    place = temporary_place()
    return f"{what} ({place}: {reason_of(error)}); expected a temporary folder (TMPDIR) that can be written"


OBJECT_STORES = (S3FileSystem, GcsFileSystem, AzureFileSystem)


class UriStore(CheckpointStore):
    """Checkpoints behind a URI, where nothing can be renamed: one is there as soon as its manifest is."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._files, self._folder = FileSystem.from_uri(uri)
        self._held: dict[Path, HeldFolder] = {}

    def create(self) -> None:
        probe = f"{self._folder}/.written"
        try:
            self._files.create_dir(self._folder)
            with self._files.open_output_stream(probe) as file:
                file.write(b"")
            self._files.delete_file(probe)
        except (ArrowException, OSError) as error:
            raise UserError(
                f"{self.location}: cannot be written ({str(error).splitlines()[0]}); expected a folder or a URI "
                "such as s3://bucket/runs (scaling.storage)"
            ) from error

    def clear(self) -> None:
        remove_left_folders()
        for name in set(self._folders()) - set(self._names()):
            self._remove(name)

    def begin(self, number: int) -> Path:
        try:
            return self._hold(checkpoint_name(number))
        except OSError as error:
            name = self.path_of(checkpoint_name(number))
            raise CheckpointFailed(_no_room(f"{name}: checkpoint not written", error)) from error

    def hand_over(self, folder: Path, number: int) -> None:
        target = self._path(checkpoint_name(number))

        def bring() -> None:
            self._files.create_dir(target)
            for file in sorted(folder.iterdir(), key=lambda file: is_rank_file(file.name)):
                self._bring(file, f"{target}/{file.name}")

        name = self.path_of(checkpoint_name(number))
        try:
            outlast(bring, name)
        except OSError as error:
            raise CheckpointFailed(f"{name}: checkpoint not written ({reason_of(error)})") from error
        finally:
            self._release(folder)

    def _bring(self, file: Path, target: str) -> None:
        """Seen whole or not at all: so are objects, and elsewhere a file gets its name when it is there."""
        beside = target if isinstance(self._files, OBJECT_STORES) else f"{target}.partial"
        copy_files(str(file), beside, source_filesystem=LocalFileSystem(), destination_filesystem=self._files)
        if beside != target:
            self._files.move(beside, target)

    @contextlib.contextmanager
    def fetched(self, name: str, rank: int) -> Iterator[Path]:
        """A copy without what only the other ranks need. Errors of who reads it name the checkpoint instead."""
        where = self.path_of(name)
        try:
            folder = self._hold(name)
        except OSError as error:
            raise CheckpointFailed(_no_room(f"{where}: cannot be copied here", error)) from error
        try:
            self._copy(name, rank, folder)
            yield folder
        except UserError as error:
            if str(folder) not in str(error):
                raise
            raise type(error)(str(error).replace(str(folder), where)) from error
        finally:
            self._release(folder)

    def _copy(self, name: str, rank: int, folder: Path) -> None:
        where = self.path_of(name)
        try:
            found = outlast(lambda: self._sizes(name), where)
            unread = set(map(rank_file, range(1, len(found)))) - {rank_file(rank)}
            for file in sorted(found.keys() - unread):
                outlast(self._copying(f"{self._path(name)}/{file}", folder / file), where)
        except OSError as error:
            reason = reason_of(error)
            raise CheckpointFailed(f"{where}: cannot be copied to {folder.parent} ({reason})") from error

    def close(self) -> None:
        for folder in list(self._held):
            self._release(folder)

    def _hold(self, name: str) -> Path:
        held = HeldFolder(name)
        self._held[held.path] = held
        return held.path

    def _release(self, folder: Path) -> None:
        self._held.pop(folder).remove()

    def _copying(self, source: str, target: Path) -> Callable[[], None]:
        return lambda: copy_files(
            source, str(target), source_filesystem=self._files, destination_filesystem=LocalFileSystem()
        )

    def path_of(self, name: str) -> str:
        return inside(self.location, name)

    def _names(self) -> list[str]:
        """Without those that were being brought there when their workers ended."""
        return [name for name in self._folders() if MANIFEST in self._sizes(name)]

    def _folders(self) -> list[str]:
        found = self._files.get_file_info(FileSelector(self._folder))
        names = [info.base_name for info in found if info.type == FileType.Directory]
        return [name for name in names if re.fullmatch(NAME, name)]

    def _read_manifest(self, name: str) -> bytes:
        with self._files.open_input_stream(f"{self._path(name)}/{MANIFEST}") as file:
            return file.read()

    def _sizes(self, name: str) -> Mapping[str, int]:
        found = self._files.get_file_info(FileSelector(self._path(name)))
        return {info.base_name: info.size for info in found if info.type == FileType.File}

    def _parts(self, number: int) -> Mapping[str, int]:
        return self._sizes(checkpoint_name(number))

    def _publish(self, number: int) -> None:
        told = json.dumps(manifest(self._parts(number)), indent=2)
        with self._files.open_output_stream(f"{self._path(checkpoint_name(number))}/{MANIFEST}") as file:
            file.write(told.encode())

    def _remove(self, name: str) -> None:
        self._files.delete_dir(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"
