"""The page on language models: its experiment and its lines run as they stand, on a checkpoint of a few weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (experiment,) = re.findall(r"<!-- alpaca.yaml: .*?-->\n```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (merging,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    Path("alpaca.yaml").write_text(experiment)
    samples = [{"instruction": "Count on", "input": f"{n}", "output": f"{n + 1}"} for n in range(64)] * 4
    for name in ("train", "test"):
        Path(f"alpaca-{name}.json").write_text(json.dumps(samples))
    words = {
        word: number for number, word in enumerate(["<s>", "</s>", "?", "Count", "on", *map(str, range(65))])
    }
    own = Tokenizer(models.WordLevel(words, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="?")
    fast.save_pretrained("llama")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(words), **shape))
    base.save_pretrained("llama")

    reporter = LocalReporter(tmp_path / "runs", lambda *_: None)
    found = run(load_experiment("alpaca.yaml"), reporter).to_dict()
    assert found["passes_saved"] > 0.5 and found["perplexity"] > 1
    latest = reporter.latest()
    assert latest is not None
    shutil.copy(latest / "model.pt", "model.pt")
    names: dict[str, Any] = {}
    exec(merging, names)
    merged = AutoModelForCausalLM.from_pretrained("merged")
    ids = torch.randint(0, len(words), (2, 9))
    torch.testing.assert_close(
        merged(input_ids=ids).logits, names["network"].eval()(ids), rtol=1e-4, atol=1e-5
    )
    assert not torch.equal(merged(input_ids=ids).logits, base(input_ids=ids).logits)
