"""Hugging Face: `PrunedTrainer` in place of `Trainer`.

    trainer = PrunedTrainer(model, args, train_dataset=dataset, pruning="schedule.yaml")
    trainer.train()                                     # or trainer.train(resume_from_checkpoint=True)

`args.num_train_epochs` is the budget; batch size, accumulation, seed and workers are those of the arguments. Any
schedule of `args.lr_scheduler_type` follows progress. A trainer of another kind comes after it: `class
Mine(PrunedTrainer, Seq2SeqTrainer)`. Losses per sample are the cross entropy of `logits` and
`labels`, the mean over the tokens where a sample is a sequence; override `per_sample_losses` for another one.

The `Trainer` takes the step count of the first epoch for that of all. Where epochs are pruned, it would leave
gradients of an unfinished step to the next epoch, look for a checkpoint's epoch in the wrong place and save nothing
at the end; `_run_epoch` and `_init_training_state` are overridden for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

try:
    import accelerate  # noqa: F401 - the Trainer needs it, and says so at length
    from transformers import Trainer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
except ImportError as error:
    from raytrain_speedup.settings import UserError

    raise UserError(
        f"adapters.transformers: {error.name} is not installed; "
        "expected pip install 'raytrain-speedup[transformers]'"
    ) from None

from raytrain_speedup.adapters.epochs import Pruning
from raytrain_speedup.adapters.loader import OWN, PrunedLoader
from raytrain_speedup.adapters.progress_lr import ProgressLR
from raytrain_speedup.settings import UserError

CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())

STATE = "pruning.pt"
"""File of a checkpoint: where the loader stands, and the state of the pruner."""


class PrunedTrainer(Trainer):
    """`Trainer` that shows what a pruner plans.

    Args:
        args, kwargs: as of `Trainer`.
        pruning: a pruner's settings, a schedule, or the path of a schedule file.
        image_size, stride: see `PrunedEpochs`; for a schedule with a curriculum, whose images are `pixel_values`.

    Attributes:
        loader: the `PrunedLoader`, once training has begun.

    Raises:
        UserError: if training is to be counted in steps (`max_steps`), or has a `compute_loss_func`.
    """

    loss_is_scaled_for_ga = True  # read by `Trainer.training_step`

    def __init__(
        self, *args: Any, pruning: Pruning, image_size: int | None = None, stride: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loader: PrunedLoader
        self._pruning: dict[str, Any] = {"pruning": pruning, "image_size": image_size, "stride": stride}
        self._budget = self.args.num_train_epochs
        if self.args.max_steps > 0:
            raise UserError(
                f"max_steps: {self.args.max_steps} is not allowed, pruned epochs have fewer steps; expected "
                "num_train_epochs"
            )
        if self.compute_loss_func is not None:
            raise UserError(
                "compute_loss_func: pruning needs one loss per sample; expected per_sample_losses"
            )

    def per_sample_losses(self, outputs: Any, inputs: Mapping[str, Any]) -> Tensor:
        """(b,) losses of a batch: the cross entropy of `outputs.logits` (b, ..., C) and `labels` (b, ...),
        whose -100 do not count, averaged over what is between. Causal language models predict the token after."""
        logits, labels = outputs["logits"], inputs["labels"]
        if type(self.accelerator.unwrap_model(self.model)).__name__ in CAUSAL:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            reduction="none",
            label_smoothing=self.args.label_smoothing_factor,
        )
        counted = (labels != -100).view(len(labels), -1).sum(1)
        return losses.view(len(labels), -1).sum(1) / counted.clamp(min=1)

    # --- what the Trainer asks for ------------------------------------------------------------------------

    def get_train_dataloader(self) -> PrunedLoader:
        """The loader; a curriculum changes the number of passes that the budget buys."""
        args = self.args
        self.loader = PrunedLoader(
            self.train_dataset,
            **self._pruning,
            epochs=self._budget,
            batch_size=self._train_batch_size,
            accumulate=args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="training"),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        args.num_train_epochs = self.loader.epochs
        return self.loader

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        """The schedule of `args.lr_scheduler_type`, read at progress x steps."""
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if self._created_lr_scheduler and isinstance(scheduler, LambdaLR):
            factor: Any = scheduler.lr_lambdas[0]  # of a step, which may lie between two
            scheduler = ProgressLR(
                scheduler.optimizer, self.loader, lambda at: factor(at * num_training_steps)
            )
            self.lr_scheduler = scheduler
        return scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The weighted loss of a training batch; that of the `Trainer` in evaluation."""
        if "number" not in inputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        outputs = model(**{name: value for name, value in inputs.items() if name not in OWN})
        loss = self.loader.loss(inputs, self.per_sample_losses(outputs, inputs))
        if (
            self.loader.epoch == self.loader.epochs
        ):  # this step is the last: evaluate and save where asked for
            self.state.max_steps = self.state.global_step + 1
        return (loss, outputs) if return_outputs else loss

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        self.loader.set_epoch(epoch)
        steps = len(self.loader) // self.loader.accumulate
        super()._run_epoch(
            epoch=epoch, **kwargs | {"steps_in_epoch": len(self.loader), "num_update_steps_per_epoch": steps}
        )

    # --- checkpoints --------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        state = self.loader.state_dict()  # on every process
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            torch.save(state, folder / STATE)

    def _init_training_state(
        self,
        max_steps: int,
        steps_per_epoch: int,
        epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """The epoch to go on with, and no batches to skip: the loader itself goes on in its middle."""
        begin = super()._init_training_state(
            max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return begin
        path = Path(resume_from_checkpoint) / STATE
        if not path.is_file():
            raise UserError(f"{path}: not found; expected a checkpoint of a trainer with pruning")
        self.loader.load_state_dict(torch.load(path, weights_only=True))
        return self.loader.epoch, 0
