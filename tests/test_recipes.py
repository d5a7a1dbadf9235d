"""Every recipe is one that can run: its network takes every size of its curriculum, without any data. And its
settings are those of the paper whose result it promises."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.experiment_file import recipes
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
    "imagenet22k-finetune384": [],
}

EFFICIENTTRAIN = {
    "train.epochs": 200,
    "train.batch_size": 4096,
    "train.optimizer": "adamw",
    "train.lr": 4e-3,
    "train.momentum": 0.9,
    "train.beta2": 0.999,
    "train.weight_decay": 0.05,
    "train.schedule": "cosine",
    "train.start_div * train.final_div": 4000,  # to 1e-6
    "train.mixup": 0.8,
    "train.cutmix": 1.0,
    "train.mix_switch": 0.5,
    "train.clip_norm": None,
    "train.ema_decay": None,
    "train.layer_decay": None,
    "task.label_smoothing": 0.1,
    "model.drop_path": 0.0,
    "data.augment": "random-resized-crop",
    "data.min_scale": 0.08,
    "data.erasing": 0.25,
    "data.randaugment": 9,  # where the curriculum has no magnitude
    "data.image_size": 224,
    "data.eval_crop": 0.875,
    "data.val_fraction": 0,
    "curriculum.method": "efficienttrain++",
    "curriculum.kernel": "resize",
    "curriculum.max_batch_factor": 1,
    "pruning.method": "none",
}
FINETUNE = {
    **{key: value for key, value in EFFICIENTTRAIN.items() if not key.startswith("curriculum.")},
    "curriculum.method": "none",
    "train.epochs": 30,
    "train.batch_size": 512,
    "train.lr": 5e-5,
    "train.start_div * train.final_div": 50,
    "train.warmup": 0,
    "train.weight_decay": 1e-8,
    "train.layer_decay": 0.9,
    "train.mixup": 0,
    "train.cutmix": 0,
    "train.ema_decay": 0.9998,
    "model.name": "cswin_b",
    "model.drop_path": 0.2,
}
FASTDFKD = {
    "data.val_fraction": 0,
    "train.optimizer": "sgd",
    "train.momentum": 0.9,
    "train.weight_decay": 1e-4,
    "train.schedule": "cosine",
    "distillation.method": "fastdfkd",
    "distillation.bn_momentum": 0.9,
}
CIFAR_DFKD = {
    **FASTDFKD,
    "train.epochs + distillation.warmup": 220,
    "distillation.warmup": 20,
    "train.batch_size": 256,
    "train.lr": 0.2,
    "train.warmup": 0,
    "distillation.student_steps": 400,
    "distillation.batch_size": 256,
    "distillation.temperature": 20,
    "distillation.steps": 10,
    "distillation.lr_g": 2e-3,
    "distillation.lr_z": 0.01,
    "distillation.bn": 10,
    "distillation.reset_first_layer": 140,
    "distillation.meta": "fomaml",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet1k-resnet50": {
        **EFFICIENTTRAIN,
        "model.name": "timm/resnet50",
        "train.warmup": 0.018,
        "curriculum.max_replay": 4,
    },
    "imagenet1k-deit_s": {
        **EFFICIENTTRAIN,
        "model.name": "timm/deit_small_patch16_224",
        "model.drop_path": 0.1,
        "train.warmup": 0.2,
        "train.clip_norm": 5,
        "curriculum.max_replay": 4,
    },
    "imagenet1k-swin_t": {
        **EFFICIENTTRAIN,
        "model.name": "timm/swin_tiny_patch4_window7_224",
        "model.drop_path": 0.2,
        "train.warmup": 0.018,
        "train.clip_norm": 5,
        "curriculum.max_replay": 2,
    },
    "imagenet1k-convnext_t": {
        **EFFICIENTTRAIN,
        "model.name": "timm/convnext_tiny",
        "model.drop_path": 0.1,
        "train.warmup": 0.051,
        "train.ema_decay": 0.9999,
        "curriculum.max_replay": 1,
    },
    "imagenet22k-finetune": FINETUNE,
    "imagenet22k-finetune384": {**FINETUNE, "data.image_size": 384, "data.fit": "stretch"},
    "cifar10-resnet18": {
        "model.name": "resnet18",
        "data.augment": "crop-flip",
        "data.val_fraction": 0,
        "task.label_smoothing": 0.1,
        "train.epochs": 200,
        "train.batch_size": 128,
        "train.optimizer": "sgd",
        "train.lr": 0.05,
        "train.momentum": 0.9,
        "train.nesterov": False,
        "train.weight_decay": 5e-4,
        "train.schedule": "one-cycle",
        "train.warmup": 0.3,
        "train.start_div": 25,
        "train.final_div": 1e4,
        "pruning.method": "infobatch",
        "pruning.prune_ratio": 0.5,
        "pruning.anneal_from": 0.875,
    },
    "cifar10-wrn40_2-wrn16_1": {
        **CIFAR_DFKD,
        "teacher.model.name": "wrn40_2",
        "model.name": "wrn16_1",
        "distillation.adv": 1.1,
        "distillation.oh": 0.4,
    },
    "cifar100-resnet34-resnet18": {
        **CIFAR_DFKD,
        "teacher.model.name": "resnet34",
        "model.name": "resnet18",
        "distillation.adv": 1.33,
        "distillation.oh": 0.5,
    },
    "imagenet-resnet50-mobilenetv2": {
        **FASTDFKD,
        "train.epochs": 4000,
        "train.batch_size": 100,
        "train.lr": 0.1,
        "distillation.warmup": 0,
        "distillation.student_steps": 100,
        "distillation.batch_size": 100,
        "distillation.temperature": 5,
        "distillation.steps": 50,
        "distillation.lr_g": 2e-4,
        "distillation.lr_z": 0.01,
        "distillation.bn": 0.1,
        "distillation.oh": 0.1,
        "distillation.adv": 0.1,
        "distillation.meta": "reptile",
        "distillation.generator": "deep",
        "distillation.augment.zoom": 0.75,
    },
}
"""The settings of the papers and their public implementations, by hand; products and sums are of two keys."""

GPU_DAYS = {"imagenet22k-convnext_b": (122.3, 181.9), "imagenet22k-cswin_b": (62.9, 126.9)}
"""What the paper's runs took, and their baselines of 90 epochs."""


def value_of(experiment: Experiment, key: str) -> Any:
    """The value of a dotted key, or of a product or sum of two."""
    for sign, combine in ((" * ", operator.mul), (" + ", operator.add)):
        first, found, second = key.partition(sign)
        if found:
            return combine(value_of(experiment, first), value_of(experiment, second))
    return functools.reduce(getattr, key.split("."), experiment)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_settings_are_the_published_ones(name: str):
    experiment = load_experiment(name)
    found = {key: value_of(experiment, key) for key in PUBLISHED[name]}
    assert found == pytest.approx(PUBLISHED[name])


def test_where_settings_are_not_the_published_ones_the_recipe_says_so():
    for name, path in recipes().items():
        silent = name in PUBLISHED or name.startswith(("digits", "camvid")) or name.endswith("-cpu")
        assert silent or "ours" in path.read_text().lower(), name
        if name in PUBLISHED and load_experiment(name).train.precision != "fp32":
            lines = [line for line in path.read_text().splitlines() if line.startswith("  precision")]
            assert "finetune" in name or all("# ours" in line for line in lines), name


@pytest.mark.parametrize("name", GPU_DAYS)
def test_the_budget_is_what_the_paper_promises_for_it(name: str):
    experiment, (spent, baseline) = load_experiment(name), GPU_DAYS[name]
    assert experiment.train.epochs / 90 == pytest.approx(spent / baseline, rel=0.02)
    assert f"{spent:.0f} GPU-days in the paper instead of {baseline:.0f}" in experiment.about


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("imagenet1k")])
def test_warm_up_is_of_twenty_epochs_at_the_first_size(name: str):
    """But for DeiT, whose warm-up is a fifth of the training at any budget."""
    experiment = load_experiment(name)
    first = IMAGENET[name][0]
    fraction = 20 * (first / 224) ** 2 / experiment.train.epochs
    assert experiment.train.warmup == pytest.approx(0.2 if "deit" in name else fraction, abs=5e-4)


def test_all_of_the_papers_recipes_are_there():
    found = {name for name in recipes() if name.startswith(("imagenet1k", "imagenet22k"))}
    assert found == set(IMAGENET) | {"imagenet1k-mae_b"}


def test_airbench_shows_images_as_its_paper_does():
    """Jordan (arXiv 2404.00498): alternating flips, shifts of two pixels, label smoothing of .2."""
    experiment = load_experiment("cifar10-airbench")
    data = experiment.data
    assert (data.augment, data.padding, data.val_fraction) == ("crop-alternating-flip", 2, 0)
    assert experiment.task.label_smoothing == 0.2 and experiment.model.name == "airbench"


def test_masked_autoencoders_are_trained_as_in_their_paper():
    """He et al., table 8: 1.5e-4 for 256 images, betas .9 and .95, decay .05; a decoder of 8 blocks of 512."""
    experiment = load_experiment("imagenet1k-mae_b")
    train, options = experiment.train, experiment.model.options
    assert (train.optimizer, train.momentum, train.beta2, train.weight_decay) == ("adamw", 0.9, 0.95, 0.05)
    assert train.lr == pytest.approx(1.5e-4 * train.batch_size / 256) and train.batch_size == 4096
    assert (options["decoder_dim"], options["decoder_depth"], options["decoder_heads"]) == (512, 8, 16)
    assert (experiment.data.augment, experiment.data.min_scale) == ("random-resized-crop", 0.2)
    assert (experiment.task.mask_ratio, experiment.task.reconstruct, train.epochs) == (0.75, "hog", 400)
    assert not experiment.data.randaugment and not experiment.data.erasing


def test_diffusion_on_cifar10_is_trained_as_in_its_paper():
    """Ho et al. 2020, app. B: 800,000 steps of 128 images, of which half are flipped."""
    experiment = load_experiment("cifar10-diffusion")
    train, task, data = experiment.train, experiment.task, experiment.data
    assert train.epochs * 50_000 / train.batch_size == pytest.approx(800_000)
    assert train.warmup * 800_000 == 5000 and (train.lr, train.schedule) == (2e-4, "constant")
    assert (train.momentum, train.beta2, train.weight_decay) == (0.9, 0.999, 0)
    assert (train.ema_decay, train.clip_norm, experiment.model.drop_rate) == (0.9999, 1, 0.1)
    assert (task.timesteps, task.beta_schedule) == (1000, "linear")
    assert (data.augment, data.padding, data.val_fraction) == ("crop-flip", 0, 0)
    network = build_model(experiment.model, num_classes=10, image_size=32, dense=None)
    assert sum(map(torch.numel, network.parameters())) == pytest.approx(35.7e6, rel=2e-3)


@pytest.mark.parametrize("name", recipes())
def test_its_network_takes_every_size_of_its_curriculum(name: str):
    experiment = load_experiment(name)
    size = experiment.data.image_size or 32
    model = experiment.model.model_copy(update={"pretrained": None, "weights": None})
    logits = experiment.task.build().logits
    dense = None if logits is None else logits == "pixel"
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
