"""An editor's schema takes every file that the package takes, and marks what it would refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from raytrain_speedup import cli
from raytrain_speedup.config import load_experiment, recipes
from raytrain_speedup.schema import experiment_schema, sweep_schema
from raytrain_speedup.tuning.sweep_settings import SweepSettings

SPACES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))


@pytest.fixture(scope="module")
def of_experiments() -> Draft202012Validator:
    return Draft202012Validator(experiment_schema())


@pytest.fixture(scope="module")
def of_sweeps() -> Draft202012Validator:
    return Draft202012Validator(sweep_schema(SweepSettings))


def wrong(validator: Draft202012Validator, content: dict[str, Any]) -> list[str]:
    """Where it is wrong, by the innermost complaints."""
    found: list[str] = []
    todo = list(validator.iter_errors(content))
    while todo:
        error = todo.pop()
        todo += error.context or []
        if not error.context:
            found.append(f"{'.'.join(map(str, error.absolute_path))}: {error.message}")
    return found


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_right(name: str, of_experiments: Draft202012Validator) -> None:
    assert wrong(of_experiments, yaml.safe_load(recipes()[name].read_text())) == []
    assert wrong(of_experiments, load_experiment(name).to_dict()) == [], "with every default written out too"


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_search_spaces_are_right(path: Path, of_sweeps: Draft202012Validator) -> None:
    assert wrong(of_sweeps, yaml.safe_load(path.read_text())) == []


def test_short_forms_are_right(of_experiments: Draft202012Validator, of_sweeps: Draft202012Validator) -> None:
    assert wrong(of_sweeps, {"name": "n", "experiment": "digits", "confirm": 2}) == []
    script = {"name": "n", "trainable": "mine:main", "settings": {"lr": 0.1}}
    assert wrong(of_experiments, script) == []
    own = load_experiment("digits").to_dict() | {"task": {"ignore": []}}
    del own["task"]["ignore"]
    assert wrong(of_experiments, own) == [], "classification, unless a task says otherwise"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": {"epoch": 5}}, "train: Additional properties are not allowed ('epoch' was unexpected)"),
        ({"train": {"epochs": -1}}, "train.epochs: -1 is less than or equal to the minimum of 0"),
        ({"pruning": {"prune_ratio": 0.5}}, "pruning: 'method' is a required property"),
        (
            {"pruning": {"method": "infobatch", "prune_ratio": 1.5}},
            "pruning.prune_ratio: 1.5 is greater than",
        ),
        ({"trainable": "mine:main", "task": {}}, "('task' was unexpected)"),
    ],
)
def test_mistakes_are_marked(
    changed: dict[str, Any], message: str, of_experiments: Draft202012Validator
) -> None:
    content = yaml.safe_load(recipes()["digits"].read_text())
    assert message in "\n".join(wrong(of_experiments, content | changed))


def test_keys_of_a_search_have_their_meanings() -> None:
    schema = sweep_schema(SweepSettings)
    about = schema["properties"]["search"]["properties"]["pruning.prune_ratio"]
    assert about["description"].startswith("[infobatch")
    assert "discriminator" in about or "oneOf" in about or "$ref" in about, "and are distributions"
    keys = schema["$defs"]["KeysOfAnExperiment"]["properties"]
    assert keys["train.lr"]["description"] == "peak learning rate (default: 0.1)"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for arguments, expected in (
        (["experiment", "-o", str(tmp_path / "e.json")], experiment_schema()),
        (["sweep"], sweep_schema(SweepSettings)),
    ):
        monkeypatch.setattr(sys, "argv", ["speedup", "schema", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        printed = capsys.readouterr().out
        text = (tmp_path / "e.json").read_text() if "-o" in arguments else printed
        assert json.loads(text) == json.loads(json.dumps(expected))
