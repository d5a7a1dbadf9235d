"""EfficientTrain (Wang et al., ICCV 2023, https://arxiv.org/abs/2211.09703).

Five stages of the same number of epochs show more and more of the spectrum under stronger and stronger
augmentation. Nominally 1.53 times cheaper than showing all of it throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from raytrain_speedup.methods.curriculum.base import CostOf, Stage, input_size, lay_out
from raytrain_speedup.methods.curriculum.shrinking import ShrinkingInput

RATIOS = (160 / 224, 160 / 224, 160 / 224, 192 / 224, 1.0)
MAGNITUDES = (1, 3, 5, 7, 9)


class EfficientTrain(ShrinkingInput):
    """The published schedule: B = 160, 160, 160, 192, 224 and m = 1, 3, 5, 7, 9 at 224 pixels."""

    method: Literal["efficienttrain"] = "efficienttrain"

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """Five stages that show equally many samples: each one's fraction of the compute is its cost."""
        sizes = [input_size(ratio, image_size, stride) for ratio in RATIOS]
        stages = [
            self._stage(size, image_size, magnitude, cost_of, smallest=sizes[0])
            for size, magnitude in zip(sizes, MAGNITUDES, strict=True)
        ]
        return lay_out(stages, [stage.cost for stage in stages])
