"""What every registered pruning method promises, whatever it decides."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from raytrain_speedup.methods.pruning import PRUNERS, InfoBatchSettings, Pruner, PrunerSettings, equal_epochs
from raytrain_speedup.settings import UserError

N, EPOCHS = 1013, 16  # N is prime, so nothing divides evenly
VARIANTS = [
    *(settings() for settings in PRUNERS.values()),
    InfoBatchSettings(saving=0.4),
    InfoBatchSettings(threshold="quantile"),
    PRUNERS["random"](saving=0.4),
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


def losses(index: torch.Tensor, epoch: int) -> torch.Tensor:
    """Losses that differ by sample and epoch: most small, a few large, as in training."""
    return (torch.sin(index * 12.9898 + epoch).abs() + 1e-3).log().neg() / (epoch + 1)


def run(pruner, epochs=range(EPOCHS)):
    plans = []
    for epoch in epochs:
        plan = pruner.plan(epoch)
        for index, _ in plan.batches(128):
            pruner.observe(index, losses(index, epoch))
        pruner.exchange()
        plans.append(plan)
    return plans


def same(a, b) -> bool:
    return torch.equal(a.indices, b.indices) and torch.equal(a.weights, b.weights) and a.stats == b.stats


def test_each_sample_is_shown_at_most_once_with_the_promised_types(settings):
    for plan in run(build(settings)):
        assert plan.indices.dtype == torch.int64
        assert plan.weights.dtype == torch.float32
        assert plan.indices.shape == plan.weights.shape == (plan.kept,)
        assert plan.num_samples == N
        assert len(plan.indices.unique()) == plan.kept
        assert plan.indices.min() >= 0
        assert plan.indices.max() < N


def test_weights_sum_to_the_number_of_samples(settings):
    """Exactly, once the one rounding of each weight to float32 (2^-24 of it) is undone."""
    for plan in run(build(settings)):
        total = sum(Fraction(weight) for weight in plan.weights.tolist())
        assert abs(total - N) <= Fraction(N, 2**24)


def test_plans_are_a_function_of_seed_and_epoch(settings):
    plans, again, other = (run(build(settings, seed)) for seed in (3, 3, 4))
    assert all(same(a, b) for a, b in zip(plans, again, strict=True))
    assert not any(torch.equal(a.indices[:20], b.indices[:20]) for a, b in zip(plans, other, strict=True))
    assert not any(torch.equal(a.indices[:20], b.indices[:20]) for a, b in itertools.pairwise(plans))


def test_the_global_generators_are_left_alone(settings):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(build(settings))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_warm_up_and_annealing_show_all_data_at_weight_one(settings):
    plans = run(build(settings))
    for epoch, plan in enumerate(plans):
        if epoch < 1 or epoch >= 0.875 * EPOCHS:
            assert plan.kept == N
            assert (plan.weights == 1).all()
        elif dropping(settings):
            assert plan.kept < N


def test_unpruned_epochs_come_in_the_same_order_under_every_method(settings):
    """Comparisons between methods are paired."""
    assert torch.equal(build(settings).plan(0).indices, build(VARIANTS[0]).plan(0).indices)


def test_others_survive_in_every_epoch(settings):
    """With scores that do not change, two epochs' survivors overlap as two independent draws of their sizes do."""
    if not dropping(settings):
        pytest.skip("drops nothing")
    pruner = build(settings)
    pruner.observe(torch.arange(N), losses(torch.arange(N), 0))
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


def test_resuming_between_or_within_epochs_equals_going_on(settings):
    straight = run(build(settings))
    for epoch in range(EPOCHS):
        first = build(settings)
        run(first, range(epoch))
        batches = list(first.plan(epoch).batches(128))
        for index, _ in batches[:3]:
            first.observe(index, losses(index, epoch))
        resumed = build(settings, seed=3)
        resumed.load_state_dict(first.state_dict())
        assert same(resumed.plan(epoch), straight[epoch])
        for index, _ in batches[3:]:
            resumed.observe(index, losses(index, epoch))
        rest = run(resumed, range(epoch + 1, EPOCHS))
        assert all(same(a, b) for a, b in zip(rest, straight[epoch + 1 :], strict=True))


def test_the_state_survives_a_round_trip_through_a_file(settings, tmp_path):
    pruner = build(settings)
    run(pruner, range(3))
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    loaded = build(settings)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    before, after = pruner.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]


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


def test_settings_survive_a_round_trip(settings):
    assert type(settings).model_validate(settings.model_dump(mode="json")) == settings


def test_every_field_is_described(settings):
    assert all(field.description for field in type(settings).model_fields.values())


def test_the_registry_names_the_methods():
    assert all(settings().method == name for name, settings in PRUNERS.items())


def test_only_fewer_epochs_shorten_the_run():
    factors = {name: settings().budget_factor() for name, settings in PRUNERS.items()}
    assert factors == {"none": 1, "infobatch": 1, "random": 1, "epochs": 1 - PRUNERS["epochs"]().saving}
