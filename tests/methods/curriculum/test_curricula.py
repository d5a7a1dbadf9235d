"""What every registered curriculum must keep to, and what the published ones say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_speedup.methods.curriculum import CURRICULA
from raytrain_speedup.methods.curriculum.base import CurriculumSettings, Stage, input_size
from raytrain_speedup.methods.curriculum.by_numbers import CustomCurriculum
from raytrain_speedup.methods.curriculum.published import (
    EfficientTrain,
    EfficientTrainPlusPlus,
    ProgressiveResize,
)
from raytrain_speedup.settings import explain

THREE_STAGES: dict[str, Any] = {
    "schedule": [
        {"fraction": 0.25, "ratio": 0.43, "magnitude": 0, "batch_factor": 4, "replay": 2},
        {"fraction": 0.25, "ratio": 0.71, "magnitude": 4.5},
        {"fraction": 0.5},
    ]
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CURRICULA if name != "custom"),
    ("custom", THREE_STAGES),
    ("efficienttrain", {"max_batch_factor": 4, "max_replay": 4}),
    *(("efficienttrain++", {"family": family, "max_replay": 2}) for family in ("swin", "deit", "convnext")),
]


def settings_of(name: str, values: dict[str, Any]) -> CurriculumSettings:
    return CURRICULA[name].model_validate({"method": name, **values})


def test_every_registered_curriculum_is_among_the_cases() -> None:
    assert {name for name, _ in CASES} == set(CURRICULA)


@pytest.mark.parametrize(("name", "values"), CASES)
@pytest.mark.parametrize(("image_size", "stride"), [(32, 4), (64, 4), (224, 32), (384, 32), (30, 4), (8, 16)])
@pytest.mark.parametrize("cost_of", [None, lambda size: 7.0 * size**2 + 100 * size])
def test_stages_are_whole(
    name: str, values: dict[str, Any], image_size: int, stride: int, cost_of: Any
) -> None:
    stages = settings_of(name, values).stages(image_size, stride=stride, cost_of=cost_of)
    ends = [stage.ends_at for stage in stages]
    assert all(before < after for before, after in pairwise([0.0, *ends]))
    assert ends[-1] == 1.0
    assert stages[-1].size in (None, image_size)
    assert stages[-1].cost == 1.0
    for stage in stages:
        assert stage.size is None or stage.size % stride == 0 or stage.size == image_size
        assert 0 < stage.cost <= 1
        assert stage.batch_factor >= 1
        assert stage.replay >= 1


@pytest.mark.parametrize(("name", "values"), CASES)
def test_settings_survive_json_and_yaml(name: str, values: dict[str, Any]) -> None:
    settings = settings_of(name, values)
    assert settings.method == name
    kind = type(settings)
    assert kind.model_validate_json(settings.model_dump_json()) == settings
    assert kind.model_validate(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json")))) == settings


@pytest.mark.parametrize(("name", "values"), CASES)
def test_every_field_explains_itself(name: str, values: dict[str, Any]) -> None:
    fields = type(settings_of(name, values)).model_fields
    assert [field for field, info in fields.items() if field != "method" and not info.description] == []


@pytest.mark.parametrize("name", ["efficienttrain", "efficienttrain++"])
@pytest.mark.parametrize("model", ["resnet50", "deit_small_patch16_224", "convnext_tiny"])
@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_published_curricula_go_from_easy_to_hard(name: str, model: str, image_size: int) -> None:
    stages = settings_of(name, {}).stages(image_size, model=model)
    sizes, magnitudes = [s.size for s in stages], [s.magnitude for s in stages]
    assert None not in sizes and None not in magnitudes
    assert all(before <= after for before, after in pairwise(sizes))
    assert all(before < after for before, after in pairwise(magnitudes))


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("swin_tiny_patch4_window7_224", [96] * 2 + [160] * 4 + [224] * 4),
        ("cswin_base", [96] * 2 + [160] * 4 + [224] * 4),
        ("resnet50", [96] * 2 + [160] * 4 + [224] * 4),
        ("deit_small_patch16_224", [96] * 2 + [160] * 4 + [192] * 2 + [224] * 2),
        ("convnext_tiny", [160] * 6 + [224] * 4),
    ],
)
def test_efficienttrainpp_is_the_published_table(model: str, sizes: list[int]) -> None:
    stages = EfficientTrainPlusPlus().stages(224, stride=32, model=model)
    assert [stage.size for stage in stages] == sizes
    assert [stage.magnitude for stage in stages] == list(range(10))
    assert [stage.ends_at for stage in stages] == pytest.approx([(k + 1) / 10 for k in range(10)])


def test_a_named_family_overrides_the_models_name() -> None:
    assert EfficientTrainPlusPlus(family="convnext").stages(224, model="deit_small")[0].size == 160


def test_efficienttrain_is_the_published_table() -> None:
    stages = EfficientTrain().stages(224, stride=32)
    assert [(stage.size, stage.magnitude) for stage in stages] == [
        (160, 1), (160, 3), (160, 5), (192, 7), (224, 9)
    ]  # fmt: skip
    assert 1 / (sum(stage.cost for stage in stages) / 5) == pytest.approx(1.53, abs=0.01)


@pytest.mark.parametrize("cost_of", [None, lambda size: float(size**3)])
def test_efficienttrain_shows_as_many_samples_in_every_stage(cost_of: Any) -> None:
    stages = EfficientTrain().stages(64, cost_of=cost_of)
    starts = [0.0, *(stage.ends_at for stage in stages)]
    shown = [(s.ends_at - start) / s.cost for start, s in zip(starts, stages, strict=False)]
    assert shown == pytest.approx([shown[0]] * 5)


def test_cost_follows_the_measure() -> None:
    by_area, by_flops = (
        EfficientTrainPlusPlus().stages(224, cost_of=f)[0] for f in (None, lambda size: size**3)
    )
    assert by_area.cost == pytest.approx((96 / 224) ** 2)
    assert by_flops.cost == pytest.approx((96 / 224) ** 3)
    assert by_area.ends_at == by_flops.ends_at


@pytest.mark.parametrize(
    ("image_size", "sizes"), [(32, [16, 24, 28, 32]), (64, [28, 48, 56, 64]), (224, [96, 160, 192, 224])]
)
@pytest.mark.parametrize("ratios", [(0.43, 0.71, 0.86, 1), (96 / 224, 160 / 224, 192 / 224, 1)])
def test_images_have_the_reference_sizes(
    image_size: int, sizes: list[int], ratios: tuple[float, ...]
) -> None:
    assert [input_size(ratio, image_size, 4) for ratio in ratios] == sizes


@given(st.floats(0.01, 1), st.integers(1, 600), st.integers(1, 64))
def test_a_side_is_on_the_stride_and_never_above_the_image(
    ratio: float, image_size: int, stride: int
) -> None:
    pixels = input_size(ratio, image_size, stride)
    assert 1 <= pixels <= image_size
    assert pixels == image_size or pixels % stride == 0
    assert abs(pixels - ratio * image_size) < stride or pixels == stride


def test_early_stages_use_what_small_inputs_leave_free() -> None:
    """Replay 4, then 2, is the paper's choice for DeiT-S; two images of 160 take the place of one of 224."""
    stages = EfficientTrainPlusPlus(max_batch_factor=8, max_replay=4).stages(224, model="deit_small")
    by_size = {stage.size: (stage.batch_factor, stage.replay) for stage in stages}
    assert by_size == {96: (5, 4), 160: (2, 2), 192: (1, 1), 224: (1, 1)}
    assert all(s.batch_factor * s.cost < 1.05 for s in stages)


@pytest.mark.parametrize("model", ["swin_tiny", "cswin_t"])
def test_replay_of_two_is_at_the_smallest_size_alone(model: str) -> None:
    """As the paper has it for Swin-T and CSWin-T."""
    stages = EfficientTrainPlusPlus(max_replay=2).stages(224, model=model, stride=32)
    assert {stage.size: stage.replay for stage in stages} == {96: 2, 160: 1, 224: 1}


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("model", ["swin_tiny", "deit_small", "convnext_tiny"])
def test_no_stage_reads_faster_than_the_first_unless_it_would_show_more_than_it_saves(
    model: str, most: int
) -> None:
    first, *others = EfficientTrainPlusPlus(max_replay=most).stages(224, model=model, stride=32)
    for stage in others:
        saves = 1.05 / stage.cost
        assert 1 <= stage.replay <= saves
        reads = (1 / stage.cost / stage.replay) / (1 / first.cost / first.replay)
        assert reads <= 1 or stage.replay + 1 > saves


def test_the_resize_control_keeps_sizes_and_leaves_augmentation_alone() -> None:
    control = ProgressiveResize()
    stages = control.stages(224, model="deit_small")
    assert control.kernel == "resize"
    assert [(s.size, s.magnitude) for s in stages] == [(96, None), (160, None), (192, None), (224, None)]
    assert [s.ends_at for s in stages] == pytest.approx([0.2, 0.6, 0.8, 1.0])


def test_a_custom_schedule_is_laid_out_and_equal_neighbours_become_one() -> None:
    stages = CustomCurriculum.model_validate(THREE_STAGES).stages(224)
    assert stages == (
        Stage(0.25, size=96, magnitude=0, cost=(96 / 224) ** 2, batch_factor=4, replay=2),
        Stage(0.5, size=160, magnitude=4.5, cost=(160 / 224) ** 2),
        Stage(1.0, size=224),
    )
    twice = [{"fraction": 0.333, "ratio": 0.5}, {"fraction": 0.333, "ratio": 0.5}, {"fraction": 0.333}]
    merged = CustomCurriculum.model_validate({"schedule": twice}).stages(32)
    assert [(s.ends_at, s.size) for s in merged] == [(pytest.approx(2 / 3), 16), (1.0, 32)]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            [{"fraction": 0.5}, {"fraction": 0.4}],
            "schedule: the fractions of the 2 stages sum to 0.9; expected 1",
        ),
        (
            [{"fraction": 0.5}, {"fraction": 0.5, "ratio": 0.5}],
            "schedule: the last stage has ratio 0.5; expected 1",
        ),
        ([{"fraction": 1, "ratio": 0}], "schedule.0.ratio: 0 is not allowed; expected greater than 0"),
        (
            [{"fraction": 1, "ratio": 1.5}],
            "schedule.0.ratio: 1.5 is not allowed; expected less than or equal to 1",
        ),
        ([{"fraction": 1, "magnitud": 3}], "schedule.0.magnitud: unknown key; did you mean 'magnitude'?"),
        ([], "schedule: the fractions of the 0 stages sum to 0; expected 1"),
    ],
)
def test_a_wrong_schedule_is_explained(schedule: list[dict[str, float]], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CustomCurriculum.model_validate({"schedule": schedule})
    assert str(explain(caught.value, CustomCurriculum)).startswith(message)


def test_lengths_grow_in_equal_steps_and_are_whole_for_the_rest() -> None:
    settings = settings_of("length", {"initial_scale": 0.25, "steps": 3, "until": 0.6})
    stages = settings.stages(64, stride=4)
    assert [stage.size for stage in stages] == [16, 32, 48, 64]
    assert [stage.cost for stage in stages] == [0.25, 0.5, 0.75, 1.0], "a row costs its tokens"
    assert [stage.ends_at for stage in stages] == pytest.approx([0.2, 0.4, 0.6, 1.0])
    measured = settings.stages(64, stride=4, cost_of=lambda size: size**2)
    assert measured[0].cost == 1 / 16
