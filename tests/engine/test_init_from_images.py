"""A network whose weights begin with what the data look like is shown the same images everywhere, and only then."""

from __future__ import annotations

from pathlib import Path

import torch
from engine_runs import tiny, trained

AIRBENCH = {"model.name": "airbench_s", "data.image_size": 16, "train.optimizer": "muon", "train.lr": 0.01}


def test_a_run_begins_from_its_images_and_a_start_from_weights_does_not(tmp_path: Path) -> None:
    experiment = tiny(AIRBENCH, epochs=1)
    _, weights, _ = trained(experiment, tmp_path / "one")
    _, other, _ = trained(
        experiment.with_overrides({"data.loader": "workers", "data.num_workers": 0}), tmp_path / "other"
    )
    assert torch.equal(weights["whiten.weight"], other["whiten.weight"])
    first = weights["whiten.weight"]
    assert torch.allclose(first[:4], -first[4:]) and first.abs().max() > 1  # one channel: 4 pixels a patch
    norms = first[:4].flatten(1).norm(dim=1)
    assert torch.all(norms[1:] >= norms[:-1]), "the largest variance comes first, and is divided by most"
    (file,) = (tmp_path / "one").glob("*/model.pt")
    saved = torch.load(file, weights_only=True)
    saved["whiten.weight"] = saved["whiten.weight"] * 2
    torch.save(saved, tmp_path / "start.pt")
    again = experiment.with_overrides({"model.pretrained": str(tmp_path / "start.pt")})
    _, weights, _ = trained(again, tmp_path / "again")
    assert torch.equal(weights["whiten.weight"], 2 * first)
