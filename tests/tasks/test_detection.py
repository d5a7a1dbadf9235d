"""Detection's average precision against a loop by hand, its rows over batches and workers, and its recipes."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from raytrain_speedup.config import load_experiment
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.average_precision import average_precision
from raytrain_speedup.tasks.detection import Detection


def scenes(seed: int, images: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Objects, and what was found of them: some of it moved, some of another class, some nowhere."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 5)):
            left, top, width, height = rng.uniform(0, 40, 2).tolist() + rng.uniform(8, 30, 2).tolist()
            label = int(rng.integers(1, classes + 1))
            objects.append([image, label, left, top, left + width, top + height])
            for _ in range(rng.integers(0, 3)):
                moved = np.array(objects[-1][2:]) + rng.normal(0, 2, 4)
                kind = label if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                found.append([image, kind, *moved, rng.random()])
        found.append([image, 1, 0.0, 0.0, 5.0, 5.0, rng.random()])
    return np.array(objects), np.array(found)


def by_hand(objects: np.ndarray, found: np.ndarray, threshold: float) -> float:
    """Of one threshold: the most certain detection takes the free object it covers best (Everingham et al., IJCV
    2010, with COCO's 101 points of recall)."""
    means = []
    for label in np.unique(objects[:, 1]):
        free = {i for i, row in enumerate(objects) if row[1] == label}
        total, right = len(free), []
        for image, _, *box, _ in sorted(found[found[:, 1] == label].tolist(), key=lambda row: -row[6]):
            overlaps = {i: overlap(box, objects[i, 2:]) for i in free if objects[i, 0] == image}
            best = max(overlaps, key=overlaps.__getitem__, default=None)
            hit = best is not None and overlaps[best] >= threshold
            right.append(hit)
            free -= {best} if hit else set()
        recall = np.cumsum(right) / total
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        at = [max(precision[recall >= point - 1e-12], default=0.0) for point in np.linspace(0, 1, 101)]
        means.append(np.mean(at))
    return float(np.mean(means))


def overlap(a: list[float], b: np.ndarray) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_a_loop(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    objects, found = scenes(seed)
    whole, half = average_precision(objects, found, most=100)
    assert half == pytest.approx(by_hand(objects, found, 0.5), abs=1e-9)
    steps = [by_hand(objects, found, 0.5 + 0.05 * step) for step in range(10)]
    assert whole == pytest.approx(np.mean(steps), abs=1e-9) and 0 < whole < half < 1
    assert capsys.readouterr().out == "", "pycocotools tells of its progress"


def test_only_the_surest_are_judged_and_crowds_are_passed_over() -> None:
    objects = np.array([[0, 1, 0, 0, 10, 10.0], [0, 1, 20, 20, 30, 30]])
    right = [0, 1, 0, 0, 10, 10, 0.5], [0, 1, 20, 20, 30, 30, 0.4]
    wrong = [0, 1, 50, 50, 60, 60, 0.9]
    assert average_precision(objects, np.array(right), most=100) == (1, 1)
    assert average_precision(objects, np.array(right), most=1)[0] == pytest.approx(51 / 101)
    assert average_precision(objects, np.array([wrong, *right]), most=100)[0] < 0.7
    crowd = np.array([*objects.tolist(), [0, -1, 45, 45, 70, 70]])
    assert average_precision(crowd, np.array([wrong, *right]), most=100) == (1, 1)
    assert average_precision(objects, np.zeros((0, 7)), most=100) == (0, 0)
    assert average_precision(objects[:0], np.array(right), most=100) == (0, 0)


class Found:
    """A detector that finds what it is told to, and whose loss of an image is its number of objects."""

    def __init__(self, found: Tensor) -> None:
        self.found = found

    def __call__(self, images: Tensor, boxes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        return (boxes[..., 4] != 0).sum(1).float(), self.found[draws]


def test_rows_are_those_of_the_split_in_any_order() -> None:
    """Over batches and workers; objects and detections are told from padding."""
    objects, found = scenes(9, images=8)
    boxes, answers = torch.zeros(8, 6, 5), torch.zeros(8, 12, 6)
    for image in range(8):
        own, seen = objects[objects[:, 0] == image], found[found[:, 0] == image]
        boxes[image, : len(own)] = torch.from_numpy(own[:, [2, 3, 4, 5, 1]])
        answers[image, : len(seen)] = torch.from_numpy(seen[:, [2, 3, 4, 5, 1, 6]])
    task, images = Detection(), torch.zeros(8, 3, 4, 4)

    def rows(index: Tensor) -> Tensor:
        batch = {"inputs": images[index], "target": boxes[index], "index": index, "draws": index}
        return task.totals(Found(answers), batch)

    whole = rows(torch.arange(8))
    assert len(whole) == 8 + len(objects) + len(found) and whole.dtype == torch.float64
    metrics = task.metrics(whole, "test")
    expected = average_precision(objects, found, most=100)
    assert (metrics["map"], metrics["ap50"]) == pytest.approx([100 * value for value in expected], rel=1e-4)
    assert metrics["loss"] == pytest.approx(len(objects) / 8)
    parts = torch.cat([rows(torch.arange(start, 8, 3)) for start in (2, 0, 1)])
    assert task.metrics(parts, "test") == metrics


def test_without_pycocotools_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    missing = "pycocotools is not installed; expected pip install 'raytrain-speedup[detection]'"
    with pytest.raises(UserError, match=re.escape(f"task.kind: detection: {missing}")):
        Detection().prepare(torch.nn.Identity())


def test_faster_rcnn_on_coco_has_the_budget_of_torchvisions_reference() -> None:
    """references/detection: 26 epochs, .02 for 16 images after 1000 steps that begin with a thousandth, decay 1e-4,
    flips. Of its 118,287 images 117,266 have objects."""
    experiment = load_experiment("coco-fasterrcnn_resnet50")
    train = experiment.train
    assert (train.optimizer, train.epochs, train.batch_size, train.lr) == ("sgd", 26, 16, 0.02)
    assert (train.momentum, train.weight_decay, train.start_div) == (0.9, 1e-4, 1000)
    assert train.warmup * train.epochs * 117_266 / 16 == pytest.approx(1000, rel=0.02)
    assert (experiment.data.augment, experiment.data.padding) == ("crop-flip", 0)
