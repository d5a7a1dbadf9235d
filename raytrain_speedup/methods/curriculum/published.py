"""The published curricula, one table of them, and the controls they are judged against.

EfficientTrain (Wang et al., ICCV 2023, https://arxiv.org/abs/2211.09703): five stages of the same number of epochs
show more and more of the spectrum under stronger and stronger augmentation. Nominally 1.53 times cheaper than
showing all of it throughout.

EfficientTrain++ (Wang et al., TPAMI 2024, https://arxiv.org/abs/2405.08768): ten stages of the same compute, so
that the cheap early ones show more samples. With the bandwidths of Swin, a budget of 200 epochs shows 454 epochs of
samples: 217 at 96 pixels, 157 at 160, 80 at 224.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from raytrain_speedup.methods.curriculum.base import (
    FULL,
    CostOf,
    CurriculumSettings,
    Kernel,
    ShrinkingInput,
    Stage,
    input_size,
    lay_out,
)

Family = Literal["auto", "swin", "cswin", "resnet", "deit", "convnext"]

EFFICIENTTRAIN = (160, 160, 160, 192, 224)
_SWIN = (96,) * 2 + (160,) * 4 + (224,) * 4
BANDWIDTHS: dict[Family, tuple[int, ...]] = {
    "swin": _SWIN,
    "cswin": _SWIN,
    "resnet": _SWIN,
    "deit": (96,) * 2 + (160,) * 4 + (192,) * 2 + (224,) * 2,
    "convnext": (160,) * 6 + (224,) * 4,
}
"""B in pixels of each stage, at 224: of EfficientTrain, and of EfficientTrain++ as the paper's search found it for
each family."""

MAGNITUDES = (1, 3, 5, 7, 9)
"""m of RandAugment in each stage of EfficientTrain; in those of EfficientTrain++ it is 0 to 9."""


class NoCurriculum(CurriculumSettings):
    """One stage at full resolution, with the recipe's own augmentation."""

    inputs: ClassVar[frozenset[str]] = frozenset({"images", "sequences"})
    method: Literal["none"] = "none"

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """The whole training as one stage."""
        return (FULL,)


class EfficientTrain(ShrinkingInput):
    """The published schedule: B = 160, 160, 160, 192, 224 and m = 1, 3, 5, 7, 9 at 224 pixels."""

    method: Literal["efficienttrain"] = "efficienttrain"

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """Five stages that show equally many samples: each one's fraction of the compute is its cost."""
        sizes = [input_size(pixels / 224, image_size, stride) for pixels in EFFICIENTTRAIN]
        stages = [
            self._stage(size, image_size, magnitude, cost_of, smallest=sizes[0])
            for size, magnitude in zip(sizes, MAGNITUDES, strict=True)
        ]
        return lay_out(stages, [stage.cost for stage in stages])


class EqualComputeStages(ShrinkingInput):
    """Ten stages, a tenth of the compute each."""

    family: Family = Field(
        "auto",
        description="Whose published bandwidths to use; `auto` goes by the model's name: deit and vit, "
        "convnext, and swin for all others.",
    )

    def _stages(
        self,
        magnitudes: Sequence[float | None],
        image_size: int,
        stride: int,
        model: str,
        cost_of: CostOf | None,
    ) -> tuple[Stage, ...]:
        family = family_of(model) if self.family == "auto" else self.family
        sizes = [input_size(pixels / 224, image_size, stride) for pixels in BANDWIDTHS[family]]
        stages = [
            self._stage(size, image_size, magnitude, cost_of, smallest=sizes[0])
            for size, magnitude in zip(sizes, magnitudes, strict=True)
        ]
        return lay_out(stages, [1] * len(stages))


class EfficientTrainPlusPlus(EqualComputeStages):
    """The published schedule: the family's bandwidths and m = 0 to 9."""

    method: Literal["efficienttrain++"] = "efficienttrain++"
    kernel: Kernel = Field(
        "resize",
        description="How an image is reduced: `resize` (Lanczos with anti-aliasing) as the paper does in its "
        "loader, `fourier` crops the spectrum as EfficientTrain does, `aligned` on half-pixel centres.",
    )

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """Ten stages of equal compute."""
        return self._stages(range(10), image_size, stride, model, cost_of)


class ProgressiveResize(EqualComputeStages):
    """The control for EfficientTrain++: its sizes by a plain resize, without its augmentation schedule.

    What is left is progressive resizing, the baseline that a curriculum has to beat.
    """

    method: Literal["resize"] = "resize"
    kernel: Literal["resize"] = Field(
        "resize",
        description="How an image is reduced: Lanczos with anti-aliasing, and nothing else.",
    )

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """A stage for each size of EfficientTrain++."""
        return self._stages([None] * 10, image_size, stride, model, cost_of)


def family_of(model: str) -> Family:
    """The row of `BANDWIDTHS` for a model's name; what the paper did not search for gets the row of Swin."""
    name = model.lower()
    if "convnext" in name:
        return "convnext"
    return "deit" if "deit" in name or name.startswith("vit") else "swin"
