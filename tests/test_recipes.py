"""Every recipe is one that can run: its network takes every size of its curriculum, without any data."""

from __future__ import annotations

import pytest
import torch

from raytrain_speedup.config import load_experiment, recipes
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.models import build_model, check_sizes, stride_of

IMAGENET = {
    "imagenet1k-resnet50": [96, 160, 224],
    "imagenet1k-deit_s": [96, 160, 192, 224],
    "imagenet1k-swin_t": [96, 160, 224],
    "imagenet1k-convnext_t": [160, 224],
    "imagenet22k-swin_b": [96, 160, 224],
    "imagenet22k-convnext_b": [160, 224],
    "imagenet22k-cswin_b": [96, 160, 224],
    "imagenet22k-finetune": [],
}


def test_all_of_the_papers_recipes_are_there():
    assert {name for name in recipes() if name.startswith(("imagenet1k", "imagenet22k"))} == set(IMAGENET)


@pytest.mark.parametrize("name", recipes())
def test_its_network_takes_every_size_of_its_curriculum(name: str):
    experiment = load_experiment(name)
    size = experiment.data.image_size or 32
    model = experiment.model.model_copy(update={"pretrained": None, "weights": None})
    dense = experiment.task.dense
    stages = experiment.curriculum.stages(
        size, stride=stride_of(model, image_size=size), model=model.name.rpartition("/")[2]
    )
    sizes = [stage.size for stage in stages if stage.size is not None]
    if name in IMAGENET:
        assert sorted(set(sizes)) == IMAGENET[name]
        assert len(stages) == (10 if sizes else 1)
    if not sizes:
        with torch.device("meta"):
            build_model(model, num_classes=100, image_size=size, dense=dense)
    check_sizes(model, sizes, num_classes=100, image_size=size, dense=dense)


def test_the_budget_shows_as_many_epochs_as_in_the_paper():
    """454 of them at the compute of 200; replayed samples count as shown."""
    experiment = load_experiment("imagenet1k-swin_t")
    stages = experiment.curriculum.stages(224, stride=32)
    shown = sum(Budget(experiment.train.epochs, 1000, stages).samples_shown()) / 1000
    assert shown == pytest.approx(454, abs=1)


@pytest.mark.parametrize("name", IMAGENET)
def test_without_its_curriculum_a_recipe_has_the_randaugment_of_the_last_stage(name: str):
    """So its controls differ in the curriculum alone, and fine-tuning has what its network was trained with."""
    experiment = load_experiment(name)
    last = experiment.curriculum.stages(224, stride=32)[-1]
    assert experiment.data.randaugment == 9
    assert last.magnitude in (9, None)
