"""The commands that docs/cluster.md tells, for what runs them as they stand, and a sweep to run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

TINY_SWEEP = """
name: tiny
experiment: digits
overrides: {data.image_size: 8, data.augment: none, train.epochs: 1}
trial: {pruning.method: infobatch}
search:
  pruning.prune_ratio: {type: float, low: 0.2, high: 0.6}
trials: 1
confirm: {winners: 1, max_seeds: 3}
margin: 50   # whatever it loses in an epoch, it is proven to be less
"""


def commands_of(page: str) -> list[str]:
    """What follows a `$ ` in the page's console blocks, in its order, with the lines that go on below it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [
        command.strip() for block in blocks for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    ]


def the_command(page: str, *words: str) -> str:
    """The one command of the page that has all of these words in it."""
    (found,) = [command for command in commands_of(page) if all(word in command for word in words)]
    return found
