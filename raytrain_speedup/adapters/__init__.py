"""Pruning and curriculum in training loops that are not this package's.

    loop                      what to use
    plain PyTorch             `PrunedLoader` in place of the `DataLoader`
    with a DataLoader and DDP `PrunedBatchSampler` as its `batch_sampler`
    Lightning                 `raytrain_speedup.adapters.lightning.DataPruning`, a callback beside a `PrunedLoader`
    Hugging Face `Trainer`    `raytrain_speedup.adapters.transformers.PrunedTrainer`

All of them show what the engine shows at the same seed and global batch: its steps come from the same function.
They are one class (`epochs.py`) behind the interfaces that the loops expect. Lightning and Transformers are
imported by their own modules alone.
"""

from raytrain_speedup.adapters.ddp import PrunedBatchSampler
from raytrain_speedup.adapters.loader import PrunedLoader
from raytrain_speedup.adapters.progress_lr import ProgressLR

__all__ = ["ProgressLR", "PrunedBatchSampler", "PrunedLoader"]
