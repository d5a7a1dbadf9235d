"""Lightning: a `PrunedLoader` as the training loader, and a callback that lets the trainer follow it.

    loader = PrunedLoader(dataset, "schedule.yaml", epochs=200, batch_size=128)

    class Classifier(LightningModule):
        def training_step(self, batch, batch_idx):
            losses = cross_entropy(self.net(batch["inputs"]), batch["target"], reduction="none")
            return self.trainer.train_dataloader.loss(batch, losses)

        def configure_optimizers(self):
            optimizer = SGD(self.parameters(), lr=0.1)
            return [optimizer], [{"scheduler": ProgressLR(optimizer, loader), "interval": "step"}]

    Trainer(max_epochs=loader.epochs, callbacks=[DataPruning()]).fit(Classifier(), loader)

Lightning itself calls the loader's `set_epoch`, and keeps its state in every checkpoint, as it does for any loader
with `state_dict`. What is left for the callback: Lightning gives that state back within an epoch only, counts the
batches of the first epoch once and for all, so pruned epochs would never be validated, and divides losses by the
batches of a step.
"""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    from raytrain_speedup.settings import UserError

    raise UserError(
        f"adapters.lightning: {error.name} is not installed; expected pip install 'raytrain-speedup[lightning]'"
    ) from None

from raytrain_speedup.adapters.loader import PrunedLoader
from raytrain_speedup.settings import UserError


class DataPruning(Callback):
    """Lets a trainer follow the epochs of its `PrunedLoader`.

    Raises:
        UserError: when training starts, if the training loader is no `PrunedLoader`, or the trainer is to make
            another number of epochs, or of batches to a step.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = (
            None  # of the loader, in the checkpoint that training goes on from
        )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the loader's state out of the checkpoint."""
        states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")
        if not states:
            raise UserError("DataPruning: the checkpoint is not of a PrunedLoader; expected one that is")
        self._state = states[0]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that trainer and loader agree; the epoch may be one that a checkpoint was taken in."""
        loader = self._loader(trainer)
        wanted = {"max_epochs": loader.epochs, "accumulate_grad_batches": loader.accumulate}
        for name, value in wanted.items():
            found = getattr(trainer, name)
            if found != value and not trainer.fast_dev_run:
                raise UserError(f"Trainer({name}={found}): the loader has {value}; expected {name}={value}")
        if self._state is not None:
            loader.load_state_dict(self._state)
            self._state = None
        loader.loss_divisor = trainer.accumulate_grad_batches
        self._follow_length(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches of the epoch that was planned just now."""
        self._follow_length(trainer)

    def _loader(self, trainer: Trainer) -> PrunedLoader:
        loader: Any = trainer.train_dataloader
        if not isinstance(loader, PrunedLoader):
            raise UserError(
                f"DataPruning: the training loader is {type(loader).__name__}; expected a PrunedLoader"
            )
        return loader

    def _follow_length(self, trainer: Trainer) -> None:
        """What `_FitLoop.setup_data` derives from the length of the loader, once more."""
        if trainer.limit_train_batches != 1.0:
            return  # the user's own limit
        length, loop = len(self._loader(trainer)), trainer.fit_loop
        loop.max_batches = length
        if loop._combined_loader is not None:
            loop._combined_loader.limits = [length]
        if loop._data_fetcher is not None:
            loop._data_fetcher.length = length
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(length * trainer.val_check_interval))
