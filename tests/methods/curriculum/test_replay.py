"""The replay buffer: bounded, first in first out, deterministic, resumable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raytrain_speedup.methods.curriculum.replay import ReplayBuffer
from raytrain_speedup.settings import UserError

SAMPLE_BYTES = 3 * 4 * 4 + 8 + 8 + 4


def batch(start: int, size: int = 4) -> dict[str, Tensor]:
    """Samples whose pixels, target and weight all tell their index."""
    index = torch.arange(start, start + size)
    return {
        "inputs": (index % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4),
        "target": index * 10,
        "index": index,
        "weight": index.float() / 2,
    }


def buffer(samples: int = 10, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(samples * SAMPLE_BYTES + 5, seed=seed)


def run(replay_buffer: ReplayBuffer, steps: range, replay: int = 3) -> list[dict[str, Tensor]]:
    return [replay_buffer.extend(batch(4 * step), replay, epoch=1, step=step) for step in steps]


def test_a_batch_is_the_fresh_one_and_parts_of_the_buffer() -> None:
    for step, shown in enumerate(run(buffer(), range(6))):
        assert len(shown["index"]) == 12
        assert shown["index"][:4].tolist() == list(range(4 * step, 4 * step + 4))
        newest = 4 * step + 3
        assert all(max(0, newest - 9) <= index <= newest for index in shown["index"].tolist())


def test_all_of_a_sample_stays_together() -> None:
    for shown in run(buffer(), range(6)):
        index = shown["index"]
        assert shown["inputs"].dtype == torch.uint8
        assert torch.equal(shown["inputs"][:, 0, 0, 0].long(), index)
        assert torch.equal(shown["target"], index * 10)
        assert torch.equal(shown["weight"], index.float() / 2)


def test_memory_is_bounded_and_reported() -> None:
    held = buffer(10)
    assert held.nbytes == 0
    for start in range(0, 400, 4):
        held.push(batch(start))
        assert held.nbytes == 10 * SAMPLE_BYTES <= held.max_bytes
        assert len(held) == min(start + 4, 10)


@pytest.mark.parametrize("sizes", [[4] * 7, [1, 9, 3], [10], [25], [7, 25, 2], [3]])
def test_the_newest_samples_are_held_in_order(sizes: list[int]) -> None:
    held, start = buffer(10), 0
    for size in sizes:
        held.push(batch(start, size))
        start += size
    assert held.state_dict()["index"].tolist() == list(range(max(0, start - 10), start))


def test_a_sample_is_shown_r_times_on_average() -> None:
    held, counts = buffer(40), torch.zeros(4 * 300)
    for shown in run(held, range(300), replay=3):
        counts.index_add_(0, shown["index"], torch.ones(12))
    settled = counts[200:-200]  # once the buffer is full, and those that have left it
    assert settled.mean().item() == pytest.approx(3, abs=0.15)
    assert settled.min() >= 1


def test_every_age_is_drawn_equally_often() -> None:
    held, ages = buffer(40), torch.zeros(40)
    for step, shown in enumerate(run(held, range(400), replay=5)):
        if step >= 10:  # it is full
            ages += torch.bincount(4 * step + 3 - shown["index"][4:], minlength=40)
    expected = ages.sum() / 40
    assert ((ages - expected).abs() < 5 * expected.sqrt()).all()


def test_what_is_kept_elsewhere_counts() -> None:
    held = ReplayBuffer(10 * SAMPLE_BYTES + 5, seed=0, beside=SAMPLE_BYTES)
    held.push(batch(0, 9))
    assert held.state_dict()["index"].tolist() == [4, 5, 6, 7, 8]


def test_a_copy_draws_the_same_and_leaves_the_original_alone() -> None:
    held = buffer(6)
    run(held, range(4))
    copied, before = held.copy(), held.state_dict()
    ahead = run(copied, range(4, 8))
    assert torch.equal(held.state_dict()["index"], before["index"])
    for first, second in zip(ahead, run(held, range(4, 8)), strict=True):
        assert torch.equal(first["index"], second["index"])


def test_draws_are_a_function_of_seed_epoch_and_step() -> None:
    def drawn(seed: int, epoch: int, step: int) -> list[int]:
        held = buffer(100, seed=seed)
        held.push(batch(0, 90))
        return held.extend(batch(90, 10), 3, epoch=epoch, step=step)["index"].tolist()

    before = torch.get_rng_state()
    assert drawn(0, 1, 2) == drawn(0, 1, 2)
    assert len({tuple(drawn(*key)) for key in [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1)]}) == 5
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_a_resumed_run_equals_the_uninterrupted_one(done: int) -> None:
    uninterrupted = run(buffer(), range(9))
    first = buffer()
    run(first, range(done))
    resumed = buffer()
    resumed.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    for expected, got in zip(uninterrupted[done:], run(resumed, range(done, 9)), strict=True):
        assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_buffer_is_rebuilt_by_pushing_its_samples_again() -> None:
    """Where the pixels are too many for a checkpoint, the loader reads the last `capacity` samples again."""
    uninterrupted = run(buffer(), range(9))
    rebuilt = buffer()
    for step in range(3, 6):
        rebuilt.push(batch(4 * step))
    for expected, got in zip(uninterrupted[6:], run(rebuilt, range(6, 9)), strict=True):
        assert torch.equal(expected["index"], got["index"])


def test_it_serves_the_stages_after_those_that_replay() -> None:
    held = buffer()
    assert run(held, range(1), replay=1)[0]["index"].tolist() == [0, 1, 2, 3]
    assert set(run(held, range(1, 2), replay=2)[0]["index"].tolist()) <= set(range(8))


def test_a_batch_of_which_nothing_could_be_read_passes() -> None:
    held = buffer()
    assert len(held.extend(batch(0, 0), 3, epoch=0, step=0)["index"]) == 0
    assert held.extend(batch(0, 2), 2, epoch=0, step=1)["index"][:2].tolist() == [0, 1]


def test_too_little_memory_is_explained() -> None:
    with pytest.raises(UserError, match=r"a replay buffer of 50 bytes cannot hold one sample of 68"):
        ReplayBuffer(50, seed=0).push(batch(0))
