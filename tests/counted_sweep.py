"""A sweep on two nodes of Ray's fake provider whose every step is written down, and the loss of a node."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
import yaml
from fake_provider import environment

TRIALS = 4

COUNTING = """
import os, time
from pathlib import Path
from raytrain_speedup.engine import loop

LOG = Path({log!r})
step = loop.Loop.train_step
note = None

def train_step(self, given, batch, **keys):
    global note
    step(self, given, batch, **keys)
    note = note or (LOG / str(os.getpid())).open("a", buffering=1)
    trial = self.reporter.folder.name
    note.write(f"{{trial}} {{self.epoch}} {{given.number}} {{time.process_time()}} {{time.time()}}\\n")

if loop.Loop.train_step is step and not hasattr(loop, "counted"):
    loop.counted, loop.Loop.train_step = True, train_step
"""


@dataclass
class Taken:
    """A step as it was written down."""

    pid: int
    trial: str
    at: tuple[int, int]
    cpu: float
    when: float


@dataclass
class Lost:
    """What a node took with it.

    Attributes:
        trial: which ran there.
        done: trials that had ended.
        since_checkpoint: the trial's steps that its newest whole checkpoint does not have.
    """

    trial: str
    done: set[str]
    since_checkpoint: int


@dataclass
class Swept:
    """A sweep that ended.

    Attributes:
        folder: with its tracked runs in `tracked` and its results in `out`.
        taken: its steps, by time.
        seconds: of the wall's clock.
        said: its output.
        lost: what the loss of a node took with it.
    """

    folder: Path
    taken: list[Taken] = field(repr=False)
    seconds: float
    said: str = field(repr=False)
    lost: Lost | None

    @property
    def counts(self) -> Counter[tuple[str, tuple[int, int]]]:
        """How often each step of each trial was taken."""
        return Counter((step.trial, step.at) for step in self.taken)


def steps(log: Path) -> list[Taken]:
    found = []
    for file in log.iterdir():
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # not yet whole, or never
                trial, epoch, number, cpu, when = line.split()
                at = (int(epoch), int(number))
                found.append(Taken(int(file.name), trial, at, float(cpu), float(when)))
    return sorted(found, key=lambda step: step.when)


def swept(home: Path, address: str, name: str, *, epochs: int, disturbed: bool) -> Swept:
    """Sweep, and lose a node in the middle of a trial where it is to be disturbed.

    Args:
        home: of the cluster (`fake_provider.fake_cluster`).
        address: of its head.
        name: of the sweep, and of its folder in `home`.
        epochs: of each trial.
        disturbed: whether a node is lost.
    """
    folder = home / name
    log = folder / "log"
    log.mkdir(parents=True)
    (folder / "counting.py").write_text(COUNTING.format(log=str(log)))
    (folder / "space.yaml").write_text(yaml.safe_dump(_space(folder, epochs)))
    command = [
        *(sys.executable, "-m", "raytrain_speedup.cli", "sweep", "space.yaml", "--out", str(folder / "out")),
        *(f"scaling.storage={folder / 'runs'}", "scaling.start_timeout=300"),
        *("--tracking-uri", f"json:{folder / 'tracked'}"),
    ]
    began = time.time()
    with (folder / "said").open("w") as said:
        variables = environment(home) | {"RAY_ADDRESS": address}
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=said)
    try:
        lost = _lose_a_node(folder, process, epochs) if disturbed else None
        code = process.wait(1500)
    finally:
        process.kill()
    text = (folder / "said").read_text()
    assert code == 0, text[-3000:]
    return Swept(folder, steps(log), time.time() - began, text, lost)


def _space(folder: Path, epochs: int) -> dict[str, object]:
    keys = {"data.image_size": 8, "train.epochs": epochs, "train.eval_every": 0, "train.threads": 1}
    search = {"pruning.prune_ratio": {"type": "float", "low": 0.2, "high": 0.5, "step": 0.1}}
    return {
        **{"name": folder.name, "experiment": "digits", "search": search},
        "trial": {"pruning.method": "infobatch"},
        "overrides": keys | {"plugins": ["counting"], "python_path": [str(folder)]},
        **{"trials": TRIALS, "seeds": [0], "confirm": {"winners": 0}},
    }


def _lose_a_node(folder: Path, sweep: subprocess.Popen[bytes], epochs: int) -> Lost:
    """When half of all steps are taken: the node of the process that took the last one, and all on it."""
    per_trial = None
    while True:
        time.sleep(0.1)
        assert sweep.poll() is None, (
            "the sweep ended before a node was lost: " + (folder / "said").read_text()
        )
        taken = steps(folder / "log")
        done = {step.trial for step in taken if step.at[0] == epochs - 1}
        if not done:
            continue
        per_trial = per_trial or sum(step.trial in done for step in taken) / len(done)
        running = [step for step in taken[-1:] if step.trial not in done and 0.3 < step.at[0] / epochs < 0.7]
        if len(taken) < 0.4 * TRIALS * per_trial or not running:
            continue
        _kill_the_node_of(running[0].pid)
        trial = running[0].trial
        before = sum(step.trial == trial for step in steps(folder / "log"))
        done = {step.trial for step in taken if step.at[0] == epochs - 1}
        return Lost(trial, done, before - _saved_steps(folder, trial))


def _kill_the_node_of(worker: int) -> None:
    """At once, without a word to anybody; returns when none of its processes runs any more."""
    raylet = next(parent for parent in psutil.Process(worker).parents() if "raylet" in parent.name())
    gone = [raylet, *raylet.children(recursive=True)]
    for process in gone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for process in gone:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)


def _saved_steps(folder: Path, trial: str) -> int:
    """Of the trial's newest whole checkpoint."""
    whole = [file.parent for file in folder.glob(f"runs/**/{trial}/checkpoint-*/manifest.json")]
    return int(torch.load(max(whole) / "run.pt", weights_only=True)["steps_taken"])
