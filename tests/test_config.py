"""Whatever a user writes is an experiment or one clear line per mistake, never another exception."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_speedup.config import (
    Experiment,
    load_experiment,
    load_experiment_dict,
)
from raytrain_speedup.experiment_file import parse_overrides, recipes
from raytrain_speedup.script import load_any
from raytrain_speedup.settings import UserError

INFOBATCH = "pruning.method=infobatch"

MISTAKES = [
    (["train.epoch=5"], "train.epoch: unknown key; did you mean 'epochs'?"),
    (["trian.epochs=5"], "trian: unknown key; did you mean 'train'?"),
    (["task.zzz=5"], "task.zzz: unknown key; known here: kind, label_smoothing"),
    ([INFOBATCH, "pruning.prune_ratio=1.2"], "pruning.prune_ratio: 1.2 is not allowed; expected less than 1"),
    ([INFOBATCH, "pruning.prune_rato=.2"], "pruning.prune_rato: unknown key; did you mean 'prune_ratio'?"),
    ([INFOBATCH, "pruning.infobatch=1"], "pruning.infobatch: unknown key; known here: anneal_from, keep, "),
    (
        ["pruning.method=infobach"],
        "pruning.method: 'infobach' is not allowed; expected one of none, infobatch, random, epochs, "
        "rs2, orderdp, seta, el2n, forgetting, dyn-unc, dq; did you mean 'infobatch'?",
    ),
    (["curriculum.kernel=resize"], "curriculum.method: missing; expected one of none, resize"),
    (
        [INFOBATCH, "pruning.saving=.3", "pruning.prune_ratio=.3"],
        "pruning: prune_ratio (0.3) and saving (0.3)",
    ),
    (["pruning=infobatch"], "pruning: 'infobatch' is not allowed; expected a section of keys and values"),
    (["train=5"], "train: 5 is not allowed; expected a section of keys and values"),
    (["data=null"], "data: None is not allowed; expected a section of keys and values"),
    (["data.source=parquet"], "data.train: missing; expected training data: a .parquet file"),
    (["data.mean=[1, x]"], "data.mean.1: 'x' is not allowed; expected a number"),
    (["train.epochs=abc"], "train.epochs: 'abc' is not allowed; expected a number"),
    (["train.epochs=0"], "train.epochs: 0 is not allowed; expected greater than 0"),
    (["train.batch_size=1.5"], "train.batch_size: 1.5 is not allowed; expected a valid integer"),
    (
        ["scaling.gpus_per_worker=0.5"],
        "scaling.gpus_per_worker: 0.5 is not allowed; expected a whole number: ",
    ),
    (
        ["scaling.strategy=fsdp"],
        "scaling.strategy: 'fsdp' is not allowed; expected 'ddp': models are not sharded (FSDP2, HSDP), each "
        "worker holds weights, gradients and optimizer whole, up to 24 bytes a parameter",
    ),
    (["train.lr=.inf"], "train.lr: inf is not allowed; expected a finite number"),
    (
        ["train.optimizer=adam"],
        "train.optimizer: 'adam' is not allowed; expected 'sgd', 'adamw', 'lamb', 'lars' or",
    ),
    (["train.batch_size=7", "train.accumulate=2"], "train.batch_size: 7 does not split into 1 workers x 2"),
    (["model.name=null"], "model.name: None is not allowed; expected a valid string"),
    (["model.pretrained=3"], "model.pretrained: 3 is not allowed; expected a path"),
    (["model.options={1: 2}"], "model.options.1.[key]: 1 is not allowed; expected a valid string"),
    (["name="], "name: None is not allowed; expected a valid string"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_line_with_key_value_and_what_was_expected(overrides: list[str], message: str):
    with pytest.raises(UserError) as error:
        load_experiment("digits", overrides)
    assert str(error.value).startswith(f"digits: {message}")
    assert error.value.exit_code == 2
    if overrides != ["data.source=parquet"]:  # two keys are missing there
        assert "\n" not in str(error.value)


def test_every_wrong_key_has_a_line():
    with pytest.raises(UserError) as error:
        load_experiment("digits", ["train.epochs=-1", "train.lr=x", "modle.name=resnet8"])
    keys = [line.split(": ")[1] for line in str(error.value).splitlines()]
    assert keys == ["train.epochs", "train.lr", "modle"]


def test_a_long_value_is_not_printed_in_full():
    with pytest.raises(UserError) as error:
        load_experiment("digits", {"train.lr": list(range(1000))})
    assert len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("noequals", "'noequals': expected key=value"),
        ("=3", "'=3': expected key=value"),
        ("train..lr=3", "'train..lr': expected a dotted key"),
        ("train.lr={a: [}", "train.lr: '{a: [}' is not a YAML value"),
        ("name.x=3", "name.x: 'name' is a value, not a section"),
    ],
)
def test_an_override_that_is_none(override: str, message: str):
    with pytest.raises(UserError, match="^" + message.replace("[", r"\[").replace("{", r"\{")):
        load_experiment("digits", [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"not YAML: .* line 1"),
        ("- a\n- b", r"holds a list; expected sections"),
        ("", r"holds nothing; expected sections"),
        (
            "name: x",
            r"data: missing; expected where the samples come from(.|\n)*model: missing; expected the net",
        ),
        ("\0", "not YAML"),
    ],
)
def test_a_file_that_is_no_experiment(text: str, message: str, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_experiment(file)
    assert str(file) in str(error.value)


def test_a_file_or_recipe_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere.yaml: no such file; expected an experiment .*digits"):
        load_experiment(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"mnist: no such recipe; expected a YAML file or one of: .*digits"):
        load_experiment("mnist")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not YAML"):
        load_experiment(tmp_path / "binary.yaml")


SECTION_NAMES = ["name", "data", "model", "train", "pruning", "curriculum", "task", "scaling", "x"]
KEY_NAMES = [
    "source",
    "method",
    "kind",
    "epochs",
    "lr",
    "options",
    "saving",
    "quantiles",
    "mean",
    "infobatch",
]
KEYS = st.sampled_from([*SECTION_NAMES, *KEY_NAMES])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["digits", "infobatch", "none", "parquet", "resnet8", "classification", "", "random"])
    | st.text(max_size=5)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=5),
    max_leaves=15,
)
GOOD: dict[str, Any] = {"name": "x", "data": {"source": "digits"}, "model": {"name": "resnet8"}}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, ANYTHING, max_size=6), st.booleans())
def test_any_data_are_an_experiment_or_a_user_error(content: dict[str, Any], complete: bool):
    try:
        assert isinstance(load_experiment_dict((GOOD if complete else {}) | content), Experiment)
    except UserError as error:
        assert str(error)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=3).map(".".join), ANYTHING), max_size=4))
def test_any_overrides_are_an_experiment_or_a_user_error(overrides: list[tuple[str, Any]]):
    try:
        assert isinstance(load_experiment("digits", dict(overrides)), Experiment)
    except UserError as error:
        assert str(error)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_an_override_or_a_user_error(text: str):
    try:
        parse_overrides([text])
    except UserError as error:
        assert "expected" in str(error) or "is not a YAML value" in str(error)


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_survives_being_written_and_read(name: str, tmp_path: Path):
    experiment = load_experiment(name)
    assert experiment.about
    file = tmp_path / "again.yaml"
    file.write_text(experiment.to_yaml())
    assert load_experiment(file) == experiment
    assert load_experiment_dict(experiment.to_dict()) == experiment
    assert yaml.safe_load(experiment.to_yaml())["name"] == name


def test_overrides_of_text_and_of_data_agree():
    text = load_experiment("digits", ["train.lr=1e-3", INFOBATCH, "pruning.quantiles=[0.1, 0.5]"])
    data = load_experiment(
        "digits", {"train.lr": 0.001, "pruning.method": "infobatch", "pruning.quantiles": [0.1, 0.5]}
    )
    assert text == data
    assert load_experiment("digits").with_overrides({"train.lr": 0.001}).train.lr == 0.001


def test_another_method_starts_its_section_afresh_in_any_order():
    before = load_experiment("digits", [INFOBATCH, "pruning.threshold=quantile", "pruning.prune_ratio=null"])
    after = before.with_overrides(["pruning.prune_ratio=0.3", "pruning.method=random"])
    assert after.pruning.model_dump()["prune_ratio"] == 0.3
    assert not hasattr(after.pruning, "threshold")


def test_overriding_leaves_the_callers_data_alone():
    content = {"model.options": {"depth": 1}}
    load_experiment("digits", content | {"model.options.width": 2})
    assert content == {"model.options": {"depth": 1}}


def test_paths_are_absolute_where_an_experiment_is_shipped():
    experiment = load_experiment("cifar10-resnet8-cpu", {"data.test": "/elsewhere/test.parquet"})
    shipped = experiment.shipped()
    assert shipped["data"]["train"] == str(Path.cwd() / "data/cifar10-train.parquet")
    assert shipped["data"]["test"] == "/elsewhere/test.parquet"
    assert load_experiment_dict(shipped).shipped() == shipped


def test_keys_of_an_earlier_version_are_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    stages = [{"share": 0.5, "ratio": 0.5}, {"share": 0.5}]
    old = load_experiment(
        "digits",
        {"data.val_share": 0.25, "data.max_corrupt_share": 0.5, "curriculum.method": "custom"}
        | {"curriculum.schedule": stages},
    )
    assert (old.data.val_fraction, old.data.max_corrupt_fraction) == (0.25, 0.5)
    assert [stage.fraction for stage in old.curriculum.schedule] == [0.5, 0.5]  # type: ignore[attr-defined]
    assert "val_share is called val_fraction now" in caplog.text
    assert "share" not in old.to_yaml().replace("shared", "")


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes it meanwhile does not get half of each."""
    path, read, text = tmp_path / "mine.yaml", [], Path.read_text

    def noted(self: Path, *args: Any, **named: Any) -> str:
        read.append(self)
        return text(self, *args, **named)

    path.write_text("name: mine\ndata: {source: digits}\nmodel: {name: resnet8}\n")
    monkeypatch.setattr(Path, "read_text", noted)
    for load in (load_any, load_experiment):
        read.clear()
        assert load(path).name == "mine" and read.count(path) == 1
