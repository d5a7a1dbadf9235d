"""The suite that every pruning method of the package passes, for one's own: `check_pruner(MySettings)`.

Each check is a function of the settings alone, named as what it promises, and fails by an AssertionError. The
package's own tests run the same list (`PRUNER_CHECKS`).
"""

from __future__ import annotations

import io
import itertools
import pickle
import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raytrain_speedup.methods.pruning import EpochPlan, Pruner, PrunerSettings, equal_epochs, shard
from raytrain_speedup.settings import UserError

N, EPOCHS = 1013, 16  # N is prime, so nothing divides evenly


def check_pruner(settings: PrunerSettings | type[PrunerSettings]) -> None:
    """Run every check on a pruning method.

    Args:
        settings: those of the method, or their class, whose defaults are then tried. A method that does not make
            up for what it drops on purpose says so in its plans, by `rescale="none"`.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    made = settings.model_validate({}) if isinstance(settings, type) else settings
    for check in PRUNER_CHECKS:
        try:
            check(made)
        except AssertionError as error:
            promise = check.__name__.replace("_", " ")
            raise AssertionError(f"{made.method}: {promise}: not kept. {error}") from error


def built(settings: PrunerSettings, *, seed: int = 3, num_samples: int = N, epochs: int = EPOCHS) -> Pruner:
    """The pruner of a run of `epochs` equal epochs."""
    return settings.build(num_samples, equal_epochs(epochs), seed=seed)


def losses_of(index: Tensor, epoch: int) -> Tensor:
    """Losses (b,) that differ by sample and epoch: most small, a few large, as in training."""
    return (torch.sin(index * 12.9898 + epoch).abs() + 1e-3).log().neg() / (epoch + 1)


def plans_of(pruner: Pruner, epochs: Iterable[int] = range(EPOCHS)) -> list[EpochPlan]:
    """The plans of a run in which every sample shown has such a loss."""
    plans = []
    for epoch in epochs:
        plan = pruner.plan(epoch)
        for index, _ in plan.batches(128):
            pruner.observe(index, losses_of(index, epoch))
        pruner.exchange()
        plans.append(plan)
    return plans


def same_plan(one: EpochPlan, other: EpochPlan) -> bool:
    """Whether two plans show the same samples in the same order at the same weights."""
    return (
        torch.equal(one.indices, other.indices)
        and torch.equal(one.weights, other.weights)
        and one.stats == other.stats
        and one.rescale == other.rescale
    )


def each_sample_is_shown_at_most_once_with_the_promised_types(settings: PrunerSettings) -> None:
    """int64 positions in the data set and float32 weights, as many of both, on the CPU."""
    for plan in plans_of(built(settings)):
        assert plan.indices.dtype == torch.int64, f"indices are {plan.indices.dtype}"
        assert plan.weights.dtype == torch.float32, f"weights are {plan.weights.dtype}"
        assert plan.indices.shape == plan.weights.shape == (plan.kept,), "one weight for each index"
        assert plan.indices.device.type == plan.weights.device.type == "cpu", "plans are on the CPU"
        assert plan.num_samples == N, f"num_samples is {plan.num_samples}"
        assert len(plan.indices.unique()) == plan.kept > 0, "a sample is shown twice, or none at all"
        assert 0 <= plan.indices.min() <= plan.indices.max() < N, "an index is no position in the data set"
        assert (plan.weights > 0).all() and plan.weights.isfinite().all(), "a weight is not above 0"


def weights_sum_to_the_number_of_samples(settings: PrunerSettings) -> None:
    """Exactly, once the one rounding of each weight to float32 (2^-24 of it) is undone; or all are 1, where a plan
    says that it does not rescale."""
    for epoch, plan in enumerate(plans_of(built(settings))):
        if plan.rescale == "none":
            assert (plan.weights == 1).all(), f"epoch {epoch}: not rescaled, but a weight is not 1"
            continue
        total = sum(map(Fraction, plan.weights.tolist()), Fraction(0))
        assert abs(total - N) <= Fraction(N, 2**24), f"epoch {epoch}: {float(total):.6g} for {N} samples"


def plans_are_a_function_of_seed_and_epoch(settings: PrunerSettings) -> None:
    """The same again for the same seed, another order for another seed and in every epoch."""
    plans, again, other = (plans_of(built(settings, seed=seed)) for seed in (3, 3, 4))
    assert all(same_plan(a, b) for a, b in zip(plans, again, strict=True)), "another run, other plans"
    pairs = [*zip(plans, other, strict=True), *itertools.pairwise(plans)]
    assert not any(torch.equal(a.indices[:20], b.indices[:20]) for a, b in pairs), "the same order again"


def the_global_generators_are_left_alone(settings: PrunerSettings) -> None:
    """What a method draws changes no initialisation and no augmentation."""
    before = _generators()
    plans_of(built(settings))
    for name, state in _generators().items():
        assert state == before[name], f"the global generator of {name} was used"


def resuming_between_or_within_epochs_equals_going_on(settings: PrunerSettings) -> None:
    """A state taken anywhere gives the plan of that epoch again, and those that follow."""
    straight = plans_of(built(settings))
    for epoch in range(EPOCHS):
        first = built(settings)
        plans_of(first, range(epoch))
        batches = list(first.plan(epoch).batches(128))
        for index, _ in batches[:3]:
            first.observe(index, losses_of(index, epoch))
        resumed = built(settings)
        resumed.load_state_dict(first.state_dict())
        assert same_plan(resumed.plan(epoch), straight[epoch]), f"resumed within epoch {epoch}"
        for index, _ in batches[3:]:
            resumed.observe(index, losses_of(index, epoch))
        rest = plans_of(resumed, range(epoch + 1, EPOCHS))
        assert all(same_plan(a, b) for a, b in zip(rest, straight[epoch + 1 :], strict=True)), (
            f"after resuming in epoch {epoch}"
        )


def the_state_survives_a_round_trip_through_a_file(settings: PrunerSettings) -> None:
    """Of `torch.save`, read with `weights_only=True`: tensors and plain values."""
    pruner, file = built(settings), io.BytesIO()
    plans_of(pruner, range(3))
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    loaded = built(settings)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    before, after = pruner.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, f"{key} is another afterwards"


def the_state_of_another_data_set_seed_or_run_is_refused(settings: PrunerSettings) -> None:
    """By a UserError: what it says of an epoch would be about other draws."""
    state = built(settings).state_dict()
    for other in (
        built(settings, num_samples=N + 1),
        built(settings, seed=4),
        built(settings, epochs=EPOCHS + 1),
    ):
        assert _refused(partial(other.load_state_dict, state)), "it was taken up"


def an_epoch_that_the_run_does_not_have_is_reported(settings: PrunerSettings) -> None:
    """By a UserError, and so is a run without samples."""
    for epoch in (EPOCHS, EPOCHS + 1, -1):
        assert _refused(partial(built(settings).plan, epoch)), f"epoch {epoch} was planned"
    assert _refused(lambda: settings.build(0, equal_epochs(EPOCHS), seed=0)), "0 samples were planned"


def workers_share_out_the_plan(settings: PrunerSettings) -> None:
    """What any number of workers show together is the plan, in equally many steps."""
    plan = plans_of(built(settings), range(3))[-1]
    for world in (2, 3):
        shards = [shard(plan, batch_size=64, rank=rank, world=world) for rank in range(world)]
        assert len({len(part) for part in shards}) == 1, "workers make different numbers of steps"
        steps = zip(*shards, strict=True)
        shown = [index for step in steps for index, _ in step]
        assert torch.equal(torch.cat(shown), plan.indices), "they show other samples"


def settings_survive_a_round_trip(settings: PrunerSettings) -> None:
    """Through plain data, as files, records and other processes hold them; every key says what it is."""
    assert type(settings).model_validate(settings.model_dump(mode="json")) == settings
    bare = [name for name, field in type(settings).model_fields.items() if not field.description]
    assert set(bare) <= {"method"}, f"no description: {', '.join(bare)}"


def _generators() -> dict[str, bytes]:
    """The states of the global generators."""
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "NumPy": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "random": pickle.dumps(random.getstate()),
    }


def _refused(action: Callable[[], object]) -> bool:
    try:
        action()
    except UserError:
        return True
    return False


PRUNER_CHECKS: tuple[Callable[[PrunerSettings], None], ...] = (
    each_sample_is_shown_at_most_once_with_the_promised_types,
    weights_sum_to_the_number_of_samples,
    plans_are_a_function_of_seed_and_epoch,
    the_global_generators_are_left_alone,
    resuming_between_or_within_epochs_equals_going_on,
    the_state_survives_a_round_trip_through_a_file,
    the_state_of_another_data_set_seed_or_run_is_refused,
    an_epoch_that_the_run_does_not_have_is_reported,
    workers_share_out_the_plan,
    settings_survive_a_round_trip,
)
