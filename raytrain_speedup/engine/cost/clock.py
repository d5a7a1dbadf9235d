"""Time that other programs cannot take: what a device worked for a run, whatever else the machine was doing.

Wall seconds of runs at different moments say who else used the machine. A process's CPU seconds leave out the
time in which it waited for a core; they still grow when caches and the memory bus are shared, and for that
`reference.py` counts them in steps of the run's own network.
"""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch


class Clock(ABC):
    """Seconds of work, counted from anywhere; only differences mean something.

    Attributes:
        name: what is counted: CPU seconds, or seconds of the device.
    """

    name: Literal["cpu", "device"]

    @abstractmethod
    def read(self) -> float:
        """Seconds up to now. The caller has synchronised the device."""


class _Beside:
    """The CPU seconds of threads of this process that work beside a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = 0.0
        self._began: dict[int, float] = {}  # by the thread

    @contextmanager
    def working(self) -> Iterator[None]:
        thread, began = threading.get_ident(), time.thread_time()
        with self._lock:
            self._began[thread] = began
        try:
            yield
        finally:
            with self._lock:
                self._ended += time.thread_time() - self._began.pop(thread)

    def seconds(self) -> float:
        with self._lock:  # so no thread in it is gone
            return self._ended + sum(
                time.clock_gettime(time.pthread_getcpuclockid(thread)) - began
                for thread, began in self._began.items()
            )


_BESIDE = _Beside()


def no_work_of_the_run() -> AbstractContextManager[None]:
    """What the calling thread does inside (it writes a checkpoint, say) is no CPU second of the run."""
    return _BESIDE.working()


class CpuClock(Clock):
    """CPU seconds of all threads of this process that work for the run, and of the processes that load for it."""

    name = "cpu"

    def __init__(self) -> None:
        self._children: dict[int, float] = {}

    def read(self) -> float:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                try:
                    self._children[child.pid] = time.clock_gettime(_clock_of(child.pid))
                except OSError:  # it has ended: what it had worked when last seen stays counted
                    continue
        return time.process_time() - _BESIDE.seconds() + sum(self._children.values())


class DeviceClock(Clock):
    """Seconds of a GPU's own clock, by events in its queue: idle stretches count, the host's jitter does not."""

    name = "device"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._last = self._now()

    def read(self) -> float:
        # From the last reading, not from the first: an event's distance is a float32 of milliseconds.
        now = self._now()
        self._seconds += self._last.elapsed_time(now) / 1e3
        self._last = now
        return self._seconds

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        event.synchronize()
        return event


def clock_for(device: torch.device) -> Clock:
    """The clock that counts work on a device."""
    return DeviceClock(device) if device.type == "cuda" else CpuClock()


def involuntary_switches() -> int:
    """How often the scheduler took a core away from this process, since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def other_processes(device: torch.device) -> int | None:
    """How many other processes compute on a GPU; None where that cannot be read (it takes `pynvml`)."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return max(0, len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1)
    except Exception:  # no package, no driver, no permission: each has an error of its own
        return None


def _clock_of(pid: int) -> int:
    """The id of another process's CPU clock, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2
