"""The curriculum axis: how much of each sample a step shows. Plain torch; a loop needs no more than this:

    from raytrain_speedup.methods.curriculum import CURRICULA
    from raytrain_speedup.methods.curriculum.budget import Budget
    from raytrain_speedup.methods.curriculum.crop import crop_batch

    settings = CURRICULA["efficienttrain++"]()
    budget = Budget(epochs=200, num_samples=len(data), stages=settings.stages(224, stride=32))
    for epoch in range(len(budget.epoch_ends())):                  # 455 of them, for the compute of 200
        for step, (images, target) in enumerate(loader):           # uint8, on the device
            progress = budget.progress(epoch, step / len(loader))
            if progress >= 1:                                      # within the last epoch
                break
            stage = budget.stage_at(progress)
            flip = torch.rand(len(images), device=images.device) < 0.5
            inputs = crop_batch(images, stage.size, mean=mean, std=std, flip=flip, kernel=settings.kernel)
            set_lr(optimizer, schedule(progress))
            train_step(model, inputs, target)

A convolutional network takes every size as it is; for the others see `raytrain_speedup.models`.
"""

from raytrain_speedup.methods.curriculum.base import CurriculumSettings
from raytrain_speedup.methods.curriculum.by_numbers import CustomCurriculum, SimplexCurriculum
from raytrain_speedup.methods.curriculum.length import LengthCurriculum
from raytrain_speedup.methods.curriculum.patch_dropout import PatchDropout
from raytrain_speedup.methods.curriculum.progressive import ComposerResize, TimmProgressive
from raytrain_speedup.methods.curriculum.published import (
    EfficientTrain,
    EfficientTrainPlusPlus,
    NoCurriculum,
    ProgressiveResize,
)
from raytrain_speedup.registry import Registry

CURRICULA = Registry(
    CurriculumSettings,
    tag="method",
    group="raytrain_speedup.curriculum",
    entries={
        "none": NoCurriculum,
        "resize": ProgressiveResize,
        "efficienttrain": EfficientTrain,
        "efficienttrain++": EfficientTrainPlusPlus,
        "custom": CustomCurriculum,
        "simplex": SimplexCurriculum,
        "composer-resize": ComposerResize,
        "timm-progressive": TimmProgressive,
        "patch-dropout": PatchDropout,
        "length": LengthCurriculum,
    },
)
