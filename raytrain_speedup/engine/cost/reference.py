"""What a run costs in reference steps: its own plain step, timed throughout the run.

A speedup compares runs that ran at different moments, on a machine that warms up and that others use. So every
run carries its own yardstick: a forward and a backward pass of the same network by the same task, at full size, on
a fixed batch, without any method, in the same process and on the same device. It is timed at the start, at the end
and at least once in 5 % of the progress; what the run worked between two of these is counted in steps of their
mean. Programs that slow a run slow its yardstick alike.

Measured with digits under loads that came and went (true ratio 1.43): wall seconds said 4.87 and 2.13, CPU
seconds 1.52 and 1.49, CPU seconds in reference steps 1.45 and 1.37.

The yardstick is a copy of the network as it was at the start, with inputs of its own, and never compiled: a
unit need not be fast, only the same for a method and its baseline. Of the run it touches nothing, random
numbers included. It takes memory for a second set of weights and gradients.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_speedup.engine.checkpoints.checkpoint import random_state, restore_random_state
from raytrain_speedup.engine.cost.clock import involuntary_switches, other_processes
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.models.batch_norm import own_statistics
from raytrain_speedup.tasks import Task

EVERY = 0.05
"""Of the progress, between two measurements."""

MOST_OF_THE_RUN = 0.012
"""Of the budget's samples go through reference steps, so that a method that saves 40 % spends 2 % on them."""

MOST_STEPS = 3
"""Steps of one measurement, where the budget allows more than one."""


class Yardstick(ABC):
    """Times reference steps and counts a run's cost in them; what a step does say the classes below.

    Args:
        watch: times the run; the steps are its phase `reference`.
        batch_size: samples of a reference step.
        steps: how many are timed at once.

    Attributes:
        seconds: of one step at each measurement, by the stopwatch's clock.
    """

    def __init__(self, watch: Stopwatch, *, batch_size: int, steps: int) -> None:
        self.batch_size, self.steps = batch_size, steps
        self.seconds: list[float] = []
        self._watch = watch
        self._cost = 0.0  # of the segments that are closed, in reference steps
        self._mark: float | None = None  # where the open segment began, in seconds of work
        self._progress = 0.0  # at the last measurement
        self._switches = involuntary_switches()
        self._switched = 0
        self._others = 0

    @abstractmethod
    def _step(self) -> None:
        """The run's plain step; it changes nothing of the run."""

    def warm_up(self) -> None:
        """A step that is not timed."""
        self._step()

    def due(self, progress: float) -> bool:
        """Whether another twentieth of the run is over. Its end is measured when the last epoch is."""
        return progress < 1 - 1e-9 and int(progress / EVERY + 1e-9) > int(self._progress / EVERY + 1e-9)

    def measure(self, progress: float | None = None) -> None:
        """Time the reference step, and close the segment since the last time.

        Args:
            progress: of the run; at its beginning and its end nobody asks when the next one is due.
        """
        _, spent = self._watch.trained()
        random, before = random_state(), self._watch.work["reference"]
        with self._watch.phase("reference"):
            for _ in range(self.steps):
                self._step()
        now = (self._watch.work["reference"] - before) / self.steps
        restore_random_state(random)
        if self._mark is not None:
            self._cost += (spent - self._mark) / ((self.seconds[-1] + now) / 2)
        self.seconds.append(now)
        self._mark = spent
        self._progress = self._progress if progress is None else progress
        self._look_around()

    def _look_around(self) -> None:
        switches = involuntary_switches()
        self._switched, self._switches = self._switched + switches - self._switches, switches
        self._others = max(self._others, other_processes(self._watch.device) or 0)

    def metrics(self) -> dict[str, float]:
        """What the run tells of its cost and of its peace.

        - `reference_steps`: the cost. `reference_step_seconds`: the median measurement.
        - `reference_spread`: of the quarters of the run, the slowest over the fastest.
        - `core_fraction`: CPU seconds over wall seconds of the training; absent on a GPU.
        - `switches_per_second`: involuntary context switches in a second of work.
        - `other_processes`: on the GPU, at most at any time.
        """
        found = {
            "reference_steps": self._spent(),
            "reference_batch": float(self.batch_size),
            "reference_step_seconds": median(self.seconds),
            "reference_spread": _spread(self.seconds),
        }
        if self._watch.clock.name == "cpu":
            wall, work = self._watch.trained()
            found["core_fraction"] = work / max(wall, 1e-9)
            found["switches_per_second"] = self._switched / max(work, 1e-9)
        elif self._others:
            found["other_processes"] = float(self._others)
        return found

    def _spent(self) -> float:
        """The cost up to now; the open segment is counted by the measurement before it."""
        if self._mark is None:
            return self._cost
        _, spent = self._watch.trained()
        return self._cost + (spent - self._mark) / self.seconds[-1]

    def state_dict(self) -> dict[str, Any]:
        return {
            "cost": self._spent(),
            "seconds": list(self.seconds),
            "progress": self._progress,
            "switched": self._switched,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier process. Its last segment was closed by its own yardstick; this one's begins with
        the next measurement."""
        self._cost, self.seconds = state["cost"], list(state["seconds"])
        self._progress, self._switched = state["progress"], state["switched"]
        self._mark = None


class Reference(Yardstick):
    """A forward and a backward pass of a copy of the network, on a fixed batch.

    Args:
        network: the model as it is trained at the start; it is copied.
        task: makes up the batch, and says what a step computes of it.
        shape: of an input at full size, (C, H, W) or (L,).
        batch_size: samples a worker has on its device at a time.
        budget_samples: sample passes of the whole budget on this worker, at full size.
        watch: times the run; the steps are its phase `reference`.
        autocast: the run's arithmetic.
        channels_last: the run's memory format.

    Attributes:
        batch_size: samples of a reference step: the run's own batch, or fewer where the budget is small.
        steps: how many are timed at once.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        shape: tuple[int, ...],
        *,
        batch_size: int,
        budget_samples: float,
        watch: Stopwatch,
        autocast: torch.autocast,
        channels_last: bool = False,
    ) -> None:
        allowed = MOST_OF_THE_RUN * budget_samples / (round(1 / EVERY) + 1)
        batch_size = max(2, min(batch_size, int(allowed)))  # batch normalisation refuses a single sample
        super().__init__(
            watch, batch_size=batch_size, steps=max(1, min(MOST_STEPS, int(allowed / batch_size)))
        )
        self._network = copy.deepcopy(network).train()
        own_statistics(self._network)  # it steps alone, and at moments of its own
        self._autocast, self._task = autocast, task
        self._batch = {
            name: rows.to(watch.device) for name, rows in task.example(shape, self.batch_size).items()
        }
        if channels_last:
            self._batch["inputs"] = self._batch["inputs"].to(memory_format=torch.channels_last)

    def _step(self) -> None:
        self._task.losses(self._answer, self._batch).losses.sum().backward()
        self._network.zero_grad(set_to_none=True)

    def _answer(self, *inputs: Tensor) -> Any:
        with self._autocast:
            return self._network(*inputs)


class StepYardstick(Yardstick):
    """A step that a script gives."""

    def __init__(self, step: Callable[[], Any], watch: Stopwatch, *, batch_size: int) -> None:
        super().__init__(watch, batch_size=batch_size, steps=MOST_STEPS)
        self._own_step = step

    def _step(self) -> None:
        self._own_step()


class NoReference:
    """In the place of a `Reference` where nobody asks what a training cost, such as a teacher's."""

    def warm_up(self) -> None: ...

    def due(self, progress: float) -> bool:
        return False

    def measure(self, progress: float | None = None) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def _spread(seconds: list[float]) -> float:
    """The slowest quarter of the run over the fastest, by their medians.

    Single measurements of a small step spread by 1.7 on a quiet machine as on a busy one, and say nothing.
    """
    parts = min(4, len(seconds))
    bounds = [len(seconds) * part // parts for part in range(parts + 1)]
    quarters = [median(seconds[start:end]) for start, end in pairwise(bounds)]
    return max(quarters) / min(quarters)
