"""Runs without data, end to end: a teacher is trained, images are synthesised, a student learns from both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CALLS, CPU, STEPS, WARMUP, Diary, distilled, run, same, trained, weights
from PIL import Image
from torch import Tensor, nn

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.engine.alarm import NonFinite
from raytrain_speedup.engine.checkpoints.checkpoint import read_own, read_shared
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.cost.reference import Reference
from raytrain_speedup.engine.loop import Loop, Stopped
from raytrain_speedup.engine.pool_loader import PoolLoader
from raytrain_speedup.experiment_file import recipes
from raytrain_speedup.methods.distillation import SYNTHESIZERS, evaluation_set
from raytrain_speedup.methods.distillation.augment import Augment
from raytrain_speedup.models import build_model, published_classes, without_weights
from raytrain_speedup.settings import UserError

TEACHER_STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def quick_evaluation() -> Iterator[None]:
    """The set that students are judged on is made in moments: what is in it does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_set, "STEPS", 1)
        yield


class Watched(Diary):
    """A diary that also keeps apart what was told of the teacher's steps."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.teacher_steps = 0
        self.images: list[str] = []

    def progress(self, metrics: Any) -> None:
        if metrics.get("of") == "teacher":
            self.teacher_steps += 1
        else:
            super().progress(metrics)

    def image(self, name: str, epoch: int, png: bytes) -> None:
        super().image(name, epoch, png)
        self.images.append(f"{name}-{epoch:04d}.png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Watched]:
    """An uninterrupted run."""
    diary = Watched(tmp_path_factory.mktemp("whole"))
    return run(distilled(), diary, device=CPU), diary


def state(diary: Diary) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the last checkpoint holds: the shared part, and the loader's."""
    latest = diary.latest()
    assert latest is not None
    own = read_own(latest, 0)
    assert own is not None
    return read_shared(latest, CPU), own["loader"]


def tensors(tree: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor in nested dicts and sequences, by its place."""
    if isinstance(tree, Tensor):
        return {path: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {
        key: tensor
        for name, inner in items
        if isinstance(inner, Tensor | Mapping | list | tuple)
        for key, tensor in tensors(inner, f"{path}/{name}").items()
    }


def test_the_metrics_of_a_run(whole: tuple[dict[str, Any], Watched]):
    metrics, diary = whole
    assert diary.teacher_steps == TEACHER_STEPS
    assert diary.steps == CALLS * STEPS
    assert 0 <= metrics["accuracy"] <= 100
    assert 20 < metrics["teacher_accuracy"] <= 100
    assert 0 <= metrics["val_agreement"] <= 100
    assert "val_accuracy" not in metrics
    assert 0 < metrics["synthesis_seconds"] <= metrics["train_seconds"]
    assert 0 < metrics["teacher_seconds"] < metrics["wall_seconds"]
    assert metrics["samples_shown"] == CALLS * STEPS * 16
    assert metrics["passes_saved"] == 0
    assert metrics["pool_images"] == 128
    assert [report["pool_images"] for report in diary.epochs] == [96, 128, 128]


def test_images_are_kept_at_every_evaluation(whole: tuple[dict[str, Any], Watched]):
    _, diary = whole
    assert diary.images == ["synthetic-0002.png", "synthetic-0003.png"]
    with Image.open(diary.folder / "images" / diary.images[0]) as grid:
        assert grid.size == (8 * 9 + 1, 8 * 9 + 1)
        assert grid.getextrema()[0][1] > 0


@pytest.mark.parametrize(
    "after",
    [(1,), (STEPS,), (STEPS + 2,), (STEPS, STEPS + 1, 1)],
    ids=["just after the warm-up", "at an epoch's end", "in an epoch", "again, the pool full"],
)
def test_resumed_equals_uninterrupted(
    after: tuple[int, ...], whole: tuple[dict[str, Any], Watched], tmp_path: Path
):
    for sitting, steps in enumerate(after):
        torch.manual_seed(steps)
        diary = Watched(tmp_path, stop_after=steps)
        with pytest.raises(Stopped, match="the checkpoint is .*checkpoint-0"):
            run(distilled(), diary, device=CPU)
        assert diary.teacher_steps == (TEACHER_STEPS if sitting == 0 else 0)
    resumed = Watched(tmp_path)
    metrics = run(distilled(), resumed, device=CPU)
    assert resumed.teacher_steps == 0
    expected, diary = whole
    assert same(weights(resumed), weights(diary))
    names = ("accuracy", "teacher_accuracy", "val_agreement", "val_loss", "test_loss", "pool_images")
    assert all(metrics[name] == expected[name] for name in (*names, "train_flops"))
    for mine, other in zip(state(resumed), state(diary), strict=True):
        assert same(tensors(mine), tensors(other))


def test_the_teacher_is_decided_by_its_section_alone(whole: tuple[dict[str, Any], Watched], tmp_path: Path):
    """Another seed, batch or method of the student meets the same teacher; its own seed gives another."""
    _, diary = whole
    teacher = state(diary)[0]["frozen_models"]["teacher"]

    def of(name: str, keys: Mapping[str, Any], method: str) -> dict[str, Tensor]:
        other = Watched(tmp_path / name)
        run(distilled({"train.epochs": 1, **keys}, method), other, device=CPU)
        return state(other)[0]["frozen_models"]["teacher"]

    assert same(of("student", {"train.seed": 3, "train.batch_size": 8}, "noise"), teacher)
    assert not same(of("teacher", {"teacher.train.seed": 3}, "noise"), teacher)


def test_a_warm_up_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []
    warm_up = Loop.warm_up

    def watched(self: Loop, stages: Any) -> None:
        loader = self.loader
        if not isinstance(loader, PoolLoader):
            warm_up(self, stages)
            return
        before = [{k: v.clone() for k, v in tensors(part).items()} for part in _all(self)]
        warm_up(self, stages)
        seen.extend(same(a, tensors(b)) for a, b in zip(before, _all(self), strict=True))
        seen.append(len(loader.pool) == 0)

    def _all(loop: Loop) -> list[Any]:
        return [loop.loader.state_dict(), loop.model.state_dict(), loop.frozen_models["teacher"].state_dict()]

    monkeypatch.setattr(Loop, "warm_up", watched)
    run(distilled({"train.epochs": 1}), Diary(tmp_path), device=CPU)
    assert seen == [True] * 4


@pytest.mark.parametrize("method", SYNTHESIZERS)
def test_every_method_runs(method: str, tmp_path: Path):
    keys = {"train.epochs": 2, "distillation.warmup": 1, "distillation.student_steps": 2}
    metrics, final, diary = trained(distilled(keys, method), tmp_path)
    assert metrics["progress"] == 1
    assert metrics["synthesis_seconds"] > 0
    assert all(tensor.isfinite().all() for tensor in final.values())
    images = state(diary)[1]["pool"]["images"]
    assert images.shape[1:] == (1, 8, 8)
    assert images.float().std() > 0


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_the_control_with_data_shows_training_images_none_twice(loader: str, tmp_path: Path):
    """And where it was stopped it goes on."""
    keys = {"distillation.pool_images": 512, "data.loader": loader, "data.num_workers": 1}
    experiment = distilled(keys, "real")
    with pytest.raises(Stopped):
        run(experiment, Diary(tmp_path / "run", stop_after=STEPS + 1), device=CPU)
    resumed = trained(experiment, tmp_path / "run")
    whole = trained(experiment, tmp_path / "whole")
    assert same(resumed[1], whole[1])
    assert all(resumed[0][name] == whole[0][name] for name in ("accuracy", "val_agreement", "train_flops"))

    kept = state(whole[2])[1]
    assert same(tensors(kept), tensors(state(resumed[2])[1]))
    shown = kept["pool"]["images"]
    splits = open_data(experiment.data, seed=0)
    real = build_loader(splits, experiment.data, device=CPU, seed=0)
    images = real.train_images(torch.arange(len(splits.train)))
    real.close()
    times = (shown.flatten(1)[:, None] == images.flatten(1)[None]).all(2)
    assert len(shown) == (WARMUP + CALLS) * 32
    assert times.any(1).all()
    assert times.sum(0).max() == 1


def test_the_flops_of_synthesis_are_counted():
    """DeepInversion on linear networks, by hand: every step is a forward and a backward pass of each network
    that is asked, and a last look is a forward pass."""
    experiment = distilled({"data.loader": "device"})
    splits = open_data(experiment.data, seed=0)
    real = build_loader(splits, experiment.data, device=CPU, seed=0, world=2)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    settings = SYNTHESIZERS["deepinversion"](
        batch_size=32, warmup=1, bn=0.0, adv=1.0, steps=3, augment=Augment(crop=0, flip=False)
    )
    shape = {"num_classes": 10, "image_size": 8, "channels": 1}
    loader = PoolLoader(
        real,
        synthesizer=settings.build(teacher, student, **shape, seed=0, device=CPU, normalise=([0.5], [0.5])),
        teacher=teacher,
        student=student,
        settings=settings,
        dtype=torch.float32,
        watch=Stopwatch(CPU),
    )

    def spent(epoch: int) -> float:
        for _ in loader.prepare(epoch):
            pass
        return loader.spent_flops()

    one_pass, workers = 2 * 32 * 64 * 10, 2
    teacher_alone = workers * (3 * 2 + 1) * one_pass
    assert spent(0) == teacher_alone + 2 * teacher_alone
    assert spent(1) == 2 * teacher_alone
    assert loader.spent_flops() == 0


def test_without_a_validation_split_the_student_is_still_judged(tmp_path: Path):
    metrics, _, _ = trained(distilled({"data.val_fraction": 0.0, "train.epochs": 1}, "noise"), tmp_path)
    assert 0 <= metrics["val_agreement"] <= 100


def test_stopped_while_the_teacher_is_trained(tmp_path: Path):
    """At once, and nothing of it is left."""

    class Impatient(Watched):
        def progress(self, metrics: Any) -> None:
            super().progress(metrics)
            self.stop_requested = self.teacher_steps == 2

    diary = Impatient(tmp_path)
    with pytest.raises(Stopped, match="stopped while the teacher was trained, of which nothing is kept"):
        run(distilled(), diary, device=CPU)
    assert diary.teacher_steps == 2
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_whose_training_fails_is_named(tmp_path: Path):
    with pytest.raises(NonFinite, match="teacher: the (loss is|weights are) not finite"):
        run(distilled({"teacher.train.lr": 1e30, "teacher.train.warmup": 0}), Diary(tmp_path), device=CPU)


def test_another_teacher_is_another_experiment(whole: tuple[dict[str, Any], Watched], tmp_path: Path):
    with pytest.raises(Stopped):
        run(distilled(), Diary(tmp_path, stop_after=TEACHER_STEPS + 2), device=CPU)
    with pytest.raises(UserError, match=r"another experiment: teacher.model.name is 'resnet8' there and"):
        run(distilled({"teacher.model.name": "wrn16_1"}), Diary(tmp_path), device=CPU)
    run(distilled({"teacher.train.threads": 1}), Diary(tmp_path), device=CPU)  # decides no number


# --- a teacher from a file -------------------------------------------------------------------------------


def from_file(path: Path, **keys: Any) -> Experiment:
    return distilled({"teacher.train": None, "teacher.model.pretrained": str(path), "train.epochs": 1} | keys)


@pytest.fixture
def file(whole: tuple[dict[str, Any], Watched], tmp_path: Path) -> Path:
    """The teacher of the uninterrupted run as a file of its own."""
    path = tmp_path / "teacher.pt"
    torch.save(state(whole[1])[0]["frozen_models"]["teacher"], path)
    return path


def test_a_teacher_from_a_file_is_taken_as_it_is_and_kept(file: Path, tmp_path: Path):
    expected = torch.load(file, weights_only=True)
    experiment = from_file(file, **{"train.epochs": 2})
    diary = Watched(tmp_path / "run", stop_after=2)
    with pytest.raises(Stopped):
        run(experiment, diary, device=CPU)
    moved = file.rename(tmp_path / "elsewhere.pt")  # the checkpoint holds it
    metrics = run(experiment, Watched(tmp_path / "run"), device=CPU)
    again = from_file(moved, **{"train.epochs": 2})
    for key in ("baseline_key", "train_key"):
        assert metrics[key] == run(again, Watched(tmp_path / "again"), device=CPU)[key]
    with pytest.raises(UserError, match=r"teacher.model.pretrained is '\w{12}' there and '\w{12}' here"):
        torch.save({name: tensor + 1 for name, tensor in expected.items()}, file)
        run(experiment, Watched(tmp_path / "run"), device=CPU)
    assert same(state(diary)[0]["frozen_models"]["teacher"], expected)
    assert metrics["teacher_accuracy"] > 20


def refused(experiment: Experiment, folder: Path) -> str:
    """The message, which comes before the first step of anything."""
    diary = Watched(folder)
    with pytest.raises(UserError) as error:
        run(experiment, diary, device=CPU)
    assert error.value.exit_code == 2
    assert diary.steps == 0
    return str(error.value)


def test_a_file_that_is_no_teacher_is_refused(file: Path, tmp_path: Path):
    folder = tmp_path / "run"
    text = tmp_path / "notes.pt"
    text.write_text("not a state dict")
    message = refused(from_file(text), folder)
    assert message.startswith(f"teacher.model.pretrained: cannot read {text}: no file that torch.save wrote")
    torch.save({"epoch": 3}, text)
    assert "holds a dict with epoch; expected a state dict" in refused(from_file(text), folder)
    torch.save([1, 2], text)
    assert "holds a list; expected a state dict" in refused(from_file(text), folder)
    torch.save(nn.Linear(2, 2), text)  # a pickled network: never executed
    assert "it is a pickle that runs torch.nn.modules.linear.Linear" in refused(from_file(text), folder)
    assert "No such file" in refused(from_file(tmp_path / "nowhere.pt"), folder)
    assert "another network than WideResNet" in refused(
        from_file(file, **{"teacher.model.name": "wrn16_1"}), folder
    )


def test_a_teacher_of_other_classes_is_refused(file: Path, tmp_path: Path):
    weights = torch.load(file, weights_only=True)
    (last,) = [
        name for name, tensor in weights.items() if name.endswith("weight") and tensor.shape == (10, 64)
    ]
    weights[last] = torch.zeros(7, 64)
    weights[last.replace("weight", "bias")] = torch.zeros(7)
    torch.save(weights, file)
    message = refused(from_file(file), tmp_path / "run")
    assert "ResNet needs (10" in message
    assert "is the number of classes the same?" in message


def test_published_weights_of_other_classes_are_refused_before_they_are_fetched(tmp_path: Path):
    keys = {"teacher.train": None, "teacher.model.name": "torchvision/resnet18"}
    message = refused(distilled(keys | {"teacher.model.weights": "IMAGENET1K_V1"}), tmp_path)
    assert message == (
        "teacher.model.weights: IMAGENET1K_V1 of torchvision/resnet18 knows 1000 classes; expected 10, as "
        "the data have"
    )
    assert "teacher.model.weights: none are published for resnet8" in refused(
        distilled({"teacher.train": None, "teacher.model.weights": "x"}), tmp_path
    )


def test_a_teacher_without_batch_norm_is_refused_before_the_first_step(tmp_path: Path):
    """Also before it is trained."""
    vit = {
        "teacher.model.name": "timm/vit_tiny_patch16_224",
        "teacher.model.options": {"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2},
    }
    diary = Watched(tmp_path)
    with pytest.raises(UserError, match=r"VisionTransformer has no batch-norm layers .* set bn=0 or choose"):
        run(distilled(vit), diary, device=CPU)
    assert diary.teacher_steps == 0


def test_a_teachers_batch_has_to_split_among_the_workers():
    with pytest.raises(UserError, match=r"teacher.train.batch_size: 65 does not split into 2 workers"):
        distilled({"teacher.train.batch_size": 65, "scaling.workers": 2})


# --- the recipes -----------------------------------------------------------------------------------------

PAIRS = {  # recipe: channels, image size, classes
    "digits-dfkd": (1, 16, 10),
    "cifar10-wrn40_2-wrn16_1": (3, 32, 10),
    "cifar100-resnet34-resnet18": (3, 32, 100),
    "imagenet-resnet50-mobilenetv2": (3, 224, 1000),
    "camvid-dfkd": (3, 128, 11),
    "nyuv2-dfkd": (3, 128, 13),
}


def test_every_recipe_without_data_is_tried():
    assert set(PAIRS) == {name for name in recipes() if load_experiment(name).distillation is not None}


@pytest.mark.parametrize("name", PAIRS)
def test_teacher_and_student_of_a_recipe_fit_its_synthesis(name: str):
    channels, side, classes = PAIRS[name]
    experiment = load_experiment(name)
    assert experiment.teacher is not None and experiment.distillation is not None
    shapes = {"num_classes": classes, "in_channels": channels, "image_size": side}
    networks = [
        build_model(without_weights(model), **shapes, dense=experiment.task.build().logits == "pixel")
        for model in (experiment.teacher.model, experiment.model)
    ]
    synthesizer = experiment.distillation.build(
        *networks,
        num_classes=classes,
        image_size=side,
        channels=channels,
        seed=0,
        device=CPU,
        normalise=(experiment.data.mean, experiment.data.std),
    )
    z = torch.randn(2, *synthesizer.generator.latent_shape)
    assert synthesizer.generator(z).shape == (2, channels, side, side)
    if experiment.teacher.model.weights is not None:
        assert published_classes(experiment.teacher.model) == classes


def test_nobody_times_what_a_teacher_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference steps of a run are its student's: those of one yardstick."""
    timed: list[Reference] = []
    measure = Reference.measure

    def noting(self: Reference, progress: float | None = None) -> None:
        timed.append(self)
        measure(self, progress)

    monkeypatch.setattr(Reference, "measure", noting)
    metrics, _, _ = trained(distilled(), tmp_path)
    assert metrics["reference_steps"] > 0 and len({id(each) for each in timed}) == 1
