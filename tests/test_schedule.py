"""The schedule file: written, read, refused, and used in a plain loop."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.methods.curriculum import CURRICULA
from raytrain_speedup.methods.curriculum.crop import crop_batch
from raytrain_speedup.methods.pruning import PRUNERS, FullData, InfoBatch
from raytrain_speedup.schedule import (
    Evidence,
    Schedule,
    TunedOn,
    UnprovenSchedule,
    load_schedule,
    save_schedule,
)
from raytrain_speedup.schedule_file import checksum
from raytrain_speedup.settings import UserError


def make(pruning: dict, curriculum: dict | None = None) -> Schedule:
    return Schedule.model_validate(
        {
            "version": 1,
            "pruning": pruning,
            "curriculum": curriculum or {"method": "none"},
            "tuned_on": TunedOn(
                experiment="digits",
                run_id="0123456789abcdef",
                data={"source": "digits"},
                model={"name": "resnet8"},
                train={"epochs": 20.0},
                workers=1,
                hardware="1 x a desk, fp32",
                package_version="0.1.0",
            ),
            "evidence": Evidence(
                seeds=(0, 1, 2),
                accuracy=97.0,
                baseline_accuracy=97.2,
                difference=-0.2,
                interval=(-0.4, 0.0),
                margin=0.5,
                verdict="lossless",
                speedup=1.4,
                passes_saved=0.3,
            ),
        }
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_schedule(make({"method": "infobatch", "prune_ratio": 0.4}), tmp_path / "schedule.yaml")


def test_a_file_from_before_evidence_named_its_metric(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    del content["checksum"], content["evidence"]["metric"]
    file.write_text(yaml.safe_dump({**content, "checksum": checksum(content)}))
    loaded = load_schedule(file)
    assert loaded.evidence is not None and loaded.evidence.metric == "accuracy"


@pytest.mark.parametrize("method", sorted(PRUNERS))
def test_every_pruning_method_comes_back_as_it_was(method: str, tmp_path: Path) -> None:
    schedule = make({"method": method})
    assert load_schedule(save_schedule(schedule, tmp_path / "s.yaml")) == schedule


@pytest.mark.parametrize("method", sorted(CURRICULA))
def test_every_curriculum_comes_back_as_it_was(method: str, tmp_path: Path) -> None:
    needed = {"custom": {"schedule": [{"fraction": 0.5, "ratio": 0.5}, {"fraction": 0.5, "ratio": 1.0}]}}
    schedule = make({"method": "none"}, {"method": method, **needed.get(method, {})})
    loaded = load_schedule(save_schedule(schedule, tmp_path / "s.yaml"))
    assert loaded == schedule
    assert loaded.stages(224)[-1].ends_at == 1


def test_a_plain_loop_uses_it(file: Path) -> None:
    """What the README shows."""
    schedule = load_schedule(file)
    inputs, target = torch.randn(512, 8), torch.randint(2, (512,))
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = schedule.pruner(len(inputs), epochs=10)
    shown = 0
    for epoch in range(10):
        for index, weight in pruner.plan(epoch).batches(64):
            losses = torch.nn.functional.cross_entropy(model(inputs[index]), target[index], reduction="none")
            pruner.observe(index, losses.detach())
            (losses * weight).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            shown += len(index)
    assert shown < 10 * 512


def test_a_plain_loop_uses_its_curriculum(tmp_path: Path) -> None:
    """What the module's docstring shows: sizes rise, and both methods save."""
    made = make({"method": "infobatch", "prune_ratio": 0.5}, {"method": "efficienttrain++", "max_replay": 4})
    schedule = load_schedule(save_schedule(made, tmp_path / "s.yaml"))
    images, target = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8), torch.randint(2, (256,))
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    budget = schedule.budget(6, len(images), 32)
    assert budget.num_epochs > schedule.budget(6, len(images), 32, replay=True).num_epochs
    pruner = schedule.pruner(len(images), budget)
    sizes, spent = [], 0.0
    for epoch in range(len(budget.epoch_ends())):
        plan = pruner.plan(epoch)
        for number, (index, weight) in enumerate(plan.batches(32)):
            progress = budget.progress(epoch, number * 32 / plan.kept)
            if progress >= 1:
                break
            size = budget.stage_at(progress).size or 32
            kernel = schedule.curriculum.kernel
            x = crop_batch(images[index], size, mean=[0.5] * 3, std=[0.25] * 3, kernel=kernel)
            losses = torch.nn.functional.cross_entropy(model(x), target[index], reduction="none")
            pruner.observe(index, losses.detach())
            (losses * weight).mean().backward()
            sizes.append(x.shape[-1])
            spent += len(index) * (size / 32) ** 2
    assert sizes == sorted(sizes) and set(sizes) == {16, 24, 32}
    assert 0.5 < spent / (6 * 256) < 0.95


# --- what a plain loop gets of it ---


def losses(index: torch.Tensor) -> torch.Tensor:
    return torch.sin(index * 12.9898).abs()


def plans(pruner: Any, epochs: int) -> list[torch.Tensor]:
    found = []
    for epoch in range(epochs):
        plan = pruner.plan(epoch)
        pruner.observe(plan.indices, losses(plan.indices))
        found.append(plan.indices)
    return found


@pytest.mark.parametrize("method", ["infobatch", "random", "none", "epochs"])
def test_the_seed_decides(method: str) -> None:
    schedule = make({"method": method})
    first, again, other = (plans(schedule.pruner(300, 6, seed=seed), 6) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a[:20], b[:20]) for a, b in zip(first, other, strict=True))
    budget = schedule.budget(6, 300, 32)
    epochs = len(budget.epoch_ends())
    assert not torch.equal(
        plans(schedule.pruner(300, budget, seed=1), epochs)[2],
        plans(schedule.pruner(300, budget, seed=2), epochs)[2],
    )


def test_the_device_decides() -> None:
    schedule = make({"method": "infobatch"})
    for epochs in (6, schedule.budget(6, 300, 32)):
        pruner = schedule.pruner(300, epochs, device="meta")
        assert isinstance(pruner, InfoBatch) and pruner.scores.is_meta
        adopting = schedule.pruner(300, epochs)
        adopting.observe(torch.arange(2), torch.ones(2, device="meta"))
        assert isinstance(adopting, InfoBatch) and adopting.scores.is_meta


def test_the_share_of_the_last_epoch_decides_what_a_saving_drops() -> None:
    """5.25 epochs: what the pruned epochs must drop is a fraction of those, not of six."""
    schedule = make({"method": "infobatch", "saving": 0.3})
    budget = schedule.budget(5.25, 2000, 32)
    assert budget.last_epoch_fraction == pytest.approx(0.25)
    shown = [len(indices) for indices in plans(schedule.pruner(2000, budget), 6)]
    saved = sum(2000 - count for count in shown[:5])
    assert saved / (5.25 * 2000) == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize("saving", [0.3, 0.25, 0.0])
def test_fewer_epochs_save_what_they_say_in_the_loop_that_the_readme_shows(
    saving: float, tmp_path: Path
) -> None:
    schedule = load_schedule(save_schedule(make({"method": "epochs", "saving": saving}), tmp_path / "s.yaml"))
    shown = sum(
        len(index)
        for pruner in [schedule.pruner(512, epochs=10)]
        for epoch in range(10)
        for index, _ in pruner.plan(epoch).batches(64)
    )
    assert shown == round((1 - saving) * 10 * 512)


@pytest.mark.parametrize("curriculum", ["none", "efficienttrain++"])
def test_fewer_epochs_save_what_they_say_in_a_loop_over_a_budget(curriculum: str) -> None:
    """As the engine's budget does, whose learning rate ends with it."""
    schedule = make({"method": "epochs", "saving": 0.3}, {"method": curriculum})
    budget = schedule.budget(10, 512, 32)
    pruner = schedule.pruner(512, budget)
    assert isinstance(pruner, FullData)
    assert budget.num_epochs == pytest.approx(
        0.7 * make({"method": "none"}, {"method": curriculum}).budget(10, 512, 32).num_epochs
    )
    assert all(pruner.plan(epoch).kept == 512 for epoch in range(len(budget.epoch_ends())))


@given(st.integers(1, 60))
def test_a_warm_up_is_the_same_share_of_any_number_of_epochs(epochs: int) -> None:
    schedule = make({"method": "infobatch", "prune_from": 0.2, "anneal_from": 1.0})
    full = [len(indices) == 50 for indices in plans(schedule.pruner(50, epochs), epochs)]
    first = full.index(False) if False in full else epochs
    assert first == max(1, -(-epochs // 5))


@pytest.mark.parametrize(("warmup", "prune_from"), [(1, 0.0), (5, 0.25)])
def test_the_warm_up_of_an_earlier_file_becomes_progress(file: Path, warmup: int, prune_from: float) -> None:
    """It was counted in epochs of the 20 that it was tuned on; here it is the same fraction of 8."""
    content = yaml.safe_load(file.read_text())
    del content["checksum"], content["pruning"]["prune_from"]
    content["pruning"]["warmup_epochs"] = warmup
    file.write_text(yaml.safe_dump({**content, "checksum": checksum(content)}))
    schedule = load_schedule(file)
    assert (
        schedule.pruning
        == make({"method": "infobatch", "prune_ratio": 0.4, "prune_from": prune_from}).pruning
    )
    full = [len(indices) == 300 for indices in plans(schedule.pruner(300, 8), 8)]
    assert full.index(False) == max(1, 8 * prune_from)


@pytest.mark.parametrize("method", sorted(PRUNERS))
def test_no_epochs_and_no_samples_are_reported_in_a_line(method: str) -> None:
    schedule = make({"method": method})
    with pytest.raises(UserError, match="^epochs: 0 is not allowed; expected a whole number, at least 1$"):
        schedule.pruner(10, 0)
    with pytest.raises(
        UserError, match="^num_samples: 0 is not allowed; expected a whole number, at least 1$"
    ):
        schedule.pruner(0, 10)
    with pytest.raises(UserError, match="^epochs: 0 is not allowed; expected more than 0$"):
        schedule.budget(0, 10, 32)
    with pytest.raises(UserError, match="^num_samples: 0 is not allowed; expected more than 0$"):
        schedule.budget(10, 0, 32)
    with pytest.raises(UserError, match="^plan: the run has no epoch 10; expected 0 to 9$"):
        schedule.pruner(10, 10).plan(10)


@pytest.mark.parametrize("method", sorted(PRUNERS))
def test_numbers_of_numpy_and_whole_floats_are_numbers(method: str, tmp_path: Path) -> None:
    """And their checkpoints hold plain ones, which `torch.load` reads without running code."""
    schedule = make({"method": method})
    expected = schedule.pruner(100, 10, seed=3)
    for n, epochs, seed in ((np.int64(100), np.int32(10), np.int64(3)), (100.0, 10.0, 3)):
        found = schedule.pruner(n, epochs, seed=seed)  # type: ignore[arg-type]
        assert torch.equal(found.plan(9).indices, expected.plan(9).indices)
        torch.save(found.state_dict(), tmp_path / "state.pt")
        expected.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for n, epochs in ((100.5, 10), (100, 10.5)):
        with pytest.raises(UserError, match="expected a whole number, at least 1$"):
            schedule.pruner(n, epochs)  # type: ignore[arg-type]


# --- what it says of itself ---


UNPROVEN: list[dict[str, Any] | None] = [None, {"verdict": "lossy"}, {"verdict": "not yet known"}]


@pytest.mark.parametrize("change", UNPROVEN, ids=["no baseline", "lossy", "not yet known"])
def test_an_unproven_schedule_says_so_when_it_is_loaded(change: dict | None, tmp_path: Path) -> None:
    schedule = make({"method": "infobatch"})
    evidence = None
    if change is not None:
        assert schedule.evidence is not None
        evidence = schedule.evidence.model_copy(update=change)
    schedule = schedule.model_copy(update={"evidence": evidence})
    path = save_schedule(schedule, tmp_path / "s.yaml")
    with pytest.warns(UnprovenSchedule) as caught:
        assert not load_schedule(path).proven
    (warning,) = caught
    assert str(warning.message) == f"{path}: not proven lossless ({schedule.headline()})"
    assert warning.filename == __file__  # of the loop that loads it
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprovenSchedule)
        with pytest.raises(UnprovenSchedule):
            load_schedule(path)


def test_a_loop_sees_it_once(tmp_path: Path) -> None:
    """In a process of its own, with Python's ordinary filters."""
    path = save_schedule(make({"method": "none"}).model_copy(update={"evidence": None}), tmp_path / "s.yaml")
    code = (
        "from raytrain_speedup.schedule import load_schedule\n"
        f"for _ in range(3): print(load_schedule({str(path)!r}).proven)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3
    assert done.stderr.count("UnprovenSchedule: ") == 1


def test_a_lossless_schedule_is_proven_and_loads_in_silence(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_schedule(file).proven


def test_it_says_what_it_is(file: Path) -> None:
    assert (
        load_schedule(file).headline() == "1.40 x as fast, -0.20 points [-0.40, +0.00] over 3 seeds: lossless"
    )
    schedule = make({"method": "none"})
    assert schedule.model_copy(update={"evidence": None}).headline().startswith("no baseline")
    assert schedule.evidence is not None
    told = schedule.evidence.model_copy(update={"speedup_interval": (1.3, 1.5), "wall_speedup": 3.0})
    assert (
        schedule.model_copy(update={"evidence": told}).headline().startswith("1.40 x as fast [1.30, 1.50], ")
    )


def test_addresses(file: Path) -> None:
    assert load_schedule(file.as_uri()) == load_schedule(file)


def changed(file: Path, keys: tuple[str, ...], value: object, *, sign: bool) -> Path:
    content = yaml.safe_load(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    if sign:
        content["checksum"] = checksum({key: item for key, item in content.items() if key != "checksum"})
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("version",), 2, "version: 2 is unknown here; expected 1"),
        (
            ("pruning", "method"),
            "infobach",
            "pruning: method: 'infobach' is unknown; expected one of: .*infobatch",
        ),
        (("pruning", "prune_ratio"), 1.2, "pruning: prune_ratio: 1.2 is not allowed"),
        (("pruning", "prune"), 0.2, "pruning: prune: unknown key"),
        (("tuned_on", "gpu"), "x", "tuned_on.gpu: unknown key"),
        (("evidence", "verdict"), "great", "evidence.verdict: 'great' is not allowed"),
        (("code",), "!!python/object/apply:os.system", "code: unknown key"),
    ],
)
def test_wrong_content_is_named(file: Path, keys: tuple[str, ...], value: object, message: str) -> None:
    with pytest.raises(UserError, match=f"schedule.yaml: {message}"):
        load_schedule(changed(file, keys, value, sign=True))


def test_changed_evidence_is_no_evidence(file: Path) -> None:
    with pytest.raises(
        UserError, match=r"checksum: .* the file was changed or damaged .* it is no signature"
    ):
        load_schedule(changed(file, ("evidence", "speedup"), 3.0, sign=False))


def test_the_checksum_does_not_say_who_wrote_the_file(file: Path) -> None:
    """What it guards against are slips: whoever changes a number can compute it anew. The docstrings say so."""
    forged = load_schedule(changed(file, ("evidence", "speedup"), 3.0, sign=True))
    assert forged.evidence is not None and forged.evidence.speedup == 3.0
    assert "no signature" in str(sys.modules[load_schedule.__module__].__doc__)


def test_another_layout_is_the_same_file(file: Path) -> None:
    """Sorted keys, flow style, other comments: the content counts."""
    before = load_schedule(file)
    file.write_text("# mine\n" + yaml.safe_dump(yaml.safe_load(file.read_text()), default_flow_style=True))
    assert load_schedule(file) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"- 1", "not a schedule"),
        (b"!!python/object/apply:os.system ['touch hacked']", "not YAML"),
        (b"#" * (1 << 16) + b"##", "larger"),
        (b"version: &v 1\npruning: *v", "aliases"),
    ],
)
def test_what_is_no_schedule(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_schedule(path)
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "source", ["missing.yaml", "file:///missing/x.yaml", "http://127.0.0.1:1/x.yaml", "."]
)
def test_what_cannot_be_read(source: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_schedule(source)


def test_it_needs_neither_ray_nor_mlflow(file: Path) -> None:
    """In a process where they cannot be imported."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'optuna']))\n"
        "from raytrain_speedup.schedule import load_schedule\n"
        f"print(load_schedule({str(file)!r}).pruner(10, 2).plan(0).kept)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "10", done.stderr
