"""Runs scripts one after another on two ranks each, in the environment that `torchrun` makes, and prints how many
of their training images they get right. The ranks are forks of one process, which imports what scripts need once.

    python two_ranks.py a.py b.py
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys

import sklearn.datasets  # noqa: F401 - for the forks
import torch

import raytrain_speedup.adapters  # noqa: F401 - likewise

WORLD = 2


def accuracy(script: dict[str, object]) -> float:
    """Fraction of the training images that a script's network gets right, by its global names."""
    net = script.get("net") or getattr(script["model"], "net", script["model"])
    images, digits = script["images"], script["digits"]
    answers = net.cpu().eval()(images).argmax(1)
    return (answers == torch.tensor(digits.target)).float().mean().item()


def rank(number: int, port: int, path: str) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    right = accuracy(runpy.run_path(path, run_name="__main__"))
    if number == 0:
        print(right, flush=True)


def main(paths: list[str]) -> int:
    fork = multiprocessing.get_context("fork")
    for path in paths:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [fork.Process(target=rank, args=(number, port, path)) for number in range(WORLD)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
