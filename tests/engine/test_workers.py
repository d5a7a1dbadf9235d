"""Two workers train as one does: the same steps, the same gradients, one synchronisation each.

Two gloo processes are started once, run every scenario and leave what they saw in files. For one test they run
what that one names.
"""

import copy
import inspect
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from engine_runs import CPU, VIT, Left, WarnedWorker, WorkerDiary, run, same, slow_clock, tiny, trained
from ranks import on_two_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raytrain_speedup.data import DeviceLoader
from raytrain_speedup.data.batch import Batch
from raytrain_speedup.engine import learner, lookout
from raytrain_speedup.engine.alarm import NonFinite
from raytrain_speedup.engine.ema import MovingAverage
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.tasks import Losses, Model
from raytrain_speedup.tasks.classification import Classification

INFOBATCH = {"pruning.method": "infobatch", "pruning.anneal_from": 1.0, "train.lr": 0.01}
SCENARIOS = {
    "plain": tiny(VIT, lr=0.01),
    "accumulated": tiny(VIT, lr=0.01, accumulate=4),
    "infobatch": tiny(VIT | INFOBATCH),
    "stopped": tiny(VIT | INFOBATCH | {"model.drop_rate": 0.1}),
    "warned": tiny(VIT | INFOBATCH | {"model.drop_rate": 0.1}),
    "by-the-minute": tiny(
        VIT | INFOBATCH | {"model.drop_rate": 0.1}, checkpoint_minutes=1, checkpoint_every=3
    ),
    "whole": tiny(VIT | INFOBATCH | {"model.drop_rate": 0.1}),
    "unreadable": tiny(VIT, lr=0.01, epochs=1),
    "poisoned": tiny(VIT, lr=0.01, epochs=1),
    "batch-norm": tiny(epochs=1, ema_decay=0.5),
    "drawn": tiny(
        VIT
        | {
            "model.drop_rate": 0.1,
            "model.drop_path": 0.5,
            "model.options": VIT["model.options"] | {"depth": 2},
        },
        epochs=1,
        ema_decay=0.5,
    ),
}

ALL_REDUCE = dist.all_reduce
OTHERS = ("all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast")
"""Collectives that a network without batch statistics does not need."""


class Counted(DistributedDataParallel):
    """Counts the gradient synchronisations; its own collectives are DDP's, one a step."""

    syncs = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_comm_hook(None, Counted.reduce)

    @staticmethod
    def reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        Counted.syncs += bucket.is_last()
        averaged = ALL_REDUCE(bucket.buffer().div_(2), async_op=True).get_future()
        return averaged.then(lambda future: future.value()[0])


class Unreadable(DeviceLoader):
    """The part of rank 1 of the second step cannot be read."""

    def train_batches(self, steps: Any, *, epoch: int) -> Iterator[Batch]:
        for step, batch in zip(steps, super().train_batches(steps, epoch=epoch), strict=True):
            lost = self.rank == 1 and step.number == 1
            yield {key: tensor[:0] for key, tensor in batch.items()} if lost else batch


class Poisoned(Classification):
    """The losses of rank 1 in the second step are NaN; the first ones are a warm-up step's."""

    calls = 0

    def losses(self, model: Model, batch: Batch) -> Losses:
        self.calls += "weight" in batch  # reference steps are no training
        good = super().losses(model, batch)
        return (
            good._replace(losses=good.losses * float("nan"))
            if dist.get_rank() == 1 and self.calls == 3
            else good
        )


class Begun(MovingAverage):
    """Keeps the weights that a rank begins with, before DDP hands out those of rank 0."""

    weights: ClassVar[list[Mapping[str, Tensor]]] = []

    def __init__(self, model: nn.Module, *args: Any) -> None:
        super().__init__(model, *args)
        Begun.weights.append(copy.deepcopy(self.module.state_dict()))


@contextmanager
def masks_drawn() -> Iterator[list[Tensor]]:
    """Where dropout and stochastic depth put zeros."""
    masks: list[Tensor] = []

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        draws = type(module).__name__ in ("Dropout", "DropPath") and module.training
        if draws and not output.is_meta and len(output) > 2:  # nor counted FLOPs nor the reference step's two
            masks.append(output == 0)

    handle = nn.modules.module.register_module_forward_hook(note)
    yield masks
    handle.remove()


def observed(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """What a rank sees of a scenario."""
    collectives, others = [], []

    def noting(other: str, collective: Any) -> Any:
        return lambda *args, **options: (others.append(other), collective(*args, **options))[1]

    def counting(tensor: Tensor, *args: Any, **options: Any) -> Any:
        collectives.append(tensor.numel())
        return ALL_REDUCE(tensor, *args, **options)

    Counted.syncs = 0
    Begun.weights.clear()
    diary, error, metrics = WorkerDiary(folder / name, rank), None, None
    with pytest.MonkeyPatch.context() as patch, masks_drawn() as masks:
        patch.setattr(dist, "all_reduce", counting)
        for other in OTHERS:
            patch.setattr(dist, other, noting(other, getattr(dist, other)))
        if name == "unreadable":
            patch.setattr("raytrain_speedup.data.DeviceLoader", Unreadable)
        if name == "poisoned":
            patch.setattr("raytrain_speedup.tasks.classification.Classification", Poisoned)
        patch.setattr(learner, "MovingAverage", Begun)
        try:
            metrics = run(SCENARIOS[name], diary, device=CPU)
        except NonFinite as nonfinite:
            error = str(nonfinite)
    return {
        "metrics": metrics,
        "error": error,
        "steps": diary.steps,
        "syncs": Counted.syncs,
        "collectives": collectives,
        "others": others,
        "masks": masks,
        "begun": Begun.weights[:],
    }


CUT_SHORT = {"warned": Left, "by-the-minute": KeyboardInterrupt}
"""Scenarios that are begun, and leave a checkpoint that nobody asked for between two steps."""


class Killed(WorkerDiary):
    """Ends without a word in the eighth step."""

    def progress(self, metrics: Any) -> None:
        super().progress(metrics)
        if self.steps == 8:
            raise KeyboardInterrupt


def cut_short(name: str, rank: int, folder: Path) -> None:
    """The beginning of such a scenario. A step takes ten seconds by the clock of rank 0, none by the other's."""
    diary = (
        WarnedWorker(folder / name, rank, told_after=6) if name == "warned" else Killed(folder / name, rank)
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CUT_SHORT[name]):
        patch.setattr(lookout, "monotonic", slow_clock(10.0 if rank == 0 else 0.0))
        run(SCENARIOS[name], diary, device=CPU)
    if rank == 0:
        (last,) = sorted((folder / name).glob("checkpoint-*/run.pt"))[-1:]
        shutil.copy(last, folder / f"{name}-begun.pt")
    dist.barrier()


def worker(rank: int, folder: Path, scenarios: list[str]) -> None:
    learner.DistributedDataParallel = Counted  # type: ignore[misc]
    for name in scenarios:
        experiment = SCENARIOS[name]
        if name == "stopped":
            with pytest.raises(Stopped):
                run(experiment, WorkerDiary(folder / name, rank, stop_after=6), device=CPU)
            if rank == 0:
                shutil.copytree(folder / name, folder / "stopped-for-one")
        if name in CUT_SHORT:
            cut_short(name, rank, folder)
        torch.save(observed(name, rank, folder), folder / f"{name}-{rank}.pt")


@pytest.fixture(scope="module")
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two workers ran the scenarios."""
    folder = tmp_path_factory.mktemp("two")
    tests = [item for item in request.session.items if item.path == request.path]
    said = "".join(inspect.getsource(test.function) + test.name for test in tests)  # type: ignore[attr-defined]
    named = [name for name in SCENARIOS if f'"{name}"' in said or f"[{name}]" in said]
    on_two_ranks(worker, folder, named)
    return folder


def seen_by_both(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def result(folder: Path, name: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What both ranks saw, and the weights."""
    (last,) = sorted((folder / name).glob("checkpoint-0*"))[-1:]
    return seen_by_both(folder, name), torch.load(last / "model.pt", weights_only=True)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "infobatch"])
def test_two_workers_train_as_one(name: str, two: Path, tmp_path: Path):
    seen, weights = result(two, name)
    one, expected, diary = trained(SCENARIOS[name], tmp_path)
    close(weights, expected)
    assert [rank["steps"] for rank in seen] == [diary.steps, diary.steps]
    for key in ("samples_shown", "compute_spent", "passes_saved", "train_flops"):
        assert seen[0]["metrics"][key] == seen[1]["metrics"][key] == one[key]
    for key in ("test_loss", "val_loss", "accuracy"):
        assert seen[0]["metrics"][key] == seen[1]["metrics"][key] == pytest.approx(one[key], rel=1e-3)


def test_accumulating_is_the_same_step_with_one_synchronisation(two: Path):
    plain, weights = result(two, "plain")
    seen, accumulated = result(two, "accumulated")
    close(accumulated, weights)
    for rank in (0, 1):
        assert seen[rank]["syncs"] == seen[rank]["steps"] + 1  # and one to warm up
        assert plain[rank]["syncs"] == plain[rank]["steps"] + 1


def test_collectives_are_counted_by_epoch_not_by_step(two: Path):
    """Per epoch: scores (2 N numbers), the alarm, the losses (by checkpoint and by report)."""
    (seen, _), _ = result(two, "infobatch")
    samples = 230
    assert seen["collectives"].count(2 * samples) == 3
    assert len(seen["collectives"]) <= 3 * 4 + 2 + 2  # evaluations and the last checkpoint
    assert seen["steps"] > 8 and not seen["others"]


def test_two_workers_resume_bit_for_bit(two: Path):
    assert same(result(two, "stopped")[1], result(two, "whole")[1])


@pytest.mark.parametrize("name", ["warned", "by-the-minute"])
def test_both_save_at_one_step_though_only_one_knows(name: str, two: Path):
    """The notice and the clock are those of rank 0; what goes on from there is the undisturbed run."""
    assert torch.load(two / f"{name}-begun.pt", weights_only=True)["steps_taken"] == 6
    seen, weights = result(two, name)
    whole, expected = result(two, "whole")
    assert same(weights, expected)
    assert [rank["steps"] for rank in seen] == [whole[0]["steps"] - 6] * 2


def test_one_worker_goes_on_from_a_checkpoint_of_two(two: Path, tmp_path: Path):
    """The second worker's draws of dropout are lost, so scores differ a little, but the run ends alike."""
    experiment = SCENARIOS["stopped"]
    shutil.copytree(two / "stopped-for-one", tmp_path / "one")
    metrics, _, diary = trained(experiment, tmp_path / "one")
    seen, _ = result(two, "whole")
    assert metrics["samples_shown"] == pytest.approx(seen[0]["metrics"]["samples_shown"], rel=0.05)
    assert diary.steps < seen[0]["steps"]


def test_a_part_that_cannot_be_read_holds_nobody_up(two: Path):
    seen, weights = result(two, "unreadable")
    assert seen[0]["steps"] == seen[1]["steps"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_each_rank_draws_masks_of_its_own(two: Path):
    """Of dropout and stochastic depth; `test_two_workers_resume_bit_for_bit` has dropout too."""
    first, second = (rank["masks"] for rank in seen_by_both(two, "drawn"))
    assert [mask.shape for mask in first] == [mask.shape for mask in second]
    drawn = [(a, b) for a, b in zip(first, second, strict=True) if a.any() or b.any()]
    assert len(drawn) >= 15  # three a forward pass
    assert {mask.flatten(1).all(1).any().item() for mask, _ in drawn} == {True, False}, "both kinds"
    assert not any(torch.equal(a, b) for a, b in drawn)


@pytest.mark.parametrize("name", ["batch-norm", "drawn"])
def test_all_ranks_begin_with_the_same_weights(name: str, two: Path):
    """Their averages are made before DDP shares anything."""
    first, second = (rank["begun"] for rank in seen_by_both(two, name))
    assert len(first) == len(second) == 1
    assert same(first[0], second[0])


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_naming_its_step(two: Path):
    """A step later the weights of both are NaN, and so are their losses."""
    for rank in seen_by_both(two, "poisoned"):
        assert "the loss is not finite at step 2;" in rank["error"]


def test_batch_statistics_evaluated_are_the_ones_saved(two: Path, tmp_path: Path):
    """Each worker has its own; the metrics must be those of the saved model, evaluated by anyone."""
    seen, weights = result(two, "batch-norm")
    shutil.copytree(two / "batch-norm", tmp_path / "one")
    for folder in (tmp_path / "one").glob("checkpoint-*"):
        (folder / "metrics.json").unlink(missing_ok=True)
    metrics, again, diary = trained(SCENARIOS["batch-norm"], tmp_path / "one")
    assert diary.steps == 0
    assert same(again, weights)
    assert metrics["test_loss"] == pytest.approx(seen[0]["metrics"]["test_loss"], rel=1e-6)
