"""What a run costs: the only place where time, FLOPs and memory are measured.

Training seconds are taken between two synchronisations of the device and hold everything a method does to
train (planning, loading, steps, the exchange of scores). Evaluation, checkpoints, warm-up, compilation and the
reference steps (`reference.py`) stand apart. How runs are compared is `compare.py`.
"""

from __future__ import annotations

import copy
import platform
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.engine.cost.clock import clock_for
from raytrain_speedup.models.resize import change_size
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks import Losses, Task

PHASES = ("setup", "teacher", "warmup", "train", "synthesis", "reference", "eval", "checkpoint")


class Stopwatch:
    """Seconds per phase, synchronised with the device, going on where a checkpoint left off.

    Attributes:
        seconds: of the wall clock, by phase.
        work: of the device's own clock (`clock.py`), by phase.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = clock_for(device)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.work = dict.fromkeys(PHASES, 0.0)
        self._phase: str | None = None
        self._since = (0.0, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside for `name`; a phase inside another interrupts it."""
        outer = self._phase
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str | None) -> None:
        synchronize(self.device)
        now = time.perf_counter(), self.clock.read()
        if self._phase is not None:
            self.seconds[self._phase] += now[0] - self._since[0]
            self.work[self._phase] += now[1] - self._since[1]
        self._phase, self._since = name, now

    def trained(self) -> tuple[float, float]:
        """Seconds of training up to now, synthesis included: of the wall clock, and of work."""
        self._switch(self._phase)
        wall, work = (kind["train"] + kind["synthesis"] for kind in (self.seconds, self.work))
        return wall, work

    def read(self) -> dict[str, float]:
        """`{"train_seconds": ..., ...}` up to now; synthesis is training too, and is told apart as well."""
        wall, work = self.trained()
        seconds = {f"{name}_seconds": seconds for name, seconds in self.seconds.items()}
        return seconds | {"train_seconds": wall, f"train_{self.clock.name}_seconds": work}

    def total(self) -> float:
        """Wall seconds of all phases."""
        self._switch(self._phase)
        return sum(self.seconds.values())

    def state_dict(self) -> dict[str, dict[str, float]]:
        self._switch(self._phase)
        return {"seconds": dict(self.seconds), "work": dict(self.work)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from an earlier process; this one's warm-up is added to what was spent before."""
        for kind, spent in ((self.seconds, state["seconds"]), (self.work, state["work"])):
            for name, seconds in spent.items():
                kind[name] += seconds


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_flops(model: nn.Module, task: Task, shape: tuple[int, ...]) -> float:
    """FLOPs of one sample's forward and backward pass, counted on the meta device: nothing is computed.

    Args:
        model: the network; it is copied.
        task: says what a training step asks of it.
        shape: of one input, (C, H, W) or (L,).
    """
    with FlopCounter() as counter:
        asked(model, task, shape).losses.sum().backward()
    return counter.total / 2


def forward_flops(model: nn.Module, task: Task, shape: tuple[int, ...]) -> float:
    """FLOPs of one sample's forward pass in a step of `task`."""
    with FlopCounter() as counter, torch.no_grad():
        asked(model, task, shape)
    return counter.total / 2


def asked(model: nn.Module, task: Task, shape: tuple[int, ...]) -> Losses:
    """What a task finds for two made-up samples, on the meta device: its shapes alone."""
    return task.losses(_ghost(model, shape), _two_samples(task, shape))


def _ghost(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    ghost = copy.deepcopy(model)
    change_size(ghost, shape[-1])
    return ghost.to("meta").train()


def _two_samples(task: Task, shape: tuple[int, ...]) -> Batch:
    """One would be refused by batch normalisation."""
    return {name: rows.to("meta") for name, rows in task.example(shape, 2).items()}


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of what runs inside, `torch.autograd.grad` included.

    torch's `FlopCounterMode` also follows the modules, and for that hooks gradients in a way that
    `torch.autograd.grad` with respect to parameters refuses.

    Attributes:
        total: FLOPs so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def within_memory(samples: int, size: int, inputs: str) -> Iterator[None]:
    """Tell a batch that does not fit the device's memory as the user's mistake it is.

    Args:
        size: of an image or a sequence, which `inputs` says.

    Raises:
        UserError: naming the batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # on a CPU torch raises a plain RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "t allocate memory" not in str(
            error
        ):
            raise
        each = f"{size} tokens" if inputs == "sequences" else f"{size} x {size} pixels"
        raise UserError(
            f"train.batch_size: {samples} samples of {each} at a time do not fit the memory of the "
            "device; expected a smaller batch, a smaller batch factor of the curriculum or train.accumulate"
        ) from error


def peak_memory(device: torch.device) -> int:
    """Bytes: the device allocator's peak on a GPU, the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hardware(device: torch.device, *, workers: Sequence[int], precision: str) -> str:
    """What ran: runs are compared only where this is equal.

    Args:
        workers: how many, one number after another: a run may go on with more or fewer.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    counts = " then ".join(str(count) for count, _ in groupby(workers))
    return f"{counts} x {name}, {precision}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device, not a path of ours
            models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return models[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
