"""The README's snippets run as they stand, one after another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raytrain_speedup.schedule import Schedule, TunedOn, save_schedule

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_snippets_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, tuned = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    where = TunedOn(
        experiment="digits",
        run_id="0123456789abcdef",
        data={"source": "digits"},
        model={"name": "resnet8"},
        train={"epochs": 20.0},
        workers=1,
        hardware="1 x a desk, fp32",
        package_version="0.1.0",
    )
    methods = {"pruning": {"method": "infobatch"}, "curriculum": {"method": "none"}}
    save_schedule(
        Schedule.model_validate({"version": 1, "tuned_on": where, **methods}), tmp_path / "schedule.yaml"
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for snippet in (alone, tuned):
        exec(snippet, names)
        assert names["pruner"].plan(5).kept < 512
    loss = names["cross_entropy"](names["model"](names["inputs"]), names["target"])
    assert loss.isfinite()


def test_there_are_two_setup_commands_at_the_top() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    assert blocks[0].strip().endswith("speedup sweep search_spaces/quickstart.yaml")
    assert blocks[1].strip().endswith("-m pytest -n 2")
    assert README.index(blocks[1]) < README.index("## ")
