"""A storage that is away for a while is waited for; one that will not mend is told at once.

A full disk, a missing right or a missing bucket stay as they are, however long one waits.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from raytrain_speedup import retry

log = logging.getLogger("raytrain_speedup.storage")

T = TypeVar("T")

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
        OSError, RuntimeError: the operation's last error, if it is a lasting one or `retry.PATIENCE_SECONDS` are
            over. (torch tells what the disk says as a RuntimeError.)
    """
    away = False

    def say(error: Exception) -> None:
        nonlocal away
        away = True
        log.warning(
            "%s: the storage does not answer (%s); trying for %.0f s",
            what,
            reason_of(error),
            retry.PATIENCE_SECONDS,
        )

    result = retry.retry(operation, may_pass=_may_pass, say=say, seconds=retry.PATIENCE_SECONDS)
    if away:
        log.warning("%s: the storage answers again", what)
    return result


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError | RuntimeError) and not lasting(error)


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
