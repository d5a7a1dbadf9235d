"""Runs of a training script without Ray: what it is given, what is measured, what it may not say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_speedup.engine.compare import NotComparable, compare
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.script_run import Run, run_script
from raytrain_speedup.methods.pruning import InfoBatch
from raytrain_speedup.script import ScriptExperiment, load_any, load_any_dict, load_script
from raytrain_speedup.settings import RunFailed, UserError

HERE = "test_script_run"
calls: dict[str, Callable[[Run], Any]] = {}


def main(run: Run) -> Any:
    return calls["main"](run)


def two_arguments(run: Run, more: int) -> None: ...


NUMBER = 3


def script(trainable: str = f"{HERE}:main", **keys: Any) -> ScriptExperiment:
    content = {"name": "mine", "trainable": trainable, "settings": {"lr": 0.1, "net": {"width": 8}}}
    dotted = {key.replace("__", "."): value for key, value in keys.items()}
    return load_script(content, dotted, folder=Path(__file__).parent, where="mine.yaml")


def go(
    body: Callable[[Run], Any], folder: Path, *, test: bool = True, stop: bool = False, **keys: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run `body` as a script; gives the final metrics and all reports."""
    calls["main"], reports = body, []
    reporter = LocalReporter(folder, lambda kind, metrics: reports.append(dict(metrics)))
    reporter.stop_requested = stop
    return run_script(script(**keys), reporter, test=test).to_dict(), reports


def quick(run: Run) -> dict[str, float]:
    with run.training():
        time.sleep(0.01)
    return {"val_accuracy": 90.0, "test_accuracy": 91.0}


def test_what_a_script_is_given(tmp_path: Path) -> None:
    def body(run: Run) -> Any:
        assert run.settings == {"lr": 0.2, "net": {"width": 8}}
        assert (run.epochs, run.seed, run.rank, run.world, run.test) == (4, 3, 0, 1, True)
        assert run.device == torch.device("cpu") and run.resumed_from is None
        drawn.append(torch.rand(1).item())
        pruner, expected = run.pruner(50), InfoBatch(50, 4, prune_ratio=0.4, seed=3)
        for epoch in range(run.epochs):
            plan, other = pruner.plan(epoch), expected.plan(epoch)
            assert plan.indices.equal(other.indices) and plan.weights.equal(other.weights)
            shown.append(plan.kept)
            for one in (pruner, expected):
                one.observe(plan.indices, plan.indices.float())
                one.exchange()
        return quick(run)

    drawn: list[float] = []
    shown: list[int] = []
    keys = {"settings__lr": 0.2, "train__epochs": 4, "train__seed": 3, "train__device": "cpu"}
    pruning = {"pruning__method": "infobatch", "pruning__prune_ratio": 0.4}
    metrics, _ = go(body, tmp_path, **keys, **pruning)
    assert min(shown) < 50 and metrics["samples_shown"] == sum(shown)
    assert metrics["passes_saved"] == pytest.approx(1 - sum(shown) / 200)
    torch.manual_seed(3)
    assert drawn == [torch.rand(1).item()]
    assert metrics["accuracy"] == 91.0 and metrics["val_accuracy"] == 90.0 and metrics["seed"] == 3


def test_a_curriculum_s_budget(tmp_path: Path) -> None:
    def body(run: Run) -> Any:
        budget = run.budget(100, 64, stride=4)
        pruner = run.pruner(100)
        assert len(pruner.epoch_ends) == len(budget.epoch_ends()) > 10
        for epoch in range(len(budget.epoch_ends())):
            pruner.plan(epoch)
        return quick(run)

    metrics, _ = go(body, tmp_path, curriculum__method="efficienttrain")
    assert metrics["passes_saved"] == pytest.approx(0, abs=0.01), "nothing was pruned"
    assert metrics["samples_shown"] > 1000


def test_only_the_training_is_timed(tmp_path: Path) -> None:
    def body(run: Run) -> Any:
        time.sleep(0.3)
        for _ in range(2):
            with run.training():
                time.sleep(0.1)
            time.sleep(0.2)
        run.finish(val_accuracy=90, test_accuracy=91)

    metrics, _ = go(body, tmp_path)
    assert 0.2 <= metrics["train_seconds"] < 0.45
    assert metrics["wall_seconds"] >= 0.9


def test_the_cost_in_reference_steps(tmp_path: Path) -> None:
    """Work of 40 steps costs about 40, whatever the machine; without a step there is no such cost."""
    a = torch.randn(160, 160)

    def step() -> None:
        for _ in range(20):
            torch.rand(1)
            torch.mm(a, a)

    def body(run: Run) -> Any:
        run.reference(step, batch_size=8)
        before = torch.get_rng_state()
        for number in range(10):
            with run.training():
                for _ in range(4):
                    for _ in range(20):
                        torch.mm(a, a)
                        torch.ones(1)
            run.report(progress=(number + 1) / 10, val_accuracy=90.0)
        assert torch.get_rng_state().equal(before), "the reference step draws, and the script does not notice"
        run.finish(test_accuracy=91.0)

    metrics, reports = go(body, tmp_path)
    assert metrics["reference_batch"] == 8
    assert 20 < metrics["reference_steps"] < 80
    steps = [report["reference_steps"] for report in reports]
    assert steps == sorted(steps)
    assert "reference_steps" not in go(quick, tmp_path)[0]


def test_a_search_does_not_see_the_test_split(tmp_path: Path) -> None:
    metrics, _ = go(quick, tmp_path, test=False)
    assert "accuracy" not in metrics and not [name for name in metrics if name.startswith("test_")]


def test_the_last_validation_counts(tmp_path: Path) -> None:
    def body(run: Run) -> Any:
        with run.training():
            time.sleep(0.01)
        run.report(progress=0.5, val_accuracy=80, val_loss=2.0)
        run.report(progress=1, val_accuracy=torch.tensor(85.0), train_loss=0.1)
        run.finish(test_accuracy=84, test_samples=297)

    metrics, reports = go(body, tmp_path)
    assert (metrics["val_accuracy"], metrics["val_loss"], metrics["test_samples"]) == (85, 2.0, 297)
    assert [(report["epoch"], report["progress"]) for report in reports] == [(1, 0.5), (2, 1.0), (2, 1.0)]
    assert [report.get("final", False) for report in reports] == [False, False, True]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (lambda run: run.report(progress=0.5, accuracy=9), "run.report: accuracy: unknown name"),
        (lambda run: run.report(progress=0.5, test_accuracy=9), "run.report: test_accuracy: unknown name"),
        (lambda run: run.report(progress=0.5, train_seconds=9), "run.report: train_seconds is measured"),
        (lambda run: run.report(progress=2), "run.report: progress: 2 is not allowed after 0"),
        (lambda run: run.report(progress=float("nan")), "run.report: progress: nan is not allowed"),
        (
            lambda run: run.report(progress=1, val_loss=float("nan")),
            "run.report: val_loss: nan is not allowed",
        ),
        (lambda run: run.report(progress=1, val_loss="low"), "run.report: val_loss: 'low' is no number"),
        (lambda run: run.finish(test_acuracy=9), "run.finish: test_accuracy is missing; .* 'test_acuracy'"),
        (
            lambda run: run.finish(test_accuracy=0.98),
            "run.finish: test_accuracy: 0.98 seems to be a fraction",
        ),
        (lambda run: run.finish(test_accuracy=98), "run.finish: no training was measured"),
        (lambda run: {**quick(run), "val_loss": float("inf")}, "run.finish: val_loss: inf is not allowed"),
        (lambda run: None, "returned NoneType and did not finish"),
        (lambda run: 0.98, "returned float and did not finish"),
        (lambda run: (run.pruner(9), run.pruner(9)), "run.pruner: called twice"),
        (lambda run: (run.pruner(9), run.budget(9, 32)), "run.budget: called after run.pruner"),
        (lambda run: (run.pruner(9), quick(run))[1], "pruning.method: 'none' was not followed"),
        (lambda run: (run.finish(**quick(run)), run.report(progress=1)), "run.report: the run has finished"),
        (lambda run: (run.finish(**quick(run)), quick(run))[1], "run.finish: called twice"),
    ],
)
def test_what_a_script_may_not_say(body: Callable[[Run], Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as error:
        go(body, tmp_path)
    assert "\n" not in str(error.value)


def test_a_metric_of_which_less_is_better(tmp_path: Path) -> None:
    """It is written down with its direction; the loss of the test split by a name that no training loss has."""

    def body(run: Run) -> Any:
        return quick(run) | {"val_loss": 0.5, "test_loss": 0.25}

    metrics, reports = go(body, tmp_path / "loss", metric="loss", direction="min")
    assert (metrics["metric"], metrics["direction"]) == ("loss", "min") and reports[-1] == metrics
    found = FinalMetrics.from_dict(metrics)
    assert (found.of("test"), found.of("validation")) == (0.25, 0.5) and "loss" not in metrics
    named, _ = go(lambda run: quick(run) | {"val_f1": 1.0, "test_f1": 2.0}, tmp_path / "f1", metric="f1")
    assert (named["f1"], named["direction"]) == (2.0, "max")


@pytest.mark.parametrize("method", ["pruning.method=infobatch", "curriculum.method=resize"])
def test_a_method_that_is_not_followed(method: str, tmp_path: Path) -> None:
    key, _, value = method.partition("=")
    with pytest.raises(UserError, match=f"^{key}: '{value}' was not followed"):
        go(quick, tmp_path, **{key.replace(".", "__"): value})


def test_a_script_that_raises_says_where(tmp_path: Path) -> None:
    def body(run: Run) -> None:
        raise KeyError("lrr")

    with pytest.raises(
        RunFailed, match=rf"^trainable: {HERE}:main failed: KeyError: 'lrr' \(.*, line \d+\)$"
    ):
        go(body, tmp_path)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"trainable": "no_such_module:main"}, "trainable: there is no module 'no_such_module'"),
        ({"trainable": f"{HERE}:mian"}, f"trainable: {HERE} has no 'mian'; did you mean 'main'"),
        ({"trainable": f"{HERE}:NUMBER"}, f"trainable: {HERE}:NUMBER is a int; expected a function"),
        ({"trainable": f"{HERE}:two_arguments"}, "expected a function of one argument, def main.run.$"),
        ({"trainable": "main"}, "trainable: 'main' is not an import path"),
        ({"settings__lrr": 1}, "^settings.lrr: unknown key; did you mean 'settings.lr'"),
        ({"settings__net.depth": 1}, "^settings.net.depth: unknown key"),
        ({"train__lr": 1}, "train.lr: unknown key; known here: device, epochs, seed, threads"),
        ({"train__epochs": 1.5}, "train.epochs: 1.5 is not allowed"),
        ({"varies": ["width"]}, "varies: width: unknown key; .*net.width"),
        ({"metric": "Top-1"}, "metric: 'Top-1' is not allowed"),
    ],
)
def test_what_an_experiment_may_not_say(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        script(**keys)
    assert "\n" not in str(error.value)


def test_which_runs_are_compared(tmp_path: Path) -> None:
    def of(**keys: Any) -> dict[str, Any]:
        return go(quick, tmp_path / str(len(runs)), **keys)[0]

    runs: list[dict[str, Any]] = []
    runs += [of()]
    runs += [of(train__seed=1), of(settings__lr=0.3, varies=["lr"]), of(varies=["lr"])]
    assert runs[0]["baseline_key"] == runs[1]["baseline_key"] and runs[0]["train_key"] == runs[1]["train_key"]
    assert runs[2]["baseline_key"] == runs[3]["baseline_key"], "a setting that is said to vary"
    different = [
        of(settings__lr=0.3),
        of(data__source="cifar10"),
        of(model__name="mlp"),
        of(settings__net__width=9),
    ]
    assert len({run["baseline_key"] for run in [runs[0], *different]}) == 5
    first = FinalMetrics.from_dict(runs[0])
    with pytest.raises(NotComparable, match="task, data and model"):
        compare([first], [FinalMetrics.from_dict(different[0])])
    assert compare([first], [FinalMetrics.from_dict(runs[1])]).speedup.clock == "wall seconds"
    with pytest.raises(NotComparable, match=f"set-up: {HERE}:main, code "):
        compare([first], [replace(first, setup=f"{HERE}:main, code 123")])


def test_an_edited_script_is_another(tmp_path: Path) -> None:
    experiment = script().model_copy(update={"code": "0123456789ab"})
    with pytest.raises(UserError, match=r"is not what it was \(code [0-9a-f]{12}\); expected 0123456789ab"):
        run_script(experiment, LocalReporter(tmp_path))


def test_a_run_goes_on_from_its_own_files(tmp_path: Path) -> None:
    """Interrupted after the second of four epochs: the files, the cost and the passes are those of the whole."""

    def body(run: Run) -> Any:
        run.reference(lambda: torch.ones(100).sum())
        pruner, first = run.pruner(30), 0
        if run.resumed_from is not None:
            state = torch.load(run.resumed_from / "mine.pt")
            pruner.load_state_dict(state["pruner"])
            first = state["epoch"]
        begun.append(first)
        for epoch in range(first, 4):
            with run.training():
                time.sleep(0.05)
                pruner.plan(epoch)
                drawn[epoch] = torch.rand(1).item()
            state = {"epoch": epoch + 1, "pruner": pruner.state_dict()}
            torch.save(state, run.checkpoint_dir / "mine.pt")
            run.report(progress=(epoch + 1) / 4, val_accuracy=90)
            if epoch == 1 and first == 0:
                raise ArithmeticError("lost")
        run.finish(test_accuracy=91)

    begun: list[int] = []
    drawn: dict[int, float] = {}
    keys = {"train__epochs": 4, "pruning__method": "random", "pruning__prune_ratio": 0.5}
    with pytest.raises(RunFailed, match="ArithmeticError: lost"):
        go(body, tmp_path, **keys)
    metrics, reports = go(body, tmp_path, **keys)
    torch.manual_seed(0)
    assert [drawn[epoch] for epoch in range(4)] == torch.rand(4).tolist(), "as if nothing had happened"
    assert begun == [0, 2] and [report["epoch"] for report in reports] == [3, 4, 4]
    assert metrics["train_seconds"] >= 0.2, "the first two epochs are paid for"
    assert metrics["samples_shown"] == 30 + 15 * 2 + 30 and metrics["reference_steps"] > 0
    assert metrics["passes_saved"] == pytest.approx(0.25)
    with pytest.raises(UserError, match=r"is a checkpoint of another experiment: settings.lr is 0.1 there"):
        go(body, tmp_path, settings__lr=0.3, **keys)


def test_ctrl_c_stops_at_the_next_report(tmp_path: Path) -> None:
    def body(run: Run) -> None:
        run.report(progress=0.4)
        raise AssertionError("not reached")

    with pytest.raises(Stopped, match="stopped at 40% of mine"):
        go(body, tmp_path, stop=True)


def test_plain_data_and_back(tmp_path: Path) -> None:
    experiment = script(pruning__method="infobatch")
    assert load_any_dict(experiment.to_dict()) == experiment
    assert json.loads(json.dumps(experiment.shipped()))["code"] == experiment.code != ""
    file = tmp_path / "mine.yaml"
    file.write_text(experiment.to_yaml())
    assert load_any(file) == experiment
    assert load_any("digits").name == "digits"
