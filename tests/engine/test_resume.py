"""A run that is stopped anywhere and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, VIT, Diary, equal, run, same, slow_clock, tiny, trained, untimed, weights

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.lookout import Lookout
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.reporter import Notice
from raytrain_speedup.methods.pruning import PRUNERS
from raytrain_speedup.settings import UserError

EVERYTHING: dict[str, Any] = {
    **VIT,
    "model.drop_rate": 0.2,
    "pruning.method": "infobatch",
    "train.accumulate": 2,
    "train.mixup": 0.4,
    "train.cutmix": 1.0,
    "train.ema_decay": 0.9,
    "train.clip_norm": 1.0,
    "train.lr": 0.01,
}
PRUNED = {
    "infobatch-quantile": {
        "pruning.method": "infobatch",
        "pruning.threshold": "quantile",
        "pruning.prune_ratio": None,
    },
    "infobatch-saving": {"pruning.method": "infobatch", "pruning.saving": 0.1},
    **{name: {"pruning.method": name} for name, method in PRUNERS.items() if not method.described},
}
OPTIMIZERS = {
    name: EVERYTHING | {"train.optimizer": name} for name in ("sgd", "adamw", "lamb", "lars", "muon")
}
HALF = {"sgd-fp16": EVERYTHING | {"train.precision": "fp16"}}


def interrupted(experiment: Experiment, folder: Path, *after: int) -> list[Diary]:
    """Stop a run after so many steps, again and again, each time in a new process's state."""
    diaries = []
    for steps in after:
        diaries.append(Diary(folder, stop_after=steps))
        torch.manual_seed(99)  # what a new process finds must not matter
        with pytest.raises(Stopped, match="the checkpoint is .*checkpoint-0"):
            run(experiment, diaries[-1], device=CPU)
    diaries.append(Diary(folder))
    run(experiment, diaries[-1], device=CPU)
    return diaries


def left(diary: Diary) -> list[dict[str, Any]]:
    """All that the last checkpoint holds, but for the time."""
    latest = diary.latest()
    assert latest is not None
    shared, own = (torch.load(latest / name, weights_only=True) for name in ("run.pt", "rank-0.pt"))
    del shared["seconds"], shared["reference"]
    return [shared, own]


CASES = PRUNED | OPTIMIZERS | HALF


@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_resumed_equals_uninterrupted(keys: dict[str, Any], tmp_path: Path):
    """Stopped in the middle of an epoch, at the end of one, and in the middle of a pruned one."""
    experiment = tiny(keys)
    _, expected, whole = trained(experiment, tmp_path / "whole")
    diaries = interrupted(experiment, tmp_path / "parts", 2, 2, 1)
    resumed = diaries[-1]
    assert same(weights(resumed), expected)
    assert equal(left(resumed), left(whole))
    epochs = [metrics for diary in diaries for metrics in diary.epochs]
    assert [untimed(epoch) for epoch in epochs] == [untimed(epoch) for epoch in whole.epochs]
    assert untimed(resumed.reports[-1]) == untimed(whole.reports[-1])


def test_seconds_and_metrics_go_on_where_they_were(tmp_path: Path):
    """Ten of twelve steps were taken before the stop."""
    with pytest.raises(Stopped):
        run(tiny(), Diary(tmp_path, stop_after=10), device=CPU)
    before = torch.load(tmp_path / "checkpoint-000002" / "run.pt", weights_only=True)
    metrics, _, _ = trained(tiny(), tmp_path)
    assert metrics["train_seconds"] > before["seconds"]["seconds"]["train"] > 0
    assert metrics["setup_seconds"] > before["seconds"]["seconds"]["setup"] > 0
    assert before["samples_shown"] == 2 * 230 + 128 and metrics["samples_shown"] == 3 * 230


class Killed(Diary):
    """Ends without a word in the eighth step, the first of the third epoch where the second is pruned to three."""

    def progress(self, metrics: Any) -> None:
        self.steps += 1
        if self.steps == 8:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("how", "taken"), [({"checkpoint_steps": 2}, 7), ({"checkpoint_minutes": 1, "checkpoint_every": 3}, 6)]
)
def test_resumed_from_a_checkpoint_between_steps_without_a_stop(
    how: dict[str, Any], taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As after a lost worker: the steps since the checkpoint are taken again. (A step of the second takes ten
    seconds, by its clock.)"""
    pruned = {"pruning.method": "infobatch", "pruning.anneal_from": 1.0}
    _, expected, _ = trained(tiny(pruned), tmp_path / "whole")
    monkeypatch.setattr("raytrain_speedup.engine.lookout.monotonic", slow_clock())
    experiment = tiny(pruned, **how)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, Killed(tmp_path / "parts"), device=CPU)
    (last,) = sorted((tmp_path / "parts").glob("checkpoint-*/run.pt"))[-1:]
    assert torch.load(last, weights_only=True)["steps_taken"] == taken
    metrics, resumed, _ = trained(experiment, tmp_path / "parts")
    assert same(resumed, expected)
    assert metrics["samples_shown"] < 690


def test_minutes_count_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of whatever kind: a minute does not pass in an epoch of four steps of ten seconds."""
    monkeypatch.setattr("raytrain_speedup.engine.lookout.monotonic", slow_clock())
    _, _, diary = trained(tiny(checkpoint_minutes=1), tmp_path)
    assert not any("partial" in report for report in diary.reports)


def test_a_notice_is_a_checkpoint_at_the_next_look_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A reporter that does not leave: the run goes on. A notice of another node is another one."""
    nodes = {3: ("10.0.0.1",), 4: ("10.0.0.1",), 5: ("10.0.0.1",), 10: ("10.0.0.1", "10.0.0.2")}

    class Warned(Diary):
        watches = True

        def notice(self) -> Notice | None:
            told = [names for step, names in nodes.items() if step <= self.steps]
            return Notice(told[-1], 0.0) if told else None

    monkeypatch.setattr("raytrain_speedup.engine.lookout.monotonic", slow_clock())
    diary = Warned(tmp_path / "warned")
    run(tiny(), diary, device=CPU)
    partial = [i for i, report in enumerate(diary.reports) if "partial" in report]
    assert [diary.reports[i]["epoch"] for i in partial] == [0, 2] and diary.steps == 12
    assert same(weights(diary), trained(tiny(), tmp_path / "whole")[1])
    said = [record.getMessage() for record in caplog.records]
    assert "node 10.0.0.1 is taken back by the cloud (notice of 0 s): the checkpoint is" in said[0]
    assert said[1].startswith("nodes 10.0.0.1, 10.0.0.2 are taken back") and len(said) == 2


def test_quick_steps_are_looked_between_every_two_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of .01 s each: after 1, 2, 4 ... and then 200 of them; when they become slow, sooner again."""
    now = [0.0]
    monkeypatch.setattr("raytrain_speedup.engine.lookout.monotonic", lambda: now[0])
    asked: list[int] = []

    class Asked(Diary):
        watches = True

        def notice(self) -> None:
            asked.append(step)

    lookout = Lookout(Asked(tmp_path), None)
    for step in range(1, 1402):
        now[0] += 0.01 if step <= 1000 else 1.0
        lookout.look()
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert gaps[:8] == [2, 4, 8, 16, 32, 64, 128, 200] and set(gaps[7:11]) <= {199, 200}
    assert set(gaps[-50:]) == {2}


def test_workers_that_decode_on_the_fly_do_not_disturb_dropout(tmp_path: Path):
    keys = EVERYTHING | {"data.loader": "workers", "data.num_workers": 1}
    _, expected, _ = trained(tiny(keys), tmp_path / "whole")
    assert same(weights(interrupted(tiny(keys), tmp_path / "parts", 6)[-1]), expected)


def test_the_file_of_weights_it_began_with_may_be_gone(tmp_path: Path):
    _, before, _ = trained(tiny(epochs=1, seed=1), tmp_path / "before")
    file = tmp_path / "before.pt"
    torch.save(before, file)
    experiment = tiny({"model.pretrained": str(file)})
    _, expected, _ = trained(experiment, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(experiment, Diary(tmp_path / "parts", stop_after=5), device=CPU)
    file.unlink()
    assert same(trained(experiment, tmp_path / "parts")[1], expected)
    with pytest.raises(UserError, match=r"model.pretrained: cannot read .*before.pt"):
        run(experiment, Diary(tmp_path / "afresh"), device=CPU)


def test_where_and_how_often_may_change_on_resuming(tmp_path: Path):
    """What decides no number may be another: evaluation, checkpoints, the loader."""
    _, expected, _ = trained(tiny(), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tiny(), Diary(tmp_path / "parts", stop_after=5), device=CPU)
    other = tiny({"data.loader": "workers", "data.num_workers": 0}, eval_every=1, checkpoint_steps=1)
    assert same(trained(other, tmp_path / "parts")[1], expected)


def test_another_experiment_is_refused(tmp_path: Path):
    with pytest.raises(Stopped):
        run(tiny(), Diary(tmp_path, stop_after=2), device=CPU)
    with pytest.raises(UserError, match=r"another experiment: train.lr is 0.2 there and 0.1 here"):
        run(tiny(lr=0.1), Diary(tmp_path), device=CPU)
    with pytest.raises(UserError, match=r"model.name is 'resnet8' there and 'wrn16_1' here"):
        run(tiny({"model.name": "wrn16_1"}), Diary(tmp_path), device=CPU)
    with pytest.raises(UserError, match=r"data is '\w+' there and '\w+' here"):
        run(tiny({"data.val_fraction": 0.83}), Diary(tmp_path), device=CPU)


def test_a_finished_run_only_tells_its_metrics(tmp_path: Path):
    metrics, expected, _ = trained(tiny(), tmp_path)
    again = Diary(tmp_path)
    assert run(tiny(), again, device=CPU) == metrics
    assert again.reports == [metrics]
    assert again.steps == 0
    assert same(weights(again), expected)
    with pytest.raises(UserError, match="finished run of another experiment: train.seed is 0 there"):
        run(tiny(seed=1), Diary(tmp_path), device=CPU)


def test_a_run_that_died_in_the_test_evaluation_ends_as_it_would_have(tmp_path: Path, monkeypatch):
    _, expected, whole = trained(tiny(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("raytrain_speedup.engine.run._final_metrics", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny(), Diary(tmp_path / "parts"), device=CPU)
    _, resumed, parts = trained(tiny(), tmp_path / "parts")
    assert same(resumed, expected)
    assert parts.steps == 0
    assert untimed(parts.reports[-1]) == untimed(whole.reports[-1])


def test_the_processes_own_generator_and_threads_are_left_alone(tmp_path: Path):
    torch.manual_seed(5)
    expected, threads = torch.get_rng_state(), torch.get_num_threads()
    run(tiny(EVERYTHING, epochs=1), Diary(tmp_path), device=CPU)
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.get_num_threads() == threads
