"""Runs of a second or less that the engine's tests share: a part of the digits, and tiny networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine import run as engine
from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.reporter import Metrics, Notice, Reporter
from raytrain_speedup.scaling.uri_store import UriStore

CPU = torch.device("cpu")

VIT = {  # no batch norm, so its numbers do not depend on how a batch is cut; dropout where asked for
    "model.name": "timm/vit_tiny_patch16_224",
    "model.options": {"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2},
}

CALLS, WARMUP, STEPS = 3, 2, 4
SIZES = {
    "distillation.batch_size": 32,
    "distillation.warmup": WARMUP,
    "distillation.student_steps": STEPS,
    "distillation.pool_images": 128,
}
FASTDFKD = SIZES | {"distillation.steps": 2, "distillation.width": 8, "distillation.latent": 16}
SHORT = {
    "deepinversion": {"distillation.steps": 2},
    "cmi": {"distillation.steps": 2, "distillation.width": 8, "distillation.latent": 16},
    "noise": {},
    "real": {},
}
"""What keeps a method's call short; the generative ones need a small generator alone."""


def tiny(overrides: Mapping[str, Any] | None = None, **train: Any) -> Experiment:
    """230 digits of 8 x 8 pixels on ResNet-8, 3 epochs of 4 steps; keywords are keys of `train`."""
    keys = {
        "pruning.method": "none",
        "data.image_size": 8,
        "data.val_fraction": 0.84,
        "train.epochs": 3,
        "train.batch_size": 64,
        "train.eval_every": 0,
        "train.threads": 1,
    }
    return load_experiment(
        "digits", keys | {f"train.{key}": value for key, value in train.items()} | dict(overrides or {})
    )


class Diary(LocalReporter):
    """Remembers what was reported, and asks to stop after so many steps (of a student, where there is one)."""

    def __init__(self, folder: Path, *, stop_after: int | None = None) -> None:
        super().__init__(folder, self._note)
        self.reports: list[dict[str, Any]] = []
        self.steps = 0
        self._stop_after = stop_after

    def _note(self, kind: str, metrics: Metrics) -> None:
        if kind == "report":
            self.reports.append(dict(metrics))

    def progress(self, metrics: Metrics) -> None:
        super().progress(metrics)
        if metrics.get("of") == "teacher":
            return
        self.steps += 1
        self.stop_requested = self.steps == self._stop_after

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The reports of whole epochs."""
        return [metrics for metrics in self.reports if "train_loss" in metrics]


def slow_clock(seconds: float = 10.0) -> Callable[[], float]:
    """A clock that goes on by so much each time it is looked at."""
    ticks = itertools.count()
    return lambda: next(ticks) * seconds


class Left(Exception):
    """Gone elsewhere, after a notice."""


class UriDiary(Diary):
    """A diary whose checkpoints are behind the URI of its folder, or another."""

    def __init__(self, folder: Path, *, uri: str | None = None, **options: Any) -> None:
        super().__init__(folder, **options)
        self._store = UriStore(uri or folder.as_uri())
        self._store.create()
        self._store.clear()
        self._number = self._store.next_number()


class WorkerDiary(Diary):
    """A diary that two processes write together."""

    def __init__(self, folder: Path, rank: int, **options: Any) -> None:
        super().__init__(folder, **options)
        self.rank, self.world = rank, 2

    def _save(self, checkpoint: Checkpoint, number: int) -> None:
        checkpoint.write()
        self._store.hand_over(checkpoint.folder, number)
        if self.rank == 0:
            self._last = self._store.path_of(self._store.commit(number, self.world))

    def settle(self) -> None:
        super().settle()
        dist.barrier()

    def agree(self, decision: Any) -> Any:
        box = [decision]
        dist.broadcast_object_list(box, 0)
        return box[0]


class UriWorker(WorkerDiary):
    """One whose checkpoints are behind the URI of its folder; the first rank clears them, as of Ray's workers."""

    def __init__(self, folder: Path, rank: int, **options: Any) -> None:
        super().__init__(folder, rank, **options)
        self._store = UriStore(folder.as_uri())
        if rank == 0:
            self._store.clear()
        dist.barrier()
        self._number = self._store.next_number()


class WarnedWorker(WorkerDiary):
    """Rank 0 is told after so many steps that its node goes, and all leave."""

    watches = True

    def __init__(self, folder: Path, rank: int, *, told_after: int) -> None:
        super().__init__(folder, rank)
        self._told_after = told_after

    def notice(self) -> Notice | None:
        return self.agree(Notice(("node",)) if self.rank == 0 and self.steps >= self._told_after else None)

    def leave(self, notice: Notice) -> None:
        raise Left(str(notice))


def run(experiment: Experiment, reporter: Reporter, **options: Any) -> dict[str, Any]:
    """The final metrics of a run, as they are written down."""
    return engine.run(experiment, reporter, **options).to_dict()


def trained(
    experiment: Experiment, folder: Path, kind: type[Diary] = Diary
) -> tuple[dict[str, Any], dict[str, Tensor], Diary]:
    """Final metrics, evaluated weights and reports of a run in `folder`."""
    diary = kind(folder)
    metrics = run(experiment, diary, device=CPU)
    return metrics, weights(diary), diary


def weights(reporter: LocalReporter) -> dict[str, Tensor]:
    """The evaluated weights of a finished run."""
    latest = reporter.latest()
    assert latest is not None
    return torch.load(latest / "model.pt", weights_only=True)


def distilled(overrides: Mapping[str, Any] | None = None, method: str = "fastdfkd") -> Experiment:
    """Digits of 8 x 8 pixels without data: an epoch for a ResNet-8 as teacher, `CALLS` calls for another."""
    own = FASTDFKD if method == "fastdfkd" else SIZES | SHORT.get(method, {"distillation.width": 8})
    keys = {
        "data.image_size": 8,
        "data.val_fraction": 0.84,
        "teacher.model.name": "resnet8",
        "teacher.train.epochs": 1,
        "model.name": "resnet8",
        "train.epochs": CALLS,
        "train.batch_size": 16,
        "train.eval_every": 2,
        "train.checkpoint_every": 1,
        "train.threads": 1,
        "distillation.method": method,
    }
    return load_experiment("digits-dfkd", keys | own | dict(overrides or {}))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return equal(a, b)


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, their tensors bit for bit."""
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


TIMED = ("second", "peak_memory", "reference_s", "core_fraction")
"""Words in the names of metrics that differ from run to run of the same experiment."""


def untimed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that the experiment alone decides."""
    return {name: value for name, value in metrics.items() if not any(word in name for word in TIMED)}
