"""What a run would take on other numbers of workers, before any of them is paid for.

A worker's step is measured here, on its part of the batch: small batches cost more a sample than large ones, and
by how much depends on network and device. What one machine cannot show is computed: a ring all-reduce sends
2 (W - 1) / W of the gradients over the slowest link (Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms",
JPDC 2009), while DDP is still busy with the backward pass, two thirds of a step's FLOPs; the bucket that is full
last is sent when that is over. Delays of messages and ranks that wait for each other are not in it: two workers of
steps of 15 ms on one machine took a third more than this says. Nor is the processors' part of an exchange, where
several workers share too few of them (tests/benchmarks/results/cpu-outlook.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.preflight import Preflight, StageCheck, preflight

BACKWARD = 2 / 3
"""Of a step, during which gradients are sent."""

BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends at once."""

NOTABLE = 0.1
"""Fraction of the run from which on the exchange is said to limit it."""


@dataclass(frozen=True)
class Outlook:
    """A run on so many workers, without pruning.

    Attributes:
        preflight: of one of these workers.
        link: bytes a second of the slowest link between two workers, as `speedup cluster check` measures it.
    """

    workers: int
    preflight: Preflight
    link: float

    @property
    def seconds(self) -> float:
        """Estimated training time."""
        return self.preflight.seconds + self.exchange_seconds

    @property
    def exchange_seconds(self) -> float:
        """Of it, in which workers wait for gradients."""
        checks = self.preflight.checks
        return sum(check.samples / check.batch * self._exposed(check) for check in checks)

    @property
    def input_rate(self) -> float | None:
        """Bytes a second that all workers read where they are fastest; None where nothing is read."""
        each = self.preflight.sample_bytes
        rates = [
            min(check.device_rate, check.loader_rate) / check.stage.replay for check in self.preflight.checks
        ]
        return None if each is None else self.workers * each * max(rates)

    @property
    def limit(self) -> str:
        """What holds the run up most: the images, the exchange of gradients, or the device itself."""
        checks = self.preflight.checks
        waiting = sum(check.seconds for check in checks if check.decode_bound)
        if waiting > max(self.seconds / 2, self.exchange_seconds):
            return "images"
        return "exchange" if self.exchange_seconds > NOTABLE * self.seconds else "device"

    def _exposed(self, check: StageCheck) -> float:
        """Seconds of a step that the exchange adds."""
        last = min(self.preflight.gradient_bytes, BUCKET)
        hidden = BACKWARD * check.batch / check.device_rate
        return max(self._sent(last), self._sent(self.preflight.gradient_bytes) - hidden)

    def _sent(self, nbytes: int) -> float:
        return 2 * (self.workers - 1) / self.workers * nbytes / self.link


def outlooks(
    experiment: Experiment,
    workers: Sequence[int],
    *,
    link: float,
    steps: int = 4,
    on_check: Callable[[StageCheck], None] | None = None,
) -> Iterator[Outlook]:
    """A preflight for each number of workers.

    Args:
        experiment, steps, on_check: as `preflight` takes them.
        link: bytes a second.

    Raises:
        UserError: for what would stop the run, a batch that does not split among the workers included.
    """
    for count in workers:
        own = experiment.with_overrides({"scaling.workers": count})
        yield Outlook(count, preflight(own, steps=steps, on_check=on_check), link)
