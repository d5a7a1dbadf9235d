"""Which experiments are the same run, and which runs may be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_runs import tiny

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.identity import check_same, comparison_keys, identity, setup_of
from raytrain_speedup.settings import UserError


def keys_of(path: Path | None) -> dict[str, Any]:
    return identity(tiny({"model.pretrained": path and str(path)}), "data")


def baseline_key(path: Path | None) -> str:
    return comparison_keys(keys_of(path), workers=1)["baseline_key"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    path.write_bytes(bytes(3_000_000))
    return path


def test_a_moved_file_is_the_same_and_another_one_is_not(file: Path, tmp_path: Path) -> None:
    before = baseline_key(file)
    assert baseline_key(file.rename(tmp_path / "moved.pt")) == before
    file.write_bytes(bytes(2_999_999) + b"1")
    assert baseline_key(file) != before
    assert baseline_key(None) != before


def test_a_file_that_is_gone_is_whatever_it_was(file: Path) -> None:
    before = keys_of(file)
    file.unlink()
    check_same(before, keys_of(file), "this")
    with pytest.raises(UserError, match=r"train.lr is 0.5 there"):
        check_same({**before, "train.lr": 0.5}, keys_of(file), "this")


def test_another_file_is_refused(file: Path) -> None:
    before = keys_of(file)
    file.write_bytes(b"another")
    with pytest.raises(UserError, match=r"model.pretrained is '\w{12}' there and '\w{12}' here"):
        check_same(before, keys_of(file), "this")


def test_what_decides_no_number_may_be_another() -> None:
    one, other = tiny(), tiny(compile=True, checkpoint_steps=3, checkpoint_minutes=2, device="cpu")
    assert identity(one, "data") == identity(other, "data")
    assert identity(one, "data") != identity(one, "other data")
    assert identity(one, "data") != identity(tiny(batch_size=32), "data")


def test_a_cache_may_come_or_go_and_a_window_may_not() -> None:
    """A window decides the order in which samples are shown."""

    def keys(**changed: Any) -> dict[str, Any]:
        data = {"source": "index", "train": "train.index", "test": "test.index", **changed}
        overrides = {"data": data, "model.name": "resnet8"}
        return identity(load_experiment("digits", overrides), "data")

    plain = keys()
    assert keys(cache="cache") == keys(cache="elsewhere", cache_gb=3) == plain
    assert keys(window=1000) != plain


def test_runs_are_compared_where_all_but_the_method_and_the_seed_is_equal() -> None:
    """One network and data on as many workers, and trained alike."""

    def keys(workers: int = 1, **changed: Any) -> dict[str, str]:
        overrides = {key.replace("__", "."): value for key, value in changed.items()}
        return comparison_keys(identity(tiny(overrides), "data"), workers=workers)

    base = keys()
    assert keys(train__seed=5) == keys(pruning__method="infobatch") == base
    assert keys(curriculum__method="efficienttrain") == base
    for problem in ({"train__batch_size": 32}, {"train__precision": "bf16"}, {"data__augment": "none"}):
        assert keys(**problem)["baseline_key"] != base["baseline_key"]
    assert keys(workers=2)["baseline_key"] != base["baseline_key"]
    assert keys(model__name="wrn16_1")["baseline_key"] != base["baseline_key"]
    for other in (keys(train__lr=0.5), keys(train__epochs=4), keys(train__precision="bf16")):
        assert other["train_key"] != base["train_key"]


def test_how_the_network_ran_is_said_in_full() -> None:
    """What may be another when a run goes on may not be in a comparison: it decides time and is no method."""
    ran = {
        setup_of(tiny(**keys).train, loading)
        for keys, loading in (
            ({}, "device loader"),
            ({}, "2 loader workers"),
            ({"compile": True}, "device loader"),
            ({"channels_last": False}, "device loader"),
            ({"batch_size": 32}, "device loader"),
            ({"accumulate": 2}, "device loader"),
        )
    }
    assert len(ran) == 6
