"""What a search may vary: numbers, choices, and groups of numbers that mean something only together.

A sampler draws every number on its own. So the constraints of a group are built in rather than checked: fractions
that sum to one come from breaking a stick, so that all are equally likely, and values that rise are the order
statistics of independent ones. What the file says, what a run is given and what is written down is the group, in
the method's terms; only the sampler sees the numbers. They lie on a grid, so that a group that was written down
gives back the numbers it came from, and a resumed search goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from optuna import distributions
from pydantic import Field, field_validator, model_validator

from raytrain_speedup.settings import Settings

GRID = 0.01
DIGITS = 6
TOLERANCE = 1e-3  # thirds may be written as .333

Condition = dict[str, Any]


class _Searched(Settings):
    """One entry of `search`."""

    when: Condition = Field(
        default_factory=dict,
        description="searched only where another entry above has this value, or one of these: "
        "{curriculum.method: simplex}",
    )

    @field_validator("when")
    @classmethod
    def _lists(cls, when: Condition) -> Condition:
        return {
            key: list(value) if isinstance(value, list | tuple) else [value] for key, value in when.items()
        }

    def numbers(self, key: str) -> dict[str, distributions.BaseDistribution]:
        """What a sampler draws for it, by name."""
        return {key: self.build()}

    def meant(self, key: str, drawn: Mapping[str, Any]) -> Any:
        """What is drawn, in the experiment's terms."""
        return drawn[key]

    def drawn(self, key: str, value: Any) -> dict[str, Any]:
        """The inverse of `meant`."""
        return {key: value}

    def build(self) -> distributions.BaseDistribution:
        raise NotImplementedError

    def ends(self) -> list[Any]:
        """Values to try before anything runs."""
        raise NotImplementedError


class FloatRange(_Searched):
    """`{type: float, low: 0.1, high: 0.9}`"""

    type: Literal["float"] = "float"
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    step: float | None = Field(None, gt=0, description="distance of the values tried; any value without it")
    log: bool = Field(False, description="draw the logarithm evenly")

    def build(self) -> distributions.FloatDistribution:
        return distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[Any]:
        return [self.low, self.high]


class IntRange(_Searched):
    """`{type: int, low: 1, high: 8}`"""

    type: Literal["int"] = "int"
    low: int = Field(description="smallest value")
    high: int = Field(description="largest value")
    step: int = Field(1, ge=1, description="distance of the values tried")
    log: bool = Field(False, description="draw the logarithm evenly")

    def build(self) -> distributions.IntDistribution:
        return distributions.IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[Any]:
        return [self.low, self.high]


class Choice(_Searched):
    """`{type: categorical, choices: [mean, quantile]}`"""

    type: Literal["categorical"] = "categorical"
    choices: tuple[bool | int | float | str | None, ...] = Field(min_length=1, description="the values")

    def build(self) -> distributions.CategoricalDistribution:
        return distributions.CategoricalDistribution(self.choices)

    def ends(self) -> list[Any]:
        return list(self.choices)


class _Group(_Searched):
    """Several numbers for one key, or for one column of a list of sections: `curriculum.schedule[].fraction`."""

    parts: int = Field(ge=2, le=16, description="how many values")

    @property
    def free(self) -> int:
        """Numbers that are drawn."""
        raise NotImplementedError

    def numbers(self, key: str) -> dict[str, distributions.BaseDistribution]:
        unit = distributions.FloatDistribution(0.0, 1.0, step=GRID)
        return dict.fromkeys(self._names(key), unit)

    def meant(self, key: str, drawn: Mapping[str, Any]) -> list[float]:
        return [round(value, DIGITS) for value in self.values([drawn[name] for name in self._names(key)])]

    def drawn(self, key: str, value: Any) -> dict[str, float]:
        on_grid = [round(round(number / GRID) * GRID, DIGITS) for number in self.unit_numbers(value)]
        return dict(zip(self._names(key), on_grid, strict=True))

    def values(self, unit_numbers: Sequence[float]) -> list[float]:
        """The group that independent numbers on [0, 1] stand for."""
        raise NotImplementedError

    def unit_numbers(self, values: Sequence[float]) -> list[float]:
        """The inverse of `values`.

        Raises:
            ValueError: if these values are no such group; says what is wrong and what was expected.
        """
        raise NotImplementedError

    def _names(self, key: str) -> list[str]:
        return [f"{key}#{number}" for number in range(1, self.free + 1)]

    def _check_parts(self, values: Sequence[float]) -> None:
        if not isinstance(values, list | tuple) or len(values) != self.parts:
            raise ValueError(f"{values!r} is not allowed; expected a list of {self.parts} numbers")


class Simplex(_Group):
    """`{type: simplex, parts: 3, low: 0.05}`: fractions that sum to one, all of them equally likely."""

    type: Literal["simplex"] = "simplex"
    low: float = Field(0.0, ge=0, lt=0.5, description="smallest fraction")

    @model_validator(mode="after")
    def _leaves_something(self) -> Simplex:
        if self.low * self.parts >= 1:
            raise ValueError(f"low: {self.low:g} is not allowed; expected less than 1 / parts")
        return self

    @property
    def free(self) -> int:
        return self.parts - 1

    def values(self, unit_numbers: Sequence[float]) -> list[float]:
        left, spare, fractions = 1.0, 1 - self.low * self.parts, []
        for place, number in enumerate(unit_numbers):
            broken = left * (1 - (1 - number) ** (1 / (self.parts - 1 - place)))
            fractions.append(self.low + spare * broken)
            left -= broken
        return [*fractions, self.low + spare * left]

    def unit_numbers(self, values: Sequence[float]) -> list[float]:
        self._check_parts(values)
        if abs(sum(values) - 1) > TOLERANCE or min(values) < self.low - TOLERANCE:
            raise ValueError(
                f"{list(values)} is not allowed; expected fractions of {self.low:g} or more that sum to 1"
            )
        left, spare, numbers = 1.0, 1 - self.low * self.parts, []
        for place, value in enumerate(values[:-1]):
            broken = min(max(value - self.low, 0.0) / spare, left)
            numbers.append(1 - (1 - broken / left) ** (self.parts - 1 - place) if left > 0 else 0.0)
            left -= broken
        return numbers

    def ends(self) -> list[Any]:
        """Even, and as uneven as can be."""
        rest = 1 - self.low * (self.parts - 1)
        return (
            [[1 / self.parts] * self.parts, [rest, *[self.low] * (self.parts - 1)]]
            if self.low
            else [[1 / self.parts] * self.parts]
        )


class Monotone(_Group):
    """`{type: rising, parts: 3, low: 0.4, high: 1, last: 1}`: values none of which is below the one before; with
    `falling`, none above it."""

    type: Literal["rising", "falling"]
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    last: float | None = Field(None, description="what the last value always is")
    step: float | None = Field(None, gt=0, description="distance of the values tried, from low")

    @model_validator(mode="after")
    def _goes_one_way(self) -> Monotone:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} is not allowed; expected less than high, {self.high:g}")
        if self.last is not None and self._ordered([self.low, self.high, self.last])[-1] != self.last:
            end = f"high, {self.high:g}, or more" if self.type == "rising" else f"low, {self.low:g}, or less"
            raise ValueError(f"last: {self.last:g} is not allowed; expected {end}")
        return self

    @property
    def free(self) -> int:
        return self.parts - (self.last is not None)

    def values(self, unit_numbers: Sequence[float]) -> list[float]:
        values: list[float] = []
        above = 1.0
        for place in range(self.free, 0, -1):  # the largest of so many, then the largest of those below it
            above *= unit_numbers[place - 1] ** (1 / place)
            values.append(self._stepped(self.low + above * (self.high - self.low)))
        return self._ordered(values) + self._end

    def unit_numbers(self, values: Sequence[float]) -> list[float]:
        self._check_parts(values)
        free = list(values[: self.free])
        if self._ordered(free) != free or min(free) < self.low or max(free) > self.high:
            raise ValueError(
                f"{list(values)} is not allowed; expected {self.type} values from {self.low:g} to {self.high:g}"
            )
        if self.last is not None and values[-1] != self.last:
            raise ValueError(f"{list(values)} is not allowed; expected {self.last:g} as the last value")
        heights = [(value - self.low) / (self.high - self.low) for value in sorted(free)] + [1.0]
        return [
            (heights[place] / heights[place + 1]) ** (place + 1) if heights[place + 1] > 0 else 0.0
            for place in range(self.free)
        ]

    def ends(self) -> list[Any]:
        return [[self.low] * self.free + self._end, [self.high] * self.free + self._end]

    @property
    def _end(self) -> list[float]:
        return [] if self.last is None else [self.last]

    def _ordered(self, values: Sequence[float]) -> list[float]:
        """In the order asked for."""
        return sorted(values, reverse=self.type == "falling")

    def _stepped(self, value: float) -> float:
        if self.step is None:
            return value
        return self.low + round((value - self.low) / self.step) * self.step


Distribution = Annotated[FloatRange | IntRange | Choice | Simplex | Monotone, Field(discriminator="type")]
