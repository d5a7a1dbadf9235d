"""Lightning trains the engine's weights from an exported schedule, resumed anywhere, on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_runs import (
    ALIKE,
    BATCH,
    EPOCHS,
    RATES,
    STAGED,
    STEADY,
    VIT,
    EngineOf,
    digits,
    equal,
    loader_of,
    network,
    recorded,
    same_plan,
    sgd,
    sizes_seen,
    staged_loader,
    tiny,
    trained_by_hand,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from raytrain_speedup.adapters import ProgressLR, PrunedLoader
from raytrain_speedup.settings import UserError

lightning = pytest.importorskip("lightning.pytorch")

from raytrain_speedup.adapters.lightning import DataPruning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(lightning.LightningModule):
    def __init__(self, experiment: Any, loader: PrunedLoader) -> None:
        super().__init__()
        self.net, self.loader = network(experiment), loader
        self.sizes = sizes_seen(self.net)
        self.validated: list[int] = []
        self.rates: list[float] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        losses = cross_entropy(self.net(batch["inputs"]), batch["target"], reduction="none")
        return self.trainer.train_dataloader.loss(batch, losses)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.current_epoch)

    def configure_optimizers(self) -> Any:
        optimizer = sgd(self.net)
        scheduler = ProgressLR(optimizer, self.loader, **RATES)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def trainer(folder: Path, **options: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    options = {"enable_checkpointing": False, "callbacks": []} | options
    callbacks = [DataPruning(), *options.pop("callbacks")]
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        **quiet,
        **{"max_epochs": EPOCHS} | options,
    )


def fit(
    folder: Path,
    experiment: Any = None,
    *,
    loader: PrunedLoader | None = None,
    path: Any = None,
    accumulate: int = 1,
    **options: Any,
) -> tuple[list[Tensor], Classifier]:
    experiment = experiment or tiny()
    loader = loader or loader_of(experiment, batch_size=BATCH // accumulate, accumulate=accumulate)
    module = Classifier(experiment, loader)
    with recorded() as shown:
        trainer(folder, accumulate_grad_batches=accumulate, **options).fit(
            module, loader, val_dataloaders=DataLoader([0, 1]), ckpt_path=path
        )
    return shown, module


class Stop(lightning.Callback):
    """A checkpoint and the end after so many batches."""

    def __init__(self, after: int, path: Path) -> None:
        self.after, self.path = after, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.after -= 1
        if self.after == 0:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def test_the_engine_and_lightning_train_the_same_weights(tmp_path: Path, engine):
    shown, module = fit(tmp_path)
    assert same_plan(shown, engine[0])
    assert equal(module.net.state_dict(), engine[1])
    assert module.validated == sorted([*range(EPOCHS)] * 2)  # pruned epochs too
    assert module.rates[-1] < 0.01 * max(module.rates)


@pytest.mark.parametrize("stop_after", [2, 6, 7, 8])
def test_resumed_anywhere_it_ends_with_the_same_weights(stop_after: int, tmp_path: Path, engine):
    path = tmp_path / "last.ckpt"
    with pytest.raises(BaseException) as stopped:
        fit(tmp_path, callbacks=[Stop(stop_after, path)])
    assert isinstance(stopped.value, KeyboardInterrupt | SystemExit)
    shown, module = fit(tmp_path, path=path)
    assert same_plan(shown, engine[0][stop_after:])
    assert equal(module.net.state_dict(), engine[1])


def test_lightnings_own_checkpoint_at_the_end_of_an_epoch(tmp_path: Path, engine):
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(tmp_path, enable_checkpointing=True, callbacks=[saving])
    for path in (tmp_path / "epoch=1.ckpt", tmp_path / "epoch=2.ckpt"):
        shown, module = fit(tmp_path, path=path)
        assert same_plan(shown, engine[0][-len(shown) :])
        assert equal(module.net.state_dict(), engine[1])


def test_accumulated_batches_are_whole_steps(tmp_path: Path, engine_of: EngineOf):
    _, expected = engine_of(STEADY)
    _, module = fit(tmp_path, tiny(STEADY), accumulate=4)
    torch.testing.assert_close(module.net.state_dict(), expected, **ALIKE)


def test_pruning_and_curriculum_together_are_the_engines(tmp_path: Path, engine_of: EngineOf):
    """Image sizes, batches and learning rates of the stages; and a run that is cut off within the first stage, and
    within the last, goes on with what it would have shown. The weights are those of the loop by hand: the engine's
    images are not the same to the last bit."""
    expected_shown, _ = engine_of(STAGED)

    def staged(**options: Any) -> tuple[list[Tensor], Classifier]:
        loader = staged_loader(tmp_path)
        assert loader.epochs > EPOCHS
        return fit(tmp_path, tiny(STAGED), loader=loader, max_epochs=loader.epochs, **options)

    shown, module = staged()
    assert same_plan(shown, expected_shown)
    assert equal(module.net.state_dict(), trained_by_hand(tiny(STAGED), staged_loader(tmp_path)))
    assert module.sizes == [8] * 9 + [12] * 3 + [16] * 11, (
        "the tenth epoch has a batch of 12 pixels and one of 16"
    )
    assert module.validated == sorted([*range(module.loader.epochs)] * 2)
    path = tmp_path / "last.ckpt"
    for stop_after in (3, len(shown) - 4):
        with pytest.raises(BaseException) as stopped:
            staged(callbacks=[Stop(stop_after, path)])
        assert isinstance(stopped.value, KeyboardInterrupt | SystemExit)
        rest, again = staged(path=path)
        assert same_plan(rest, expected_shown[stop_after:]) and again.sizes == module.sizes[stop_after:]
        assert equal(again.net.state_dict(), module.net.state_dict())


@pytest.mark.slow
def test_two_processes(tmp_path: Path, engine_of: EngineOf):
    """In a process of its own, which may be forked: this one has threads."""
    import subprocess
    import sys

    _, expected = engine_of(VIT)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "net.pt"), expected, **ALIKE)


def on_two_processes(folder: Path) -> None:
    torch.set_num_threads(1)
    experiment = tiny(VIT)
    loader = loader_of(experiment, batch_size=BATCH // 2)
    module = Classifier(experiment, loader)
    trainer(folder, devices=2, strategy="ddp_fork").fit(module, loader)
    torch.save(module.net.state_dict(), folder / "net.pt")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_epochs": 7}, r"Trainer\(max_epochs=7\): the loader has 6; expected max_epochs=6"),
        ({"accumulate_grad_batches": 2}, r"Trainer\(accumulate_grad_batches=2\): the loader has 1"),
    ],
)
def test_a_trainer_that_does_not_agree_is_refused(options: dict[str, Any], message: str, tmp_path: Path):
    loader = loader_of(tiny())
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **options).fit(Classifier(tiny(), loader), loader)


def test_another_loader_is_refused(tmp_path: Path):
    loader = loader_of(tiny())
    with pytest.raises(UserError, match="the training loader is DataLoader; expected a PrunedLoader"):
        trainer(tmp_path).fit(Classifier(tiny(), loader), DataLoader(digits(tiny()), batch_size=BATCH))


if __name__ == "__main__":
    import sys

    on_two_processes(Path(sys.argv[1]))
