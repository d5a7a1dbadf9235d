"""Instructions as rows of tokens: Alpaca's files, its prompts, two tokenizers, and the ones that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refused_imports import run_without
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raytrain_speedup.config import SOURCES
from raytrain_speedup.data import TokenLoader, open_data
from raytrain_speedup.data.batch import Step
from raytrain_speedup.data.instructions import Instruction
from raytrain_speedup.data.tokens import ByteTokenizer
from raytrain_speedup.data.toy_instructions import DAYS, OPPOSITES
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError

SAMPLES = [
    {"instruction": "Name a colour.", "input": "", "output": "red"},
    {"instruction": "Translate.", "input": "drei", "output": "three"},
    {"instruction": "Grüße!", "output": "hello"},
    {"instruction": "Count.", "input": "1 2", "output": "3"},
]


def written(folder: Path, samples: list[Any], *, lines: bool = False) -> dict[str, Any]:
    """Settings of files that hold these samples."""
    text = "\n".join(map(json.dumps, samples)) if lines else json.dumps(samples)
    for name in ("train.json", "test.json"):
        (folder / name).write_text(text, encoding="utf-8")
    return {"source": "alpaca", "train": folder / "train.json", "test": folder / "test.json"}


def opened(settings: dict[str, Any]) -> Any:
    return open_data(SOURCES[settings["source"]].model_validate(settings), seed=0)


def answer_of(source: Any, index: int, size: int = 512) -> tuple[str, str]:
    """Prompt and answer as texts again, by the labels of its row."""
    ids, labels = (part[index] for part in source.rows(size))
    prompt = ids[: int((labels != -100).argmax())]
    return ByteTokenizer().decode(prompt.tolist()), ByteTokenizer().decode(labels[labels != -100].tolist())


@pytest.mark.parametrize("lines", [False, True])
def test_a_file_is_a_list_or_has_a_sample_in_every_line(tmp_path: Path, lines: bool) -> None:
    splits = opened(written(tmp_path, SAMPLES, lines=lines) | {"val_fraction": 0})
    assert (splits.inputs, splits.targets, splits.num_classes) == ("sequences", "answers", 258)
    assert len(splits.train) == len(splits.test) == 4 and splits.input_shape() == (splits.image_size,)
    asked, answer = answer_of(splits.train, 1)
    assert asked == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write "
        "a response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\n"
        "drei\n\n### Response:\n"
    )
    assert answer == "three"
    asked, answer = answer_of(splits.train, 2)
    assert asked == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nGrüße!\n\n### Response:\n"
    )
    assert answer == "hello"


def test_labels_are_the_answer_and_its_end(tmp_path: Path) -> None:
    splits = opened(written(tmp_path, SAMPLES) | {"template": "plain", "val_fraction": 0})
    ids, labels = splits.train.rows(splits.image_size)
    expected = [*b"Count. 1 2\n", *b"3", 256]
    assert splits.image_size == 24, "rows are as long as the longest sample, on a multiple of 8"
    assert ids[3].tolist() == expected + [257] * (24 - len(expected))
    assert labels[3].tolist() == [-100] * 11 + [ord("3"), 256] + [-100] * 11
    assert splits.train.lengths[3] == 13
    part = splits.train.subset(np.array([3, 1]))
    assert part.decode(0).tolist() == expected and part.locate(1) == "alpaca (train) sample 1"
    assert np.array_equal(part.rows(24)[1], labels[[3, 1]])


def test_what_is_too_long_loses_the_end_of_its_answer(tmp_path: Path) -> None:
    keys = written(tmp_path, [*SAMPLES[:1], {"instruction": "x" * 30, "output": "y"}])
    keys |= {"template": "plain", "max_length": 17, "val_fraction": 0}
    with pytest.raises(
        UserError, match=r"^data\.max_length: 17 tokens leave no room for an answer in 1 of 2 samp"
    ):
        opened(keys)
    splits = opened(keys | {"max_corrupt_fraction": 0.5})
    assert len(splits.train) == 1 and answer_of(splits.train, 0) == ("Name a colour.\n", "re")


def test_a_checkpoints_tokenizer_is_used(tmp_path: Path) -> None:
    """What transformers itself makes of the texts, with a begin before and an end after them."""
    words = {word: number for number, word in enumerate(["<s>", "</s>", "?", "Count", ".", "1", "2", "3"])}
    own = Tokenizer(models.WordLevel(words, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="?")
    fast.save_pretrained(tmp_path / "tokenizer")
    keys = written(tmp_path, SAMPLES) | {
        "template": "plain",
        "tokenizer": tmp_path / "tokenizer",
        "val_fraction": 0,
    }
    splits = opened(keys)
    assert splits.num_classes == 8
    assert splits.train.decode(3).tolist() == [0, *fast("Count. 1 2\n").input_ids, *fast("3").input_ids, 1]
    assert splits.train.pad == 1, "where a tokenizer has no padding, the end is one"
    with pytest.raises(
        UserError, match=r"^data\.tokenizer: .*tokens is no folder; expected a folder that token"
    ):
        opened(keys | {"tokenizer": tmp_path / "tokens"})
    with pytest.raises(
        UserError, match=r"^data\.tokenizer: .* cannot be read: .*; expected a folder that token"
    ):
        opened(keys | {"tokenizer": tmp_path})


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from raytrain_speedup.data.tokens import FolderTokenizer
from raytrain_speedup.models.causal_lm import build_causal_lm
for call in (lambda: FolderTokenizer(Path(".")), lambda: build_causal_lm("llama", {}, vocabulary=8)):
    try:
        call()
    except Exception as error:
        print(error)
"""
    found = run_without(("transformers",), program)
    expected = "transformers is not installed; expected pip install 'raytrain-speedup[llm]'"
    assert found.stdout.splitlines() == [f"data.tokenizer: {expected}", f"model.name: {expected}"], (
        found.stderr
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", r"data\.train: cannot read .*: Expecting .*; expected a list of objects with instruction"),
        (
            '[{"instruction": "a"}]',
            r"data\.train: .* sample 0: output is None; expected a text that is not empty",
        ),
        ('[{"instruction": "a", "output": 3}]', r"data\.train: .* sample 0: output is 3; expected a text"),
        ("[3]", r"data\.train: .* sample 0: instruction is None; expected a text"),
    ],
)
def test_a_file_that_is_no_such_thing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    keys = written(tmp_path, SAMPLES)
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(UserError, match=f"^{message}"):
        opened(keys)


def test_keys_of_images_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"augment: 'crop' is not allowed; expected it left out, texts have no pix"
    ):
        SOURCES["toy-instructions"].model_validate({"source": "toy-instructions", "augment": "crop"})


def test_two_texts_that_differ_in_a_letter_are_no_longer_the_same_data(tmp_path: Path) -> None:
    first = opened(written(tmp_path, SAMPLES)).fingerprint
    assert opened(written(tmp_path, SAMPLES, lines=True)).fingerprint == first
    for change in ({"output": "tree"}, {"input": "drei "}):
        changed = [SAMPLES[0], SAMPLES[1] | change, *SAMPLES[2:]]
        assert opened(written(tmp_path, changed)).fingerprint != first


def solved(sample: Instruction) -> str:
    """The answer, found in another way."""
    given = sample.input
    if sample.instruction == "Look up:":
        *table, wanted = given.split()
        return dict(entry.split("=") for entry in table)[wanted]
    return {
        "Say the opposite:": lambda: OPPOSITES[given],
        "Which day is next?": lambda: (DAYS + DAYS)[DAYS.index(given) + 1],
        "Count on:": lambda: str(int(given) + 1),
        "Repeat:": lambda: given,
        "Reverse:": lambda: "".join(reversed(given)),
        "Add:": lambda: str(sum(map(int, given.split()))),
    }[sample.instruction]()


def test_made_up_instructions_are_right_and_the_same_again() -> None:
    settings = SOURCES["toy-instructions"].model_validate(
        {"source": "toy-instructions", "train_samples": 600, "easy": 0.75}
    )
    samples = settings.samples()
    assert samples == settings.samples() and len(samples["test"]) == 400
    assert samples["train"][:400] != samples["test"]
    assert all(sample.output == solved(sample) for part in samples.values() for sample in part)
    easy = [sample for sample in samples["train"] if sample.kind < 3]
    assert len(easy) / 600 == pytest.approx(0.75, abs=0.05)
    assert len(set(easy)) == len(OPPOSITES) + len(DAYS) + 10, "all there are, again and again"
    hard = [sample for sample in samples["train"] if sample.kind >= 3]
    assert len(set(hard)) > 0.95 * len(hard)
    other = settings.model_copy(update={"data_seed": 1}).samples()
    assert other["train"] != samples["train"]


def test_a_stage_shows_the_end_of_each_sample(tmp_path: Path) -> None:
    splits = opened(written(tmp_path, SAMPLES) | {"template": "plain", "val_fraction": 0})
    loader = TokenLoader(splits, device="cpu")
    index, stage = torch.tensor([1, 3]), Stage(ends_at=1.0, size=8)
    (batch,) = loader.train_batches([Step(0, index, torch.tensor([2.0, 1.0]), 2, 0.0, stage)], epoch=0)
    translated, counted = b"Translate. drei\nthree", b". 1 2\n3"
    assert batch["inputs"].tolist() == [[*translated[-7:], 256], [*counted, 256]]
    assert batch["target"].tolist() == [[-100, -100, *b"three", 256], [-100] * 6 + [ord("3"), 256]]
    assert batch["length"].tolist() == [8, 8] and batch["weight"].tolist() == [2.0, 1.0]
    whole = list(loader.eval_batches("test", batch_size=3))
    assert [part["index"].tolist() for part in whole] == [[0, 1, 2], [3]]
    assert whole[1]["length"].tolist() == [13] and whole[1]["inputs"].shape == (1, 24)
    shared = [TokenLoader(splits, device="cpu", rank=rank, world=2) for rank in (0, 1)]
    parts = [next(each.eval_batches("test", batch_size=4))["index"].tolist() for each in shared]
    assert parts == [[0, 2], [1, 3]]
