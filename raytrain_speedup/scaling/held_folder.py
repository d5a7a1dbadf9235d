"""Temporary folders of checkpoints that are on their way to a storage behind a URI, or from there.

Each is as large as a checkpoint, every rank has one at a time, and what is left of them fills the disk of a node.
So the process that uses one holds a lock on it, which the system takes from it however it ends, and whoever makes
the next one on that machine removes what nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "speedup-held-"
NEW = "speedup-new-"
"""Of a folder that is not locked yet."""


class HeldFolder:
    """An empty folder in the temporary one (TMPDIR), until `remove`.

    Args:
        name: a part of its own name.

    Attributes:
        path: where it is.

    Raises:
        OSError: if it cannot be made.
    """

    def __init__(self, name: str) -> None:
        remove_left_folders()
        new = Path(tempfile.mkdtemp(prefix=NEW))
        self._lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
        # Where nothing can be locked, nothing that is left can be told from it.
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = new.rename(new.with_name(f"{PREFIX}{name}-{new.name.removeprefix(NEW)}"))

    def remove(self) -> None:
        """With all that is in it; whatever the disk says, for nobody needs it any more."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_left_folders() -> None:
    """Remove the folders of processes that were killed."""
    with contextlib.suppress(OSError):  # there is no temporary folder: whoever needs one says so
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # in use, or another user's
                _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def temporary_place() -> str:
    """The temporary folder, for people."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "TMPDIR"
