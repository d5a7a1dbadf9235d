"""The last metrics of a run are of the split they name: each counted by hand, with the weights that were kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_runs import CPU, Diary, run, tiny, weights
from test_unreadable import experiment, write_images

from raytrain_speedup.data import Source, open_data
from raytrain_speedup.engine import run as engine_run
from raytrain_speedup.engine.final_metrics import FinalMetrics, is_final
from raytrain_speedup.metric import Metric
from raytrain_speedup.models import build_model


@torch.no_grad()
def by_hand(model: torch.nn.Module, source: Source, mean: tuple[float, ...], std: tuple[float, ...]) -> float:
    """Accuracy in percent, image by image."""
    right = 0
    for index in range(len(source)):
        image = torch.from_numpy(source.decode(index)).permute(2, 0, 1) / 255
        shown = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        right += int(model(shown[None]).argmax()) == source.targets[index]
    return 100 * right / len(source)


@pytest.mark.parametrize("loader", ["device", "workers"])
@pytest.mark.parametrize("own", [True, False], ids=["a validation file", "a carved validation split"])
def test_accuracy_is_of_the_test_split(own: bool, loader: str, tmp_path: Path):
    for name, count in (("train", 64), ("val", 11), ("test", 13)):
        write_images(tmp_path / f"{name}.parquet", count)
    split = {"val": str(tmp_path / "val.parquet")} if own else {"val_fraction": 0.25}
    tried = experiment(tmp_path, loader, **split).with_overrides({"data.num_workers": 0})
    diary = Diary(tmp_path / "run")
    metrics = run(tried, diary, device=CPU)
    splits = open_data(tried.data, seed=0)
    model = build_model(tried.model, num_classes=2, image_size=16).eval()
    model.load_state_dict(weights(diary))
    normalise = tried.data.mean, tried.data.std
    accuracies = {
        name: by_hand(model, source, *normalise)
        for name, source in (("accuracy", splits.test), ("val_accuracy", splits.val))
    }
    assert {name: metrics[name] for name in accuracies} == pytest.approx(accuracies)
    assert accuracies["accuracy"] != accuracies["val_accuracy"]
    assert metrics["test_samples"] == 13
    assert metrics["val_samples"] == len(splits.val) == (11 if own else 16)
    assert len(splits.train) == (64 if own else 48)


def test_a_search_does_not_read_the_test_split(tmp_path: Path) -> None:
    metrics = run(tiny(), Diary(tmp_path), device=CPU, test=False)
    assert metrics["val_accuracy"] > 0 and metrics["val_samples"] > metrics["test_samples"]
    assert not metrics.keys() & {"accuracy", "test_loss"}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Through JSON, and through a tracker, whose numbers are all floats."""
    diary = Diary(tmp_path)
    final = engine_run.run(tiny(), diary, device=CPU)
    plain = final.to_dict()
    assert [is_final(report) for report in diary.reports] == [False] * 3 + [True]
    assert diary.reports[-1] == plain
    assert FinalMetrics.from_dict(json.loads(json.dumps(plain))) == final
    floats = {name: float(value) if type(value) is int else value for name, value in plain.items()}
    again = FinalMetrics.from_dict(floats)
    assert again == final and (type(again.seed), type(again.test_samples)) == (int, int)
    assert (final.seed, final.epoch, final.epochs, final.workers_max) == (0, 3, 3.0, 1)
    assert final.of("test") == plain["accuracy"] and final.value("train_flops") == final.costs.train_flops
    assert final.value("setup") is None and final.value("nothing") is None
    assert {"loss", "accuracy"} & plain.keys() == {"accuracy"}, "the loss of the test split is test_loss"


def test_that_a_run_is_over_is_said_and_not_guessed() -> None:
    """Not from the keys that happen to be there."""
    assert not is_final({"baseline_key": "k", "done": True, "progress": 1.0})
    assert is_final({"final": True})


def test_what_is_not_known_is_left_out() -> None:
    found = FinalMetrics.from_dict(
        {"accuracy": 97.0, "train_seconds": 2.0, "passes_saved": 0.5, "done": True}
    )
    assert (found.metric, found.epochs, found.setup, found.costs.core_fraction) == (Metric(), None, "", None)
    assert found.metrics == {"accuracy": 97.0}
    assert found.to_dict().keys() == {
        *("final", "metric", "direction", "seed", "progress", "passes_saved", "epoch"),
        *("train_seconds", "accuracy"),
    }


def test_a_loss_that_ranks_runs_is_found_on_either_split() -> None:
    plain = {"metric": "loss", "direction": "min", "val_loss": 1.0, "test_loss": 2.0, "train_seconds": 1.0}
    found = FinalMetrics.from_dict(plain)
    assert (found.of("validation"), found.of("test")) == (1.0, 2.0)
