"""EfficientTrain++ (Wang et al., TPAMI 2024, https://arxiv.org/abs/2405.08768).

Ten stages of the same compute, so that the cheap early ones show more samples. With the bandwidths of Swin, a
budget of 200 epochs shows 454 epochs of samples: 217 at 96 pixels, 157 at 160, 80 at 224.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from raytrain_speedup.methods.curriculum.base import CostOf, Kernel, Stage, input_size, lay_out
from raytrain_speedup.methods.curriculum.shrinking import ShrinkingInput

Family = Literal["auto", "swin", "cswin", "resnet", "deit", "convnext"]

_SWIN = (96,) * 2 + (160,) * 4 + (224,) * 4
BANDWIDTHS: dict[Family, tuple[int, ...]] = {
    "swin": _SWIN,
    "cswin": _SWIN,
    "resnet": _SWIN,
    "deit": (96,) * 2 + (160,) * 4 + (192,) * 2 + (224,) * 2,
    "convnext": (160,) * 6 + (224,) * 4,
}
"""The paper's search result for each family, at 224 pixels."""


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


def family_of(model: str) -> Family:
    """The row of `BANDWIDTHS` for a model's name; what the paper did not search for gets the row of Swin."""
    name = model.lower()
    if "convnext" in name:
        return "convnext"
    return "deit" if "deit" in name or name.startswith("vit") else "swin"
