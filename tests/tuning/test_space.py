"""The search-space file: every mistake is found before anything runs, and named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raytrain_speedup.config import load_experiment
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.classification import Classification
from raytrain_speedup.tuning.space import MAY_DIFFER_ON_RESUME, Sweep, load_sweep
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED

ROOT = Path(__file__).parents[2]
GOOD = {
    "name": "s",
    "experiment": "digits",
    "trial": {"pruning.method": "infobatch"},
    "search": {"pruning.prune_ratio": {"type": "float", "low": 0.1, "high": 0.9}},
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def first_draw(sweep: Sweep) -> dict[str, object]:
    """The first end of every entry."""
    search = sweep.settings.search.items()
    return {name: entry.ends()[0] for key, entry in search for name in entry.numbers(key)}


@pytest.mark.parametrize("file", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda file: file.stem)
def test_those_in_the_repository_are_valid(file: Path) -> None:
    sweep = load_sweep(file)
    assert sweep.settings.about
    lowest, _ = sweep.meant(
        {name: 0.0 if "#" in name else entry for name, entry in first_draw(sweep).items()}
    )
    assert sweep.trial(lowest, seed=1)


def test_defaults_and_replacements(tmp_path: Path) -> None:
    sweep = load_sweep(written(tmp_path), {"train.epochs": 7}, trials=3, seed=None)
    assert sweep.base.train.epochs == 7 and sweep.settings.trials == 3
    assert SEARCH_SEED not in sweep.settings.seeds
    chosen = sweep.trial({"pruning.prune_ratio": 0.3}, seed=5)
    assert chosen.pruning.method == "infobatch" and chosen.train.seed == 5 and chosen.train.epochs == 7
    assert sweep.base.pruning.method == "infobatch"  # as the recipe says


def test_the_objectives_follow_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_sweep(written(tmp_path)).settings.objectives == {"val_accuracy": "max", "train_flops": "min"}
    monkeypatch.setattr(Classification, "metric", "miou")
    assert load_sweep(written(tmp_path)).settings.objectives == {"val_miou": "max", "train_flops": "min"}
    search = {"distillation.lr_g": {"type": "float", "low": 0.001, "high": 0.01}}
    without = written(tmp_path, experiment="digits-dfkd", trial={}, search=search)
    assert load_sweep(without).settings.objectives == {"val_agreement": "max", "train_seconds": "min"}
    asked = written(tmp_path, objectives={"val_loss": "min"})
    assert load_sweep(asked).settings.objectives == {"val_loss": "min"}


def test_a_sweep_keeps_something_back_to_tune_by(tmp_path: Path) -> None:
    """Recipes of published results train on all of the training data; every run of a sweep on as much."""
    published = {"experiment": "cifar10-resnet18", "controls": {"fewer": {"train.epochs": 100}}}
    sweep = load_sweep(written(tmp_path, **published))
    assert load_experiment("cifar10-resnet18").data.val_fraction == 0
    runs = [
        sweep.base,
        sweep.trial({"pruning.prune_ratio": 0.3}, seed=5),
        *(sweep.experiment(keys, 0) for keys in (sweep.settings.baseline, sweep.settings.controls["fewer"])),
    ]
    assert [run.data.val_fraction for run in runs] == [0.1] * 4
    smaller = load_sweep(written(tmp_path, **published, val_fraction=0.02))
    assert smaller.base.data.val_fraction == 0.02
    assert (
        load_sweep(written(tmp_path, **published), {"data.val_fraction": 0.3}).base.data.val_fraction == 0.3
    )
    assert load_sweep(written(tmp_path)).base.data.val_fraction == 0.2  # as the recipe digits says
    with pytest.raises(UserError, match=r"val_fraction: 0 is not allowed; expected greater than 0"):
        load_sweep(written(tmp_path, val_fraction=0))


def test_a_student_without_data_keeps_none_back(tmp_path: Path) -> None:
    search = {"distillation.lr_g": {"type": "float", "low": 0.001, "high": 0.01}}
    without = written(tmp_path, experiment="cifar10-wrn40_2-wrn16_1", trial={}, search=search)
    assert load_sweep(without).base.data.val_fraction == 0


def test_an_experiment_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text((ROOT / "raytrain_speedup/recipes/digits.yaml").read_text())
    assert load_sweep(written(tmp_path, experiment="mine.yaml")).base.name == "digits"


def test_what_is_asked_decides_what_is_resumed(tmp_path: Path) -> None:
    key = load_sweep(written(tmp_path)).key
    asked = load_sweep(written(tmp_path)).settings
    other = {
        "about": "x", "concurrency": 3, "trials": 99, "points_to_evaluate": [{"pruning.prune_ratio": 0.4}],
        "seeds": [0, 1, 2, 3], "confirm": {"until": "seeds", "max_seeds": 20}, "budget": {"hours": 3.0},
    }  # fmt: skip
    assert set(other) == {name.partition(".")[0] for name in MAY_DIFFER_ON_RESUME}
    assert load_sweep(written(tmp_path, **other)).key == key, "more of it is the same question"
    question = {
        "name": "t", "trial": {}, "seed": 1, "baselines": 5, "margin": 9.0, "val_fraction": 0.3,
        "sampler": "random",
        "objectives": {"val_loss": "min"},
        "search": {"pruning.prune_ratio": {"type": "float", "low": 0.1, "high": 0.2}},
        "objective": "pareto", "proxy": {"train.epochs": 2},
        "scheduler": {"method": "asha"}, "baseline": {}, "controls": {"x": {"pruning.method": "random"}},
    }  # fmt: skip
    for name, value in question.items():
        assert load_sweep(written(tmp_path, **{name: value})).key != key, name
    in_base = {"experiment", "overrides", "trainable", "settings"}
    assert {*other, *question} | in_base == set(type(asked).model_fields), "all are tried"
    assert load_sweep(written(tmp_path), {"train.epochs": 3}).key != key


def test_seeds_that_are_added_later_are_not_the_searchs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seeds\.\d: 1000003 is not allowed"):
        load_sweep(written(tmp_path, seeds=[0, SEARCH_SEED]))


def entry(**fields: object) -> dict[str, object]:
    return {"search": {"pruning.prune_ratio": fields}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tirals": 3}, "tirals: unknown key; did you mean 'trials'?"),
        ({"trials": -1}, "trials: -1 is not allowed; expected greater than or equal to 0"),
        ({"search": {}}, "search: "),
        ({"search": [1]}, "search: [1] is not allowed; expected experiment keys"),
        (entry(type="float", low=0.1), "search: pruning.prune_ratio: high: missing"),
        (entry(type="normal", low=0.1), "search: pruning.prune_ratio: "),
        (entry(type="float", low=0.9, high=0.1), "search: pruning.prune_ratio: "),
        (entry(type="float", low=0.0, high=0.9, log=True), "search: pruning.prune_ratio: "),
        (entry(type="float", low=0.5, high=0.5), "search: pruning.prune_ratio: "),
        (entry(type="float", low=0.1, high=1.2), "search: digits: pruning.prune_ratio: 1.2 is not allowed"),
        (entry(type="categorical", choices=["a", "b"]), "search: digits: pruning.prune_ratio: 'a' is not"),
        (
            {"search": {"pruning.prune_ration": {"type": "float", "low": 0.1, "high": 0.2}}},
            "pruning.prune_ration: unknown key; did you mean 'prune_ratio'?",
        ),
        ({"search": {"train.seed": {"type": "int", "low": 0, "high": 9}}}, "'train.seed' is not searched"),
        ({"points_to_evaluate": [{"pruning.saving": 0.1}]}, "'pruning.saving' is not searched"),
        ({"points_to_evaluate": [{"pruning.prune_ratio": 1.5}]}, "points_to_evaluate: digits: pruning"),
        ({"baseline": {"pruning.method": "off"}}, "baseline: digits: pruning"),
        ({"controls": {"mine": {"pruning.method": "off"}}}, "controls.mine: digits: pruning"),
        ({"controls": {"winner": {"pruning.method": "none"}}}, "controls: 'baseline', 'trial' and 'winner'"),
        ({"overrides": {"train": {"epochs": 3}}}, "overrides: 'train' holds a section; expected dotted keys"),
        ({"overrides": {"train.epoch": 3}}, "experiment: digits: train.epoch: unknown key"),
        ({"experiment": "digit"}, "experiment: digit: no such recipe"),
        ({"objectives": {"val_accuracy": "up"}}, "objectives"),
        (
            {"objectives": {"val_miou": "max"}},
            "objectives: no run has a metric 'val_miou' to be tuned by; expected",
        ),
        ({"objectives": {"val_loss": "max"}}, "val_loss: 'max' is not allowed; expected 'min'"),
        ({"objectives": {"accuracy": "max"}}, "objectives: no run has a metric 'accuracy' to be tuned by"),
        ({"seeds": [0, 1, 1]}, "seeds: [0, 1, 1] is not allowed; expected every seed once"),
        (
            {"objective": "pareto", "sampler": "frontier"},
            "sampler: frontier is not allowed; expected another one for objective: pareto",
        ),
        (
            {"objective": "pareto", "scheduler": {"method": "bound"}},
            "scheduler.method: bound is not allowed; expected asha or none for pareto",
        ),
        (
            {"objective": "cheapest-lossless", "objectives": {"val_loss": "min"}},
            "objective: cheapest-lossless is not allowed with 1 objectives; expected a quality and a cost",
        ),
        (
            {"budget": {"gpu_hours": 3}},
            "budget.gpu_hours: 3 is never spent; expected scaling.gpus_per_worker above 0",
        ),
        (
            {
                "overrides": {"train.epochs": 1},
                "controls": {"random": {"pruning.method": "random", "pruning.saving": 0.3}},
            },
            "controls.random: pruning.saving: 0.3 is out of reach; expected at most 0.0",
        ),
        (
            {"budget": {"patience": 0}},
            "budget.patience: 0 is not allowed; expected greater than or equal to 1",
        ),
        ({"proxy": {"train.epoch": 3}}, "proxy: digits: train.epoch: unknown key"),
        (
            entry(type="float", low=0.1, high=0.9, when={"curriculum.method": "resize"}),
            "search.pruning.prune_ratio.when: 'curriculum.method' is not searched above it",
        ),
        (
            {"search": {"curriculum.schedule[].fraction": {"type": "simplex", "parts": 3, "low": 0.4}}},
            "low: 0.4 is not allowed; expected less than 1 / parts",
        ),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as found:
        load_sweep(written(tmp_path, **changes))
    assert str(found.value).startswith(str(tmp_path / "space.yaml"))
    assert message in str(found.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.yaml: cannot be read"):
        load_sweep(tmp_path / "nothing.yaml")


def test_defaults_follow_the_objective(tmp_path: Path) -> None:
    def chosen(**changes: object) -> tuple[str, str, str, int | None]:
        settings = load_sweep(written(tmp_path, **changes)).settings
        return settings.objective, settings.sampler, settings.scheduler.method, settings.budget.patience

    assert chosen() == ("cheapest-lossless", "frontier", "bound", 6)
    assert chosen(objective="pareto") == ("pareto", "tpe", "none", None)
    assert chosen(objectives={"val_loss": "min"}) == ("pareto", "tpe", "none", None), "one is no trade"
    others = {"sampler": "tpe", "scheduler": {"method": "asha"}, "budget": {"hours": 1}}
    assert chosen(**others) == ("cheapest-lossless", "tpe", "asha", None)
