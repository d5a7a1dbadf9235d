"""Which driver a sweep belongs to: a heartbeat on the run that holds it.

A sweep is resumed from what its tracker holds, on any machine. Beside a driver that still lives this would run
everything twice, into the same folders. So a driver writes down every few seconds who it is and when it was
alive. Whoever wants to resume is refused while somebody lives, and takes over from somebody who is silent; a
driver that was only suspended, and is replaced when it wakes up, notices at its next beat and writes no more.

The times of different machines are compared: their clocks must agree to within some seconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.store import DRIVER
from raytrain_speedup.tracking.tracker import Tracker

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""A driver not heard of for so long is taken for dead: it had time to miss several beats on a busy machine."""

SETTLING_SECONDS = 0.5
"""Two that take over at the same moment: the one that wrote last has it."""


@dataclass(frozen=True)
class Beat:
    """A sign of life. `host` tells machines apart, also where they have one name; `at` is in unix seconds."""

    driver: str
    host: str
    name: str
    pid: int
    at: float

    def lives(self) -> bool:
        """Whether that driver may still be running: if it is one of this machine that is decided at once.

        This process itself runs one sweep at a time; what it wrote before is of one that ended.
        """
        if self.host == this_host() and (self.pid == os.getpid() or not _is_process(self.pid)):
            return False
        return time.time() - self.at < SILENCE_SECONDS


class Heartbeat:
    """Holds a sweep for this process, as a context manager.

    Args:
        tracker: its patience is for what is written, not for beats.
        parent: the run that holds the sweep.

    Raises:
        UserError: on entering, while another driver runs the sweep.
    """

    def __init__(self, tracker: Tracker, parent: str) -> None:
        self.tracker, self.parent = tracker, parent
        self.driver = uuid.uuid4().hex
        self.replaced_by: Beat | None = None
        """The driver that took over from this one."""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._go_on_beating, daemon=True)

    def __enter__(self) -> Heartbeat:
        other = read_beat(self.tracker, self.parent)
        if other is not None and other.lives():
            raise UserError(
                f"--resume: this sweep is being run by process {other.pid} on {other.name}, last heard of "
                f"{max(0.0, time.time() - other.at):.0f} s ago; expected to end that one first (a driver that "
                f"is not heard of for {SILENCE_SECONDS:.0f} s is taken for dead)"
            )
        self._beat(self.tracker)
        if other is not None:
            time.sleep(SETTLING_SECONDS)
            now = read_beat(self.tracker, self.parent)
            if now is not None and now.driver != self.driver:
                raise UserError(f"--resume: process {now.pid} on {now.name} was faster to resume this sweep")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        if self.replaced_by is None:
            with suppress(Exception):  # where nothing answers any more, that has been told
                self.tracker.impatient().remove_tag(self.parent, DRIVER)

    def _beat(self, tracker: Tracker) -> None:
        beat = Beat(self.driver, this_host(), socket.gethostname(), os.getpid(), time.time())
        tracker.set_tags(self.parent, {DRIVER: json.dumps(asdict(beat))})

    def _go_on_beating(self) -> None:
        tracker = self.tracker.impatient()  # the next beat makes up for one
        while not self._left.wait(BEAT_SECONDS):
            with suppress(Exception):
                found = read_beat(tracker, self.parent)
                if found is not None and found.driver != self.driver:
                    self.replaced_by = found
                    os.kill(os.getpid(), signal.SIGINT)  # Tune ends the trials as after a Ctrl-C
                    return
                self._beat(tracker)


def read_beat(tracker: Tracker, parent: str) -> Beat | None:
    """The last sign of life of a sweep's driver; None if that one ended in order."""
    text = tracker.run(parent).tags.get(DRIVER)
    return Beat(**json.loads(text)) if text else None


def this_host() -> str:
    """This machine; names alone are not unique (every other laptop is `localhost`)."""
    return f"{socket.gethostname()}-{uuid.getnode():012x}"


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
