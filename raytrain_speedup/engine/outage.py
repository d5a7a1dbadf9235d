"""A storage that is away for a while is waited for; one that will not mend is told at once.

Shared file systems and object stores fail for seconds or a minute (a server restarts, a network is cut, a token is
renewed), and a run of hours should not end by that. A full disk, a missing right or a missing bucket stay as they
are, however long one waits.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger("raytrain_speedup.storage")

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long a storage may be away; as long as a tracking server may."""

RETRY_SECONDS = 1.0

LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG),
}
LASTING_WORDS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "Bucket does not exist")
"""In the messages of object stores, whose errors have no number."""


def outlast(operation: Callable[[], T], what: str) -> T:
    """The result of an operation on the storage, tried again while the storage is away.

    Args:
        operation: may be repeated.
        what: the file or folder, for the log.

    Raises:
        OSError, RuntimeError: the operation's last error, if it is a lasting one or `PATIENCE_SECONDS` are over.
            (torch tells what the disk says as a RuntimeError.)
    """
    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            result = operation()
        except (OSError, RuntimeError) as error:
            if lasting(error) or time.monotonic() > deadline:
                raise
            if not told:
                told = True
                log.warning(
                    "%s: the storage does not answer (%s); trying for %.0f s",
                    what,
                    reason_of(error),
                    PATIENCE_SECONDS,
                )
            time.sleep(RETRY_SECONDS)
        else:
            if told:
                log.warning("%s: the storage answers again", what)
            return result


def lasting(error: BaseException) -> bool:
    """Whether trying again cannot help; so are errors that are not of a storage."""
    behind = _os_error(error)
    if behind is None:
        return True
    return behind.errno in LASTING or any(word in str(behind) for word in LASTING_WORDS)


def reason_of(error: BaseException) -> str:
    """The operating system's word, which may lie behind an error of torch's file format."""
    behind = _os_error(error)
    if behind is not None and behind.strerror:
        return behind.strerror
    return (str(behind or error) or type(error).__name__).splitlines()[0]


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
