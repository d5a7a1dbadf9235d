"""Two processes of one gloo group, forked from a third that has imported what takes long."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
PATIENCE = timedelta(minutes=2)  # of processes of which one failed, and the other waits

# The third process is started once, when it is first needed; to import all this again takes seven seconds of each.
# What an optimizer imports when it is first made (torch._dynamo) is the most of it.
multiprocessing.set_forkserver_preload(
    ["torch._dynamo", "torchvision", "timm", "raytrain_speedup.engine.run"]
)


def on_two_ranks(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` gives on two processes; it and its arguments are pickled.

    The environment of the processes is that of the first such call of the session.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_in_group, (folder, work, arguments), nprocs=WORLD, start_method="forkserver")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(WORLD)]


def _in_group(rank: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=PATIENCE)
    torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
