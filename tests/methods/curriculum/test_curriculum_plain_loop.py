"""The loop of the package's docstring, on a small network: sizes rise, the budget is kept, the loss falls."""

from __future__ import annotations

import torch
from torch import nn

from raytrain_speedup.methods.curriculum import CURRICULA
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.curriculum.crop import crop_batch


def test_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(128) % 2
    noise = torch.randint(0, 128, (128, 3, 32, 32), generator=generator)
    images = (noise + 127 * target.view(-1, 1, 1, 1) * (torch.arange(32) < 16)).to(torch.uint8)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    settings = CURRICULA["efficienttrain++"]()
    budget = Budget(epochs=6, num_samples=128, stages=settings.stages(32))
    spent, sizes, losses = 0.0, [], []
    for epoch in range(len(budget.epoch_ends())):
        for step, index in enumerate(torch.randperm(128, generator=generator).split(16)):
            progress = budget.progress(epoch, step * 16 / 128)
            if progress >= 1:
                break
            stage = budget.stage_at(progress)
            flip = torch.rand(16, generator=generator) < 0.5
            inputs = crop_batch(
                images[index],
                stage.size or 32,
                mean=[0.5] * 3,
                std=[0.25] * 3,
                flip=flip,
                kernel=settings.kernel,
            )
            loss = nn.functional.cross_entropy(model(inputs), target[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent += 16 * (inputs.shape[-1] / 32) ** 2
            sizes.append(inputs.shape[-1])
            losses.append(loss.item())
    assert sizes == sorted(sizes) and set(sizes) == {16, 24, 32}
    assert abs(spent / (6 * 128) - 1) < 0.03
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
