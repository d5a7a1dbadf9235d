"""The task in docs/extending.md does what it says, and trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.metric import Metric

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the example defines."""
    (code,) = re.findall(
        r"test_task_page\.py -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    defined: dict[str, Any] = {"__name__": "extending"}
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), defined)
    return defined


def test_the_example_is_right(page: dict[str, Any]) -> None:
    """Two of four right, the others one and two classes off."""
    output, target = torch.eye(4), torch.tensor([0, 1, 1, 1])
    metrics = page["Ordered"]().metrics(page["Ordered"]().judge(output, target), "val")
    assert (metrics["off"], metrics["right"]) == (3 / 4, 50.0)


def test_the_example_trains(page: dict[str, Any], tmp_path: Path) -> None:
    keys = {"data.image_size": 8, "data.val_fraction": 0.84, "train.epochs": 2, "train.mixup": 0.2}
    experiment = load_experiment("digits", keys | {"model.name": "resnet8", "train.threads": 1})
    own = experiment.model_copy(update={"task": page["OrderedSettings"]()})
    found = run(own, LocalReporter(tmp_path, lambda kind, metrics: None), device=torch.device("cpu"))
    assert found.metric == Metric("off", "min")
    assert 0 < found.metrics["off"] < 9 and 0 < found.metrics["val_right"] <= 100
