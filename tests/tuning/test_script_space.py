"""Search-space files of training scripts: what they may say, and which sweep they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain_speedup.script import ScriptExperiment
from raytrain_speedup.settings import UserError
from raytrain_speedup.tuning.space import Sweep, load_sweep

FILE: dict[str, Any] = {
    "name": "mine",
    "trainable": "space_script:main",
    "settings": {"lr": 0.1, "width": 8, "depth": 2, "loss": "mse"},
    "trial": {"settings.loss": "ce"},
    "search": {"settings.lr": {"type": "float", "low": 0.1, "high": 0.4}},
    "baseline": {"pruning.method": "none", "settings.depth": 1},
    "trials": 1,
}


def load(folder: Path, **keys: Any) -> Sweep:
    (folder / "space_script.py").write_text("def main(run): ...\n")
    file = folder / "mine.yaml"
    file.write_text(
        yaml.safe_dump({key: value for key, value in {**FILE, **keys}.items() if value is not None})
    )
    return load_sweep(file)


def test_what_a_sweep_varies_may_differ(tmp_path: Path) -> None:
    sweep = load(tmp_path, controls={"none": {"pruning.method": "none"}})
    assert isinstance(sweep.base, ScriptExperiment) and sweep.base.varies == ("depth", "loss", "lr")
    trial = sweep.trial({"settings.lr": 0.3}, 7)
    assert isinstance(trial, ScriptExperiment) and trial.train.seed == 7
    assert trial.settings == {"lr": 0.3, "width": 8, "depth": 2, "loss": "ce"}
    assert sweep.settings.objectives == {"val_accuracy": "max", "train_seconds": "min"}


def test_an_experiment_file_of_a_script(tmp_path: Path) -> None:
    content = {"name": "own", "trainable": "space_script:main", "settings": FILE["settings"], "metric": "f1"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    sweep = load(
        tmp_path, trainable=None, settings=None, experiment="own.yaml", overrides={"train.epochs": 3}
    )
    assert isinstance(sweep.base, ScriptExperiment) and (sweep.base.name, sweep.base.train.epochs) == (
        "own",
        3,
    )
    assert list(sweep.settings.objectives) == ["val_f1", "train_seconds"]


def test_less_may_be_better(tmp_path: Path) -> None:
    """The direction belongs to the metric, and the search follows it."""
    sweep = load(tmp_path, overrides={"metric": "perplexity", "direction": "min"})
    assert sweep.settings.objectives == {"val_perplexity": "min", "train_seconds": "min"}
    wrong = {"val_perplexity": "max", "train_seconds": "min"}
    line = "objectives: val_perplexity: 'max' is not allowed; expected 'min', by which it is better$"
    with pytest.raises(UserError, match=line):
        load(tmp_path, overrides={"metric": "perplexity", "direction": "min"}, objectives=wrong)


def test_which_sweep_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = load(tmp_path).key
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(tmp_path, trials=5).key == key, "from another directory"
    assert load(tmp_path, settings={**FILE["settings"], "width": 9}).key != key
    assert load(tmp_path, overrides={"data.source": "cifar10"}).key != key


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"experiment": "digits"}, "experiment: expected either this or trainable"),
        ({"trainable": None, "settings": None}, "experiment: expected either this or trainable"),
        ({"trainable": None, "experiment": "digits"}, "settings: are those of a script"),
        ({"trainable": "space_script:mian"}, "trainable: space_script has no 'mian'; did you mean 'main'"),
        (
            {"trial": {"settings.los": "ce"}},
            "search: settings.los: unknown key; did you mean 'settings.loss'",
        ),
        ({"baseline": {"settings.dept": 1}}, "baseline: settings.dept: unknown key"),
        ({"overrides": {"train.lr": 1}}, "train.lr: unknown key"),
        ({"objectives": {"test_accuracy": "max"}}, "objectives: no run has a metric 'test_accuracy'"),
    ],
)
def test_what_a_file_may_not_say(keys: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as error:
        load(tmp_path, **keys)
    assert "\n" not in str(error.value)
