"""Instruction tuning: losses and metrics by transformers, sample by sample; and runs of the whole engine."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_two_ranks
from torch import Tensor

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.engine.identity import identity
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.methods.pruning.coreset import graph_cut_bins
from raytrain_speedup.models.causal_lm import CausalLM, build_causal_lm
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.causal_lm import AnswerLoss, first_fit
from raytrain_speedup.tracking.run_log import settings_of

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from engine_runs import CPU, Diary, WorkerDiary, run, same, trained, untimed, weights

TINY = {
    "data.train_samples": 100,
    "data.test_samples": 20,
    "data.val_fraction": 0.2,
    "model.options": {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"max_position_embeddings": 64, "lora_rank": None},
    },
    "train.epochs": 4,
    "train.batch_size": 16,
    "train.eval_every": 0,
    "pruning.anneal_from": 0.75,
}
DQ = {"method": "dq", "fraction": 0.75, "bins": 4, "within": {"method": "infobatch", "anneal_from": 0.75}}
LORA = {"model.options": {**TINY["model.options"], "lora_rank": 2, "lora_targets": ["q_proj", "down_proj"]}}


def tiny(overrides: dict[str, Any] | None = None) -> Experiment:
    overrides = overrides or {}
    keys = {key: value for key, value in TINY.items() if "pruning" not in overrides or "pruning" not in key}
    return load_experiment("toy-instructions", keys | overrides)


def network() -> CausalLM:
    torch.manual_seed(0)
    options = {**TINY["model.options"], "num_hidden_layers": 2, "vocab_size": 40}
    return build_causal_lm("llama", options, vocabulary=40).double().eval()


def batch_of(
    lengths: list[int], answers: list[int], size: int = 12
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Random samples of these lengths, the last `answers` tokens of which are learnt; and the samples alone."""
    draws = torch.Generator().manual_seed(1)
    alone = [torch.randint(0, 39, (length,), generator=draws) for length in lengths]
    ids, labels = torch.full((len(lengths), size), 39), torch.full((len(lengths), size), -100)
    for row, (sample, answer) in enumerate(zip(alone, answers, strict=True)):
        ids[row, : len(sample)] = sample
        labels[row, len(sample) - answer : len(sample)] = sample[len(sample) - answer :]
    return {"inputs": ids, "target": labels, "length": torch.tensor(lengths)}, alone


def nats_of(model: CausalLM, sample: Tensor, answer: int) -> Tensor:
    """Of the tokens of the answer, by transformers on the sample alone."""
    logits = model.network(input_ids=sample[None], use_cache=False).logits[0]
    told = logits.log_softmax(1)[:-1].gather(1, sample[1:, None]).squeeze(1)
    return -told[len(told) - answer :]


@pytest.mark.parametrize("packing", [False, True])
def test_a_loss_is_the_mean_over_the_answer_of_a_sample_alone(packing: bool) -> None:
    model, answers = network(), [3, 1, 5, 2, 4]
    batch, alone = batch_of([7, 5, 12, 3, 6], answers)
    asked: list[tuple[int, ...]] = []

    def asking(*inputs: Tensor) -> Tensor:
        asked.append(tuple(inputs[0].shape))
        return model(*inputs).double()

    found = AnswerLoss(packing=packing).losses(asking, batch)
    expected = [nats_of(model, sample, answer) for sample, answer in zip(alone, answers, strict=True)]
    means = torch.stack([nats.mean() for nats in expected])
    torch.testing.assert_close(found.losses.double(), means, rtol=1e-6, atol=0)
    assert torch.equal(found.losses, found.scores)
    assert asked == [(3 if packing else 5, 12)] and found.rows == asked[0][0]
    gradients = []
    for losses in (found.losses, means):
        model.zero_grad()
        losses.sum().backward()
        gradients.append([each.grad.clone() for each in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("packing", [False, True])
def test_metrics_are_of_tokens_and_of_greedy_answers(packing: bool) -> None:
    """Half of the answers are what the model itself generates; of another one the first token is."""
    model, answers = network(), [3, 2, 4, 3]
    batch, alone = batch_of([7, 5, 9, 6], answers)
    for row in (0, 2):
        prompt = alone[row][: len(alone[row]) - answers[row]]
        whole = model.network.generate(
            prompt[None], do_sample=False, max_new_tokens=answers[row], eos_token_id=None
        )
        alone[row] = whole[0]
        batch["inputs"][row, : len(whole[0])] = whole[0]
        answered = slice(len(prompt), len(whole[0]))
        batch["target"][row, answered] = whole[0, answered]
    prompt = alone[1][:3]
    first = model.network(input_ids=prompt[None]).logits[0, -1].argmax()
    alone[1][3] = batch["inputs"][1, 3] = batch["target"][1, 3] = first
    task = AnswerLoss(packing=packing)
    totals = task.totals(model, {name: rows[:2] for name, rows in batch.items()})
    totals += task.totals(model, {name: rows[2:] for name, rows in batch.items()})
    found = task.metrics(totals, "test")
    nats = [nats_of(model, sample, answer) for sample, answer in zip(alone, answers, strict=True)]
    assert found["perplexity"] == pytest.approx(math.exp(torch.cat(nats).detach().mean()), rel=1e-6)
    assert found["loss"] == pytest.approx(sum(each.mean().item() for each in nats) / 4, rel=1e-6)
    assert found["exact_match"] == 50
    assert (task.ranking.name, task.ranking.direction) == ("perplexity", "min")


def test_a_sample_without_an_answer_has_no_score() -> None:
    """It is not taken for an easy one."""
    batch, _ = batch_of([4, 6], [2, 3])
    batch["target"][0] = -100
    found = AnswerLoss().losses(network(), batch)
    assert found.losses[0] == 0 and found.scores[0].isnan() and found.scores[1] == found.losses[1] > 0


def test_features_are_mean_embeddings_of_the_sample() -> None:
    model = network()
    batch, alone = batch_of([7, 5, 12], [1, 1, 1])
    table = model.network.model.embed_tokens.weight
    expected = torch.stack([table[sample].mean(0) for sample in alone]).float()
    torch.testing.assert_close(AnswerLoss().features(model, batch), expected)


def test_samples_that_are_packed_neither_overlap_nor_leave_much_room() -> None:
    """As few rows as there can be, for lengths few enough to try all ways; else at most 11/9 of the least."""
    draws = torch.Generator().manual_seed(0)
    for count in (1, 4, 5, 6, 200):
        lengths = torch.randint(1, 11, (count,), generator=draws).tolist()
        spots = first_fit(lengths, 10)
        taken = [
            (row, start + each) for (row, start), n in zip(spots, lengths, strict=True) for each in range(n)
        ]
        assert len(set(taken)) == sum(lengths) and max(place for _, place in taken) < 10
        rows = 1 + max(row for row, _ in spots)
        if count <= 6:
            least = min(rows_in_turn(order, 10) for order in itertools.permutations(lengths))
            assert rows == least
        assert rows <= 11 / 9 * math.ceil(sum(lengths) / 10) + 4


def rows_in_turn(lengths: tuple[int, ...], size: int) -> int:
    rows, room = 0, 0
    for length in lengths:
        rows, room = (rows, room - length) if length <= room else (rows + 1, size - length)
    return rows


# --- runs ---


METHODS: dict[str, dict[str, Any]] = {
    "infobatch, packed": {"task.packing": True, "train.accumulate": 2},
    "dq, infobatch, lora": {"pruning": DQ, **LORA},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_resumed_bit_for_bit(method: str, tmp_path: Path) -> None:
    experiment = tiny(METHODS[method])
    whole, expected, _ = trained(experiment, tmp_path / "whole")
    assert whole["metric"] == "perplexity" and 1 < whole["perplexity"] < 300
    assert whole["passes_saved"] > 0.03 and whole["val_exact_match"] >= 0 and whole["reference_steps"] > 0
    with pytest.raises(Stopped):
        run(experiment, Diary(tmp_path / "parts", stop_after=7), device=CPU)
    again, resumed, _ = trained(experiment, tmp_path / "parts")
    assert untimed(again) == untimed(whole) and same(resumed, expected)


def test_base_weights_stay_and_the_coreset_alone_is_shown(tmp_path: Path) -> None:
    """With features of the network as it was drawn, and the bins of those."""
    experiment = tiny({"pruning": DQ, **LORA, "train.checkpoint_every": 1})
    found, after, diary = trained(experiment, tmp_path)
    state = torch.load(diary.latest() / "run.pt", weights_only=True)
    names = [name for name in after if "lora_" not in name]
    torch.manual_seed(0)
    fresh = build_causal_lm("llama", LORA["model.options"], vocabulary=258)
    assert names and all(torch.equal(after[name], fresh.state_dict()[name]) for name in names)
    assert len(state["optimizer"]["state"]) == len(after) - len(names)
    table = fresh.embeddings()
    train = open_data(experiment.data, seed=0).train
    features = torch.stack(
        [table[train.decode(index).astype("int64")].mean(0) for index in range(len(train))]
    )
    coreset = set(state["pruner"]["coreset"].tolist())
    assert [len(coreset & set(members.tolist())) for members in graph_cut_bins(features.detach(), 4)] == [
        15
    ] * 4
    assert found["samples_shown"] < 4 * 60 and found["passes_saved"] > 0.25


def worker(rank: int, folder: Path) -> dict[str, Any]:
    return run(tiny({"pruning": DQ, "task.packing": True}), WorkerDiary(folder, rank), device=CPU)


def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    """They choose the same coreset, and prune alike; each packs its own part of a step."""
    whole, expected, _ = trained(tiny({"pruning": DQ, "task.packing": True}), tmp_path / "one")
    (tmp_path / "two").mkdir()
    first, found = on_two_ranks(worker, tmp_path / "two")
    torch.testing.assert_close(weights(Diary(tmp_path / "two")), expected, rtol=1e-3, atol=2e-5)
    assert found["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-4)
    assert found["samples_shown"] == whole["samples_shown"]
    assert found["train_flops"] == first["train_flops"] >= whole["train_flops"]


def flops_of_a_row(length: int, tokens: int = 258) -> float:
    """Of the tiny network: two for each weight and token, attention over whole rows, and twice as much backwards
    (but for the gradient of the first layer's input: embeddings are looked up)."""
    hidden, inner = 16, 24
    linear = 4 * hidden**2 + 3 * hidden * inner + hidden * tokens
    return 3 * (2 * length * linear + 2 * 2 * length**2 * hidden)


def test_flops_are_those_of_the_rows_padding_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    ask = AnswerLoss.losses

    def counting(self: AnswerLoss, model: Any, batch: dict[str, Tensor]) -> Any:
        found = ask(self, model, batch)
        if "weight" in batch and batch["inputs"].device.type == "cpu":
            rows.append(found.rows)
        return found

    monkeypatch.setattr(AnswerLoss, "losses", counting)
    padded = tiny({"pruning": {"method": "none"}, "train.checkpoint_every": 0, "task.packing": False})
    length = open_data(padded.data, seed=0).image_size
    found = run(padded, Diary(tmp_path), device=CPU)
    assert found["samples_shown"] == 4 * 80
    assert found["train_flops"] == pytest.approx(4 * 80 * flops_of_a_row(length), rel=0.01)
    rows.clear()
    packed = run(padded.with_overrides({"task.packing": True}), Diary(tmp_path), device=CPU)
    trained_rows = sum(rows[1:])  # the first is of the warm-up
    assert trained_rows < 0.75 * 4 * 80
    assert packed["train_flops"] == pytest.approx(trained_rows * found["train_flops"] / (4 * 80), rel=1e-9)
    assert packed["perplexity"] == pytest.approx(found["perplexity"], rel=1e-3)


def test_a_curriculum_of_lengths_spends_the_budget_on_more_samples(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "pruning": {"method": "none"},
        "curriculum.method": "length",
        "curriculum.steps": 2,
    }
    keys["task.packing"] = False
    found, _, diary = trained(tiny(keys), tmp_path)
    assert found["samples_shown"] > 1.1 * 4 * 80 and diary.epochs[-1]["progress"] == 1
    assert found["compute_spent"] == pytest.approx(4, abs=0.5)
    length = open_data(tiny().data, seed=0).image_size
    whole = flops_of_a_row(length)
    assert found["train_flops"] == pytest.approx(found["compute_spent"] * 80 * whole, rel=0.01)


def test_a_row_names_the_method_within() -> None:
    experiment = tiny({"pruning": {**DQ, "within": {"method": "infobatch"}}})
    assert settings_of(experiment, {}) == "bins=4 fraction=0.75 within=infobatch"
    changed = tiny({"pruning": {**DQ, "within": {"method": "infobatch", "prune_ratio": 0.3}}})
    assert settings_of(changed, {}).endswith("within=infobatch(prune_ratio=0.3)")


def test_another_checkpoint_is_another_experiment(tmp_path: Path) -> None:
    """By what the files of its folder hold, wherever it is."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "a" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a" / "README.md").write_text("a model")
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def known(folder: str) -> Any:
        experiment = tiny({"model.pretrained": str(tmp_path / folder), "model.options": {}})
        return identity(experiment, "data")["model.pretrained"]

    first = known("a")
    (tmp_path / "b" / "README.md").write_text("another")
    assert first == known("b") != known("none")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"others")
    assert known("b") != first


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"curriculum.method": "efficienttrain"},
            r"curriculum\.method: 'efficienttrain' shows a part of images, and data\.source 'toy-instructions' has "
            "sequences; expected none or length",
        ),
        (
            {"task": {"kind": "classification"}},
            r"task\.kind: 'classification' needs images with classes, and data\.source 'toy-instructions' has "
            "answers; expected 'causal-lm', or other data",
        ),
        (
            {"task": {"kind": "mae", "probe_samples": 0}},
            r"task\.kind: 'mae' needs images, and data\.source 'toy-instructions' has answers",
        ),
        (
            {"model.name": "resnet8", "model.options": {}},
            r"task\.kind: causal-lm and model\.name 'resnet8' make no st",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        run(tiny(keys), Diary(tmp_path), device=CPU)


def test_images_are_refused_what_texts_have(tmp_path: Path) -> None:
    digits = load_experiment("digits", {"data.image_size": 8, "train.epochs": 1})
    length = r"curriculum\.method: 'length' shows a part of sequences, and data\.source 'digits' has images"
    dq = (
        r"pruning\.method: 'dq' chooses by features of samples, and task\.kind 'classification' has none; expected "
        r"task\.kind causal-lm, or another method"
    )
    for keys, message in {"curriculum.method=length": length, "pruning.method=dq": dq}.items():
        with pytest.raises(UserError, match=f"^{message}"):
            run(digits.with_overrides([keys]), Diary(tmp_path), device=CPU)
