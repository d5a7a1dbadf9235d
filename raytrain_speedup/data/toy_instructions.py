"""Instructions that are made up, some easy and often the same, some hard: language-model tuning without a download.

A half of them, by default, has one of a few dozen answers that a network has soon learned by heart (opposites, the
next day, the number after); the others ask for something to be done with letters or digits that are drawn anew, and
no two of them need be alike (copying, reversing, looking up, adding). So some samples stay hard for most of a
training, and a method that prunes by loss has something to find. Every sample is a function of `data_seed`, split
and position.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.instructions import Instruction, Template, TextSettings
from raytrain_speedup.randomness import numpy_generator

OPPOSITES = {
    **{
        "hot": "cold",
        "up": "down",
        "big": "small",
        "old": "new",
        "wet": "dry",
        "open": "shut",
        "early": "late",
    },
    **{
        "fast": "slow",
        "high": "low",
        "rich": "poor",
        "soft": "hard",
        "light": "dark",
        "near": "far",
        "in": "out",
    },
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LETTERS = np.array(list(string.ascii_lowercase))

Draw = np.random.Generator


def _word(random: Draw, least: int, most: int) -> str:
    return "".join(random.choice(LETTERS, int(random.integers(least, most + 1))))


def _opposite(random: Draw) -> tuple[str, str, str]:
    word = list(OPPOSITES)[int(random.integers(len(OPPOSITES)))]
    return "Say the opposite:", word, OPPOSITES[word]


def _next_day(random: Draw) -> tuple[str, str, str]:
    day = int(random.integers(len(DAYS)))
    return "Which day is next?", DAYS[day], DAYS[(day + 1) % len(DAYS)]


def _next_number(random: Draw) -> tuple[str, str, str]:
    number = int(random.integers(10))
    return "Count on:", str(number), str(number + 1)


def _copied(random: Draw) -> tuple[str, str, str]:
    word = _word(random, 3, 6)
    return "Repeat:", word, word


def _reversed_word(random: Draw) -> tuple[str, str, str]:
    word = _word(random, 3, 5)
    return "Reverse:", word, word[::-1]


def _looked_up(random: Draw) -> tuple[str, str, str]:
    keys = random.choice(LETTERS, 3, replace=False).tolist()
    values = random.integers(0, 10, 3).tolist()
    table = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    wanted = int(random.integers(3))
    return "Look up:", f"{table} {keys[wanted]}", str(values[wanted])


def _added(random: Draw) -> tuple[str, str, str]:
    a, b = random.integers(10, 100, 2).tolist()
    return "Add:", f"{a} {b}", str(a + b)


EASY: tuple[Callable[[Draw], tuple[str, str, str]], ...] = (_opposite, _next_day, _next_number)
HARD: tuple[Callable[[Draw], tuple[str, str, str]], ...] = (_copied, _reversed_word, _looked_up, _added)


class ToyInstructionSettings(TextSettings):
    """Easy and hard instructions that are made up."""

    source: Literal["toy-instructions"] = "toy-instructions"
    train_samples: int = Field(2000, ge=1, description="training samples, the validation split among them")
    test_samples: int = Field(400, ge=1, description="test samples")
    easy: float = Field(0.5, ge=0, le=1, description="fraction of the samples that are easy")
    data_seed: int = Field(0, ge=0, description="what they are drawn by")
    template: Template = Field("plain", description="how an instruction becomes a prompt")

    def samples(self) -> Mapping[str, Sequence[Instruction]]:
        counts = {"train": self.train_samples, "test": self.test_samples}
        return {
            name: [self._sample(number, split) for number in range(count)]
            for split, (name, count) in enumerate(counts.items())
        }

    def _sample(self, number: int, split: int) -> Instruction:
        random = numpy_generator(self.data_seed, split, number)
        kinds = EASY if random.random() < self.easy else HARD
        which = int(random.integers(len(kinds)))
        return Instruction(*kinds[which](random), kind=which + len(EASY) * (kinds is HARD))
