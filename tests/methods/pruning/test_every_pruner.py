"""What every registered pruning method promises, whatever it decides."""

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import Field

from raytrain_speedup.methods.pruning import (
    PRUNERS,
    EpochPlan,
    FullData,
    InfoBatchSettings,
    Pruner,
    PrunerSettings,
    Rescale,
    equal_epochs,
)
from raytrain_speedup.settings import UserError
from raytrain_speedup.testing import EPOCHS, PRUNER_CHECKS, N, check_pruner, losses_of, plans_of

VARIANTS = [
    *(settings() for settings in PRUNERS.values()),
    InfoBatchSettings(saving=0.4),
    InfoBatchSettings(threshold="quantile"),
    InfoBatchSettings(score_momentum=0.7),
    PRUNERS["random"](saving=0.4),
    *(PRUNERS[name](saving=0.4, score_momentum=0.7) for name in ("orderdp", "seta")),
    *(PRUNERS[name](saving=0.4) for name in ("rs2", "orderdp", "seta", "el2n", "forgetting", "dyn-unc")),
]


@pytest.fixture(
    params=VARIANTS,
    ids=lambda s: "-".join(str(v) for v in s.model_dump(exclude_defaults=True).values()) or s.method,
)
def settings(request: pytest.FixtureRequest) -> PrunerSettings:
    return request.param


def build(settings: PrunerSettings, seed: int = 3, num_samples: int = N, ends: list[float] | None = None):
    return settings.build(num_samples, ends or equal_epochs(EPOCHS), seed=seed)


def dropping(settings: PrunerSettings) -> bool:
    return settings.method in ("infobatch", "random")


@pytest.mark.parametrize("check", PRUNER_CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_what_every_method_promises(settings, check):
    check(settings)


def test_warm_up_and_annealing_show_all_data_at_weight_one(settings):
    if settings.rescale == "none":
        pytest.skip("has other phases")
    plans = plans_of(build(settings))
    for epoch, plan in enumerate(plans):
        if epoch < 1 or epoch >= 0.875 * EPOCHS:
            assert plan.kept == N
            assert (plan.weights == 1).all()
        elif dropping(settings):
            assert plan.kept < N


def test_unpruned_epochs_come_in_the_same_order_under_every_method(settings):
    """Comparisons between methods are paired."""
    if build(settings).plan(0).kept < N:
        pytest.skip("prunes from the start")
    assert torch.equal(build(settings).plan(0).indices, build(VARIANTS[0]).plan(0).indices)


def test_others_survive_in_every_epoch(settings):
    """With scores that do not change, two epochs' survivors overlap as two independent draws of their sizes do."""
    if not dropping(settings):
        pytest.skip("drops nothing")
    pruner = build(settings)
    pruner.observe(torch.arange(N), losses_of(torch.arange(N), 0))
    dropped = [
        set(range(N)) - set(plan.indices.tolist()) for epoch in range(1, 14) for plan in [pruner.plan(epoch)]
    ]
    eligible = set.union(*dropped)
    for one, other in itertools.pairwise(dropped):
        expected = len(one) * len(other) / len(eligible)
        assert abs(len(one & other) - expected) < 6 * expected**0.5
        assert one != other


def test_where_a_sample_comes_says_nothing_about_who_survives(settings):
    """Over 1,500 epochs: were survivors and order drawn from one stream, who is dropped would depend on the words
    that shuffle the rest."""
    if not dropping(settings):
        pytest.skip("drops nothing")
    n, epochs = 12, 1500
    pruner = settings.build(n, equal_epochs(epochs), seed=5)
    pruner.observe(torch.arange(n), torch.tensor([0.0] * (n - 4) + [1.0] * 4))
    places = np.full((epochs, n), np.nan)
    for epoch in range(1, int(0.875 * epochs)):
        indices = pruner.plan(epoch).indices.numpy()
        places[epoch, indices] = np.arange(len(indices)) / len(indices)
    places = places[1 : int(0.875 * epochs)]
    for one, other in itertools.permutations(range(n), 2):
        both = places[np.isfinite(places[:, other])]
        survived, place = np.isfinite(both[:, one]), both[:, other]
        if survived.any() and not survived.all():
            assert abs(np.corrcoef(survived, place)[0, 1]) < 5 / len(both) ** 0.5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_samples": N + 1}, f"is of a data set of {N} samples; expected {N + 1}"),
        ({"seed": 4}, "is of seed 3; expected 4"),
        ({"ends": equal_epochs(EPOCHS + 1)}, "is of a run of 16 epochs; expected 17"),
        (
            {"ends": [end**2 for end in equal_epochs(EPOCHS)]},
            "is of a run whose epoch 0 ends at progress 0.0625; expected 0.00390625",
        ),
        (
            {"ends": [*equal_epochs(EPOCHS)[:7], 0.51, *equal_epochs(EPOCHS)[8:]]},
            "is of a run whose epoch 7 ends at progress 0.5; expected 0.51",
        ),
    ],
)
def test_the_state_of_another_data_set_seed_or_run_is_refused(settings, other, message):
    pruner = build(settings, **other)
    with pytest.raises(UserError, match=f"^pruning: the checkpoint {message}$"):
        pruner.load_state_dict(build(settings).state_dict())


def test_ends_of_epochs_may_differ_in_their_last_bits(settings):
    ends = [end + 1e-12 for end in equal_epochs(EPOCHS)]
    build(settings, ends=ends).load_state_dict(build(settings).state_dict())


def test_the_state_of_another_method_is_refused(settings):
    full = settings.method in ("none", "epochs")
    other = PRUNERS["infobatch"]() if full else PRUNERS["none"]()
    with pytest.raises(UserError, match=r"another method's state \(num_samples, .*\); expected num_samples"):
        build(settings).load_state_dict(build(other).state_dict())
    with pytest.raises(UserError, match=r"another method's state \(empty\)"):
        build(settings).load_state_dict({})


@pytest.mark.parametrize("epoch", [EPOCHS, EPOCHS + 1, -1])
def test_an_epoch_that_the_run_does_not_have_is_reported(settings, epoch):
    with pytest.raises(UserError, match=f"^plan: the run has no epoch {epoch}; expected 0 to 15$"):
        build(settings).plan(epoch)


def loops(settings: PrunerSettings, num_samples: int, epochs: int) -> Pruner:
    return settings.build_for_loop(num_samples, epochs, seed=0)


def test_no_samples_and_no_epochs_are_reported(settings):
    for make in (loops, lambda settings, n, epochs: settings.build(n, equal_epochs(epochs), seed=0)):
        with pytest.raises(
            UserError, match="^num_samples: 0 is not allowed; expected a whole number, at least 1$"
        ):
            make(settings, 0, 10)
        for epochs in (0, -1, 2.5):
            with pytest.raises(UserError, match=f"^epochs: {epochs} is not allowed; expected a whole number"):
                make(settings, 10, epochs)
    with pytest.raises(UserError, match="^epochs: the run has none; expected at least 1$"):
        settings.build(10, [], seed=0)


def test_every_field_is_described(settings):
    assert all(field.description for field in type(settings).model_fields.values())


def test_the_registry_names_the_methods():
    assert all(settings().method == name for name, settings in PRUNERS.items())


def test_only_fewer_epochs_shorten_the_run():
    factors = {name: settings().budget_factor() for name, settings in PRUNERS.items()}
    assert factors.pop("epochs") == 1 - PRUNERS["epochs"]().saving
    assert set(factors.values()) == {1}


class Forgetful(FullData):
    """Leaves out a sample and does not make up for it."""

    def _plan(self, epoch):
        plan = super()._plan(epoch)
        weights = plan.weights[1:] * self.weight
        return EpochPlan(plan.indices[1:], weights, plan.num_samples, rescale=self.rescale)


class ForgetfulSettings(PrunerSettings):
    method: Literal["forgetful"] = "forgetful"
    says: Rescale = Field("exact", description="of its plans")
    weight: float = Field(1.0, description="of every sample")

    def build(self, num_samples, epoch_ends, *, seed, device=None, last_epoch_fraction=1.0):
        pruner = Forgetful(num_samples, epoch_ends, seed=seed)
        pruner.rescale, pruner.weight = self.says, self.weight
        return pruner


def test_a_method_that_breaks_a_promise_is_found_out():
    with pytest.raises(AssertionError, match="^forgetful: weights sum to the number of samples: not kept"):
        check_pruner(ForgetfulSettings)
    check_pruner(ForgetfulSettings(says="none"))
    with pytest.raises(AssertionError, match="not rescaled, but a weight is not 1"):
        check_pruner(ForgetfulSettings(says="none", weight=2.0))
