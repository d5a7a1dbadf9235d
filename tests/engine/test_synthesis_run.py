"""The synthesis inside a run: its losses are told, its failures end it, its precision and stops are the run's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CALLS, CPU, WARMUP, Diary, distilled, same, trained
from torch import Tensor, nn

from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.data.batch import Step
from raytrain_speedup.engine.alarm import NonFinite
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.checkpoints.checkpoint import read_own, read_shared
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.loop import Loop, Stopped
from raytrain_speedup.engine.pool_loader import PoolLoader
from raytrain_speedup.engine.run import run
from raytrain_speedup.engine.synthesis_alarm import NothingShown, check_call
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.distillation import Synthesis, Synthesizer, evaluation_set
from raytrain_speedup.models import build_model
from raytrain_speedup.settings import UserError


@pytest.fixture(scope="module", autouse=True)
def quick_evaluation() -> Iterator[None]:
    """The set that students are judged on is made in moments: what is in it does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_set, "STEPS", 1)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights; nobody asks what they know."""
    torch.manual_seed(0)
    network = build_model(distilled().model, num_classes=10, in_channels=1, image_size=8)
    for _ in range(3):
        network(torch.randn(64, 1, 8, 8))
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save(network.state_dict(), path)
    return path


def taught(teacher: Path, method: str = "fastdfkd", **keys: Any) -> Any:
    """An experiment with that teacher; two underscores in a key are a dot."""
    given = {"teacher.train": None, "teacher.model.pretrained": str(teacher)}
    return distilled(given | {key.replace("__", "."): value for key, value in keys.items()}, method)


def loop_of(experiment: Any, folder: Path) -> Loop:
    splits = open_data(experiment.data, seed=0)
    return assemble(experiment, splits, Diary(folder), Stopwatch(CPU))[0]


# --- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fastdfkd", "dafl", "cmi"])
def test_a_synthesis_that_diverges_ends_the_run(method: str, teacher: Path, tmp_path: Path):
    """It used to end well, with an agreement of 100 %: on NaN, student and teacher are of one mind."""
    diary = Diary(tmp_path)
    with pytest.raises(NonFinite) as error:
        run(taught(teacher, method, distillation__lr_g=1e30), diary, device=CPU)
    assert error.value.exit_code == 1
    assert "call 0" in str(error.value) or "call 1" in str(error.value)
    assert "the last good checkpoint is" in str(error.value), "the one with the teacher"
    assert diary.epochs == []


class Made(Synthesizer):
    """Has made what it is given."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def synthesize(self, call: int) -> Synthesis:
        raise AssertionError

    def state_dict(self) -> dict[str, Any]:
        return self.state


GOOD = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAN = torch.tensor(float("nan"))


def checked(
    images: Tensor = GOOD, state: Mapping[str, Any] | None = None, **metrics: Tensor
) -> dict[str, float]:
    return check_call(7, Made(**state or {}), Synthesis(images, metrics))


def test_losses_that_are_not_finite_are_named():
    assert checked(loss=torch.tensor(3.5), bn=torch.tensor(0.5, dtype=torch.bfloat16)) == {
        "loss": 3.5,
        "bn": 0.5,
    }
    with pytest.raises(NonFinite, match=r"the synthesis loss is not finite in call 7 \(adv\)"):
        checked(loss=NAN, bn=torch.tensor(0.5), adv=torch.tensor(-float("inf")))


def test_a_state_that_is_not_finite_is_reported_before_it_is_saved():
    """A gradient of the last step ruins the generator, and no loss shows it."""
    good = {"generator": {"weight": torch.ones(3)}, "memory": None, "bank": torch.zeros(0, 3)}
    assert checked(state=good) == {}
    with pytest.raises(NonFinite, match="what the synthesizer has learnt is not finite after call 7"):
        checked(state=good | {"memory": (torch.ones(2), torch.tensor([1.0, float("inf")]))})


def test_images_that_show_nothing_are_refused():
    flat = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1).expand(4, 3, 2, 2)
    with pytest.raises(NothingShown, match="the images of call 7 are each of one colour"):
        checked(flat)
    with pytest.raises(NothingShown, match="the images of call 7 are all the same"):
        checked(GOOD[:1].expand(4, 3, 2, 2))
    mixed = torch.cat([flat[:3], GOOD[:1]])
    assert checked(mixed) == {}, "a plain image among others is one"


@pytest.mark.parametrize("of", ["running_var", "weight"])
def test_a_teacher_with_a_nan_in_it_is_named(of: str, teacher: Path, tmp_path: Path):
    state = torch.load(teacher, weights_only=True)
    name = next(name for name in state if name.endswith(of))
    state[name].view(-1)[1] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=rf"teacher: 1 of the {state[name].numel()} values of {name} are NaN"):
        run(taught(tmp_path / "nan.pt"), Diary(tmp_path / "run"), device=CPU)


# --- metrics ---------------------------------------------------------------------------------------------


def test_the_losses_of_synthesis_are_reported_every_epoch(teacher: Path, tmp_path: Path):
    metrics, _, diary = trained(taught(teacher), tmp_path)
    names = {f"synthesis_{name}" for name in ("loss", "bn", "oh", "adv")}
    for report in [*diary.epochs, metrics]:
        assert names <= report.keys()
        parts = sum(report[name] for name in names - {"synthesis_loss"})
        assert report["synthesis_loss"] == pytest.approx(parts, rel=1e-5)
    assert len({report["synthesis_loss"] for report in diary.epochs}) == CALLS, "each of its own call"


# --- precision -------------------------------------------------------------------------------------------


def first_loss(experiment: Any, folder: Path) -> tuple[float, set[torch.dtype]]:
    """The loss at the last step of the first call, and the types of the teacher's convolutions meanwhile."""
    loop = loop_of(experiment, folder)
    loader, seen = loop.loader, set()
    assert isinstance(loader, PoolLoader)
    convolution = next(layer for layer in loader.teacher.modules() if isinstance(layer, nn.Conv2d))
    parts = loader.prepare(0)
    next(parts)  # the evaluation set, which is the same in every precision
    hook = convolution.register_forward_hook(lambda layer, args, output: seen.add(output.dtype))
    next(parts)
    hook.remove()
    loader.close()
    return loader.metrics()["synthesis_loss"], seen


def test_synthesis_runs_in_the_precision_of_the_run(teacher: Path, tmp_path: Path):
    """And goes as far in bfloat16: weights move at every step, which autocast's cache of them would not see."""
    loss: dict[tuple[str, int], float] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for steps in (1, 12):
            keys = {"train__precision": precision, "distillation__steps": steps, "distillation__lr_g": 0.01}
            loss[precision, steps], seen = first_loss(
                taught(teacher, **keys), tmp_path / f"{precision}{steps}"
            )
            assert seen == {dtype}
    assert loss["bf16", 1] == pytest.approx(loss["fp32", 1], rel=0.02)
    assert loss["bf16", 1] != loss["fp32", 1]
    fall = loss["fp32", 1] - loss["fp32", 12]
    assert loss["bf16", 1] - loss["bf16", 12] == pytest.approx(fall, rel=0.25)


# --- stops and checkpoints -------------------------------------------------------------------------------


class Impatient(Diary):
    """Asks to stop when it is asked for the n-th time, and counts how often a teacher's step is told."""

    def __init__(self, folder: Path, at: int | None = None) -> None:
        super().__init__(folder)
        self.asked, self.at, self.teacher_steps = 0, at, 0

    def progress(self, metrics: Any) -> None:
        self.teacher_steps += metrics.get("of") == "teacher"

    def should_stop(self) -> bool:
        if self.teacher_steps and not self.latest():
            return False
        self.asked += 1
        return self.asked == self.at


def test_a_stop_is_heard_between_the_calls_of_the_warm_up(teacher: Path, tmp_path: Path):
    """And no call is made twice, none left out."""
    whole, final, diary = trained(taught(teacher), tmp_path / "whole")
    for at, calls in ((1, 0), (2, 1), (3, 2), (4, WARMUP + 1)):
        folder = tmp_path / str(at)
        with pytest.raises(Stopped, match="stopped before the first step of epoch 1; the checkpoint is"):
            run(taught(teacher), Impatient(folder, at), device=CPU)
        (last,) = sorted(folder.glob("checkpoint-0*"))[-1:]
        own = read_own(last, 0)
        assert own is not None and own["loader"]["calls"] == calls
        assert len(own["loader"]["pool"]["images"]) == min(128, 32 * calls)
        metrics, resumed, other = trained(taught(teacher), folder)
        assert same(resumed, final)
        names = ("val_agreement", "val_loss", "train_flops", "synthesis_loss", "pool_images")
        assert all(metrics[name] == whole[name] for name in names)
        assert [r["synthesis_loss"] for r in other.epochs] == [r["synthesis_loss"] for r in diary.epochs]


def test_a_teacher_that_was_trained_is_not_trained_again(tmp_path: Path):
    """A kill in the first call finds it in the checkpoint."""

    class Killed(Impatient):
        def should_stop(self) -> bool:
            if super().should_stop():
                raise KeyboardInterrupt
            return False

    first = Killed(tmp_path, at=1)
    with pytest.raises(KeyboardInterrupt):
        run(distilled(), first, device=CPU)
    assert first.teacher_steps > 0
    latest = first.latest()
    assert latest is not None
    kept = read_shared(latest, CPU)["frozen_models"]["teacher"]
    second = Impatient(tmp_path)
    run(distilled(), second, device=CPU)
    assert second.teacher_steps == 0
    last = second.latest()
    assert last is not None and same(read_shared(last, CPU)["frozen_models"]["teacher"], kept)
    assert first.reports == [{"epoch": 0, "partial": True}]


def test_without_checkpoints_the_teacher_is_not_kept_either(teacher: Path, tmp_path: Path):
    diary = Diary(tmp_path)
    run(taught(teacher, train__checkpoint_every=0, train__epochs=1), diary, device=CPU)
    assert diary.latest() is None and [report.get("partial") for report in diary.reports] == [None, None]


# --- what the student sees -------------------------------------------------------------------------------


def test_the_student_learns_from_augmented_images_and_is_judged_on_plain_ones(teacher: Path, tmp_path: Path):
    """By hand: uint8 pixels over 255, less the mean, over the std; targets are the teacher's logits."""
    keys = {"distillation__augment": {"crop": 1, "flip": True}, "data__mean": [0.3], "data__std": [0.2]}
    loop = loop_of(taught(teacher, **keys), tmp_path)
    loader, network = loop.loader, loop.frozen_models["teacher"]
    assert isinstance(loader, PoolLoader)
    for _ in loader.prepare(0):
        pass
    step = Step(0, torch.arange(64), torch.ones(64), 64, 0.0, FULL)
    (batch,) = loader.train_batches([step], epoch=0)
    kept = (loader.pool.newest(128).float() / 255 - 0.3) / 0.2
    outside = (0 - 0.3) / 0.2
    padded = nn.functional.pad(kept, [1] * 4, value=outside)
    shifted = [padded[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    crops = torch.stack(shifted + [crop.flip(3) for crop in shifted])
    near = (batch["inputs"][:, None, None] - crops).abs().amax((3, 4, 5)) < 1e-4
    assert near.any(2).any(1).all(), "each is a crop of an image of the pool"
    assert near.any(2).any(0).sum() > 9, "of all kinds"
    assert torch.equal(batch["target"], network(batch["inputs"]))
    assert not batch["target"].requires_grad

    judged = torch.cat([batch["inputs"] for batch in loader.eval_batches("val", batch_size=100)])
    assert loader.evaluation is not None
    torch.testing.assert_close(judged, (loader.evaluation.float() / 255 - 0.3) / 0.2)
    seen = {tuple(image.flatten().tolist()) for image in loader.pool.newest(128)}
    assert not seen & {tuple(image.flatten().tolist()) for image in loader.evaluation}
    loader.close()


def test_every_step_has_a_draw_of_its_own(teacher: Path, tmp_path: Path):
    """Where the pool holds one image, steps differ in its augmentation alone."""
    keys = {"distillation__pool_images": 1, "distillation__augment": {"crop": 3, "flip": True}}
    loop = loop_of(taught(teacher, "noise", **keys), tmp_path)
    for _ in loop.loader.prepare(0):
        pass
    steps = [Step(number, torch.arange(16), torch.ones(16), 16, 0.0, FULL) for number in range(2)]
    epochs = [list(loop.loader.train_batches(steps, epoch=epoch)) for epoch in (0, 0, 1)]
    (first, second), again, other = [[batch["inputs"] for batch in batches] for batches in epochs]
    assert torch.equal(first, again[0])
    assert not torch.equal(first, second) and not torch.equal(first, other[0])
    loop.loader.close()


def test_the_temperature_is_the_settings(teacher: Path, tmp_path: Path):
    """The loss of a step by hand: T^2 KL of softmax(logits / T)."""
    loop = loop_of(taught(teacher, distillation__temperature=3.0), tmp_path)
    target, output = torch.randn(4, 10), torch.randn(4, 10)
    p, q = (target / 3).softmax(1), (output / 3).softmax(1)
    torch.testing.assert_close(loop.task.per_sample(output, target), 9 * (p * (p / q).log()).sum(1))
    loop.loader.close()


def test_methods_and_seeds_are_judged_on_the_same_images(teacher: Path, tmp_path: Path):
    sets = []
    for name, keys in {
        "fastdfkd": {},
        "zskt": {"distillation__batch_size": 8},
        "real": {"train__seed": 5, "data__split_seed": 0},
    }.items():
        loop = loop_of(taught(teacher, name, **keys), tmp_path / name)
        assert isinstance(loop.loader, PoolLoader)
        next(loop.loader.prepare(0))
        sets.append(loop.loader.evaluation)
        loop.loader.close()
    assert all(torch.equal(sets[0], other) for other in sets[1:])
    assert len(sets[0]) >= 300


def test_the_ranks_share_the_evaluation_set(teacher: Path, tmp_path: Path):
    """Each image is judged by one rank, once."""
    experiment = taught(teacher, "noise")
    splits = open_data(experiment.data, seed=0)
    loop = loop_of(experiment, tmp_path)
    whole = loop.loader
    assert isinstance(whole, PoolLoader)
    next(whole.prepare(0))
    parts = []
    for rank in range(3):
        real = build_loader(splits, experiment.data, device=CPU, seed=0, rank=rank, world=3)
        loader = PoolLoader(
            real,
            synthesizer=whole.synthesizer,
            teacher=whole.teacher,
            student=whole.student,
            settings=whole.synthesis,
            dtype=torch.float32,
            watch=Stopwatch(CPU),
        )
        next(loader.prepare(0))
        parts += [batch["inputs"] for batch in loader.eval_batches("val", batch_size=50)]
        real.close()
    expected = torch.cat([batch["inputs"] for batch in whole.eval_batches("val", batch_size=50)])
    assert len(torch.cat(parts)) == len(expected)
    assert (torch.cat(parts).sum((1, 2, 3)).sort().values == expected.sum((1, 2, 3)).sort().values).all()
    whole.close()
