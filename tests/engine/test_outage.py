"""What a storage says is either waited for or told at once."""

from __future__ import annotations

import errno
import os

import pytest

from raytrain_speedup import retry
from raytrain_speedup.engine.checkpoints.outage import outlast, reason_of


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def of_torch(cause: OSError) -> RuntimeError:
    """As torch's file format tells what the disk said."""
    try:
        try:
            raise cause
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file")  # noqa: B904
    except RuntimeError as told:
        return told


class Storage:
    """Raises some errors, one a call, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "an answer"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each pause, which take none here."""
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


def test_what_passes_is_waited_for(naps: list[float], caplog: pytest.LogCaptureFixture) -> None:
    away = Storage(error(errno.EIO), of_torch(error(errno.ESTALE)), error(errno.ENOENT))
    assert outlast(away, "a file") == "an answer" and len(naps) == 3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and f"does not answer ({os.strerror(errno.EIO)})" in said[0]
    assert said[1] == "a file: the storage answers again"


@pytest.mark.parametrize(
    "lasting",
    [
        *map(error, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)),
        of_torch(error(errno.ENOSPC)),
        OSError("When listing objects: AWS Error NO_SUCH_BUCKET: The specified bucket does not exist"),
        RuntimeError("of no storage"),
    ],
    ids=reason_of,
)
def test_what_lasts_is_told_at_once(lasting: Exception, naps: list[float]) -> None:
    with pytest.raises(type(lasting)) as told:
        outlast(Storage(error(errno.EIO), lasting), "a file")
    assert told.value is lasting and len(naps) == 1
