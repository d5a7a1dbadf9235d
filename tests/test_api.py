"""The commands as functions: objects in place of names, and what works in this process alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raytrain_speedup import sweep, train
from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.identity import comparison_keys, identity
from raytrain_speedup.methods.pruning import FewerEpochsSettings
from raytrain_speedup.models import ModelSettings, build_model
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.classification import Classification
from raytrain_speedup.user_code import imported, named


class Spots(torch.utils.data.Dataset):
    targets = np.arange(60) % 2

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int):
        return np.full((8, 8), 200 * self.targets[index], dtype=np.uint8), int(self.targets[index])


def small(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


KEYS = {
    "data.mean": [0.4],
    "data.std": [0.4],
    "data.augment": "none",
    "train.epochs": 2,
    "train.batch_size": 10,
}
DATA = {"train": Spots(), "test": Spots()}


def test_objects_train_and_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    heard = []
    result = train(
        model=lambda num_classes: small(num_classes),
        data=DATA,
        task=Classification(label_smoothing=0.1),
        pruning=FewerEpochsSettings(saving=0.9),
        overrides=KEYS | {"pruning.saving": 0.25},
        listener=lambda kind, metrics: heard.append(kind),
    )
    assert result.metrics["passes_saved"] == pytest.approx(0.25), "keys overrule objects"
    assert "report" in heard
    assert result.model is not None
    weights = torch.load(result.model, weights_only=True)
    assert weights.keys() == small(2).state_dict().keys()


def test_a_network_is_copied_for_every_run() -> None:
    network = small(2)
    built = build_model(ModelSettings(name=named(network)), num_classes=2, in_channels=1, image_size=8)
    assert built is not network
    assert torch.equal(built[1].weight, network[1].weight)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda num_classes: nn.Flatten(), "it gives outputs of shape (64,), not 2 logits for an image"),
        (lambda num_classes: 5, "gives a int; expected a torch.nn.Module"),
        (lambda num_classes: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: small(2), "takes no argument 'num_classes'"),
        (lambda num_classes, depth: small(2), "needs 'depth', which is not given"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(model, said: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(ModelSettings(name=named(model)), num_classes=2, in_channels=1, image_size=8)
    assert said in str(error.value) and str(error.value).startswith("model.")
    assert "\n" not in str(error.value)


def test_what_only_this_process_knows_is_refused_elsewhere(tmp_path: Path) -> None:
    said = "^model: this object works in this process alone, and "
    with pytest.raises(UserError, match=said + "sweep"):
        sweep(tmp_path / "space.yaml", model=lambda num_classes: small(2))
    with pytest.raises(UserError, match=said + "scaling.workers: 2 workers"):
        train(model=lambda num_classes: small(2), data=DATA, overrides={**KEYS, "scaling.workers": 2})
    with pytest.raises(
        UserError, match=r"^model.name: 'this_process:gone-1' was an object of another process"
    ):
        imported("this_process:gone-1", "model.name")


def test_other_processes_are_told_where_modules_are() -> None:
    """Beside the module, above a package; what is installed they find by themselves."""
    from raytrain_speedup.api import _Objects

    assert _Objects(model=small).keys["python_path"] == [str(Path(__file__).parent)]
    assert "python_path" not in _Objects(model=torch.nn.Linear).keys


def test_functions_of_modules_go_by_their_path() -> None:
    assert named(small) == f"{__name__}:small"
    assert imported(named(small), "model.name") is small
    other = lambda num_classes: small(2)  # noqa: E731
    assert named(other) == named(other) != named(lambda num_classes: small(2))


def test_other_options_are_another_problem() -> None:
    """Of the data, the model and the task; what a method is set to is not."""
    base = load_experiment(
        {"name": "mine"},
        {
            "model.name": named(small),
            "data.source": "python",
            "data.dataset": f"{__name__}:make",
            "data.mean": [0.5],
        },
    )

    def key(**sections: dict) -> str:
        changed = base.model_copy(
            update={name: getattr(base, name).model_copy(update=new) for name, new in sections.items()}
        )
        return comparison_keys(identity(changed, "same"), 1)["baseline_key"]

    assert key() == key(train={"seed": 5})
    keys = {
        key(),
        key(model={"options": {"a": 1}}),
        key(data={"options": {"a": 1}}),
        key(data={"dataset": "a:b"}),
    }
    assert len(keys) == 4


def make(split: str, a: int = 0) -> Spots:
    return Spots()


def test_importing_the_package_takes_neither_torch_nor_ray() -> None:
    program = (
        "import sys, raytrain_speedup; heavy = {'torch', 'ray', 'mlflow', 'pydantic'} & set(sys.modules)\n"
        "from raytrain_speedup import train, sweep, leaderboard, load_schedule\n"
        "print(heavy, {'ray', 'mlflow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set() set()"
