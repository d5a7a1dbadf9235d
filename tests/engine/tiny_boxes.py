"""Small scenes with boxes around one or two bright rectangles each, for the tests of detection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from raytrain_speedup.config import Experiment, load_experiment

SIDE = 64
COLOURS = ((220, 40, 40), (40, 40, 220))
"""Of the two classes."""


def write_boxes(folder: Path) -> Path:
    """24 scenes to train on and 6 to test on, some without any object, in COCO's format."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir()
    for split, count in (("train", 24), ("test", 6)):
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            pixels = rng.integers(60, 100, (SIDE, SIDE, 3)).astype(np.uint8)
            for _ in range(number % 3):
                kind, (width, height) = int(rng.integers(2)), rng.integers(16, 30, 2).tolist()
                left, top = int(rng.integers(SIDE - width)), int(rng.integers(SIDE - height))
                pixels[top : top + height, left : left + width] = COLOURS[kind]
                bbox = [left, top, width, height]
                annotations.append({"image_id": 10 * number, "category_id": 7 + 2 * kind, "bbox": bbox})
            Image.fromarray(pixels).save(folder / split / f"{number:03d}.png")
            images.append({"id": 10 * number, "file_name": f"{number:03d}.png"})
        categories = [{"id": 9, "name": "blue"}, {"id": 7, "name": "red"}]
        file = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(file))
    return folder


def boxed(folder: Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """SSDlite on 18 small scenes, 3 epochs of 3 steps."""
    keys = {
        "data": {"source": "coco", "root": str(folder), "image_size": SIDE, "val_fraction": 0.25},
        **{"train.epochs": 3, "train.batch_size": 6, "train.threads": 1},
        **{"train.eval_every": 0, "train.checkpoint_every": 1},
    }
    return load_experiment("camvid-ssdlite", keys | (overrides or {}))


def faster_rcnn(num_classes: int) -> FasterRCNN:
    """A small one without batch normalisation, so that its numbers do not depend on how a batch is cut; it learns
    from a draw of its anchors and proposals."""
    backbone = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 4, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    )
    backbone.out_channels = 16
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((16, 24, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(16 * 9, 16), nn.ReLU()),
        box_predictor=FastRCNNPredictor(16, num_classes + 1),
        rpn_batch_size_per_image=16,
        box_batch_size_per_image=8,
        rpn_post_nms_top_n_train=30,
        rpn_post_nms_top_n_test=30,
    )


def images_and_boxes(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and boxes in it: none in the last."""
    rng = torch.Generator().manual_seed(0)
    boxes = torch.zeros(count, 3, 5)
    for i in range(count - 1):
        for j in range(1 + i % 3):
            left, top = (torch.rand(2, generator=rng) * 30).tolist()
            boxes[i, j] = torch.tensor([left, top, left + 18 + 6 * j, top + 14 + 5 * i, 1 + (i + j) % 2])
    return torch.randn(count, 3, SIDE, SIDE, generator=rng), boxes
