"""The control that saves by fewer epochs: what it says, in a run of the engine and in a plain loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.methods.pruning import FewerEpochs, FewerEpochsSettings, FullData, equal_epochs


def shown(pruner, epochs: int) -> torch.Tensor:
    return torch.cat([pruner.plan(epoch).indices for epoch in range(epochs)])


def test_a_plain_loop_shows_the_passes_of_the_shorter_run_in_their_order():
    pruner = FewerEpochsSettings(saving=0.3).build_for_loop(100, 10, seed=3)
    assert [pruner.plan(epoch).kept for epoch in range(10)] == [70] * 10
    assert torch.equal(shown(pruner, 10), shown(FullData(100, 7, seed=3), 7))
    assert (pruner.plan(4).weights == 1).all()


@given(st.integers(1, 60), st.integers(1, 12), st.floats(0, 0.99), st.integers(0, 5))
def test_any_saving_is_kept_to_the_sample(num_samples, epochs, saving, seed):
    indices = shown(FewerEpochs(num_samples, epochs, saving=saving, seed=seed), epochs)
    assert len(indices) == round((1 - saving) * epochs * num_samples)
    assert torch.equal(indices, shown(FullData(num_samples, epochs, seed=seed), epochs)[: len(indices)])
    counts = torch.bincount(indices, minlength=num_samples)
    assert counts.max() - counts.min() <= 1


def test_the_engine_shortens_the_run_itself():
    """Its budget is `budget_factor` of what it would be, so every epoch it makes is a full one."""
    settings = FewerEpochsSettings(saving=0.3)
    pruner = settings.build(100, equal_epochs(7), seed=3)
    assert torch.equal(shown(pruner, 7), shown(FullData(100, 7, seed=3), 7))
    assert settings.budget_factor() == pytest.approx(0.7)


@pytest.mark.parametrize("saving", [0.3, 0.5])
def test_a_run_of_the_engine_saves_as_many_passes_and_anneals_as_the_long_one_does(saving, tmp_path):
    keys = {
        "pruning.method": "epochs",
        "pruning.saving": saving,
        "data.image_size": 8,
        "data.val_fraction": 0.84,
        "train.epochs": 3,
        "train.batch_size": 64,
        "train.threads": 1,
        "train.checkpoint_every": 0,
    }
    metrics = run(
        load_experiment("digits", keys), LocalReporter(tmp_path), device=torch.device("cpu")
    ).to_dict()
    assert metrics["passes_saved"] == pytest.approx(saving, abs=0.001)
    assert metrics["samples_shown"] == pytest.approx((1 - saving) * 3 * 230, abs=1)
    assert metrics["progress"] == 1
