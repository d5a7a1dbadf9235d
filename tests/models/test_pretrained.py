"""Files of weights: taken whole, and refused for reasons of our own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raytrain_speedup.engine.checkpoints.checkpoint import read_shared
from raytrain_speedup.models.pretrained import load_pretrained, load_whole
from raytrain_speedup.settings import UserError

LOADERS = {
    "whole": lambda network, path: load_whole(network, path),
    "pretrained": lambda network, path: load_pretrained(network, path, num_classes=3),
}


def network(width: int = 4, *, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_weights_are_loaded(key: str | None, load: Any, tmp_path: Path) -> None:
    """As they are, and as training scripts keep them."""
    source, loaded = network(), network()
    state = source.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "teacher.pt")
    load(loaded, tmp_path / "teacher.pt")
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.zeros(3), "holds a Tensor; expected a state dict"),
        ({"epoch": 3, "state": {}}, "holds a dict with epoch, state; expected a state dict"),
        ({}, "holds an empty dict"),
        ({"0.weight": torch.zeros(1)}, "lacks 0.bias, .* and .* more"),
        (network(classes=5).state_dict(), r"has shape \(5, 4\); Sequential needs \(3, 4\)"),
        (network().state_dict() | {"extra": torch.zeros(1)}, "also has extra"),
    ],
)
def test_another_files_content_is_named(tmp_path: Path, content: object, found: str) -> None:
    path = tmp_path / "teacher.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=found) as error:
        load_whole(network(), path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_file_that_would_run_code_is_refused_for_our_own_reason(load: Any, tmp_path: Path) -> None:
    """torch's message ends in the advice to load it with `weights_only=False`."""
    path = tmp_path / "trap.pt"
    contents = {
        "getattr": lambda: path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2)),
        "torch.nn.modules.container.Sequential": lambda: torch.save(network(), path),
    }
    for named, write in contents.items():
        write()
        with pytest.raises(UserError) as error:
            load(network(), path)
        assert str(error.value).endswith(
            f"cannot read {path}: it is a pickle that runs {named} when it is loaded, and not weights alone, so "
            "it is refused; write them with torch.save(network.state_dict(), file)"
        )
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_file_that_is_none_is_reported_in_a_line(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    whole = path.read_bytes()
    for content, why in (
        (b"not a checkpoint", "no file that torch.save wrote, or a damaged one"),
        (whole[: len(whole) // 2], "no file that torch.save wrote, or a damaged one"),
        (b"", "it is empty"),
        (None, "No such file or directory"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as error:
            load(network(), path)
        assert str(error.value).endswith(f"cannot read {path}: {why}")
        path.touch()


def test_a_checkpoint_that_would_run_code_is_refused_likewise(tmp_path: Path) -> None:
    torch.save({"model": network()}, tmp_path / "run.pt")
    with pytest.raises(
        UserError, match=r"run.pt: not a whole checkpoint \(it is a pickle that runs torch.nn"
    ):
        read_shared(tmp_path, torch.device("cpu"))
