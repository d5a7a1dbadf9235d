"""A sweep of a training script with a loop of its own: the example of docs/extending.md, as it stands there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from raytrain_speedup.schedule import UnprovenSchedule, load_schedule
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.export import export
from raytrain_speedup.tuning.sweep import SweepResult, confirm, sweep

pytestmark = pytest.mark.usefixtures("ray_session")

DOC = Path(__file__).parents[2] / "docs" / "extending.md"


def block(name: str) -> str:
    """A block of the page, which a comment before it names."""
    found = re.search(rf"<!-- {re.escape(name)}: .*?-->\n```\w+\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def go(file: Path, uri: str, **arguments: object) -> tuple[SweepResult, str]:
    screen = Console(file=io.StringIO(), width=150)
    result = sweep(file, tracking_uri=uri, out=file.parent, console=screen, **arguments)  # type: ignore[arg-type]
    return result, screen.file.getvalue()  # type: ignore[attr-defined]


def write(folder: Path, module: str, code: str, **keys: object) -> Path:
    """A script and its search space; `keys` replace those of the page's."""
    (folder / f"{module}.py").write_text(code)
    space = yaml.safe_load(block("my_sweep.yaml")) | {"name": module, "trainable": f"{module}:main"} | keys
    space["overrides"]["scaling.storage"] = str(folder / "runs")
    file = folder / f"{module}.yaml"
    file.write_text(yaml.safe_dump(space))
    return file


def test_a_sweep_of_a_script(tmp_path: Path, uri: str) -> None:
    """Baseline, trials, confirmation, leaderboard with speedups in reference steps, and a schedule."""
    file = write(tmp_path, "my_train", block("my_train.py"))
    result, text = go(file, uri)
    records = store.records(open_tracker(uri), "my_train")
    assert {run.state for run in records} == {"finished"}, text
    roles = [run.role for run in records]
    assert (roles.count("baseline"), roles.count("trial"), roles.count("winner")) == (5, 2, 3)
    trials = [run for run in records if run.role == "trial"]
    assert all(run.final.of("test") is None and run.final.metrics["val_accuracy"] > 50 for run in trials)
    row = next(row for row in result.rows if row.role == "winner")
    assert row.seeds == (0, 1, 2) and row.accuracy is not None and row.accuracy > 80
    assert row.comparison is not None and row.interval is not None
    if row.comparison.speedup.clock != "none":  # on a machine so busy that no time is believed, none is shown
        assert row.comparison.speedup.clock == "reference steps"
        assert row.speedup is not None and row.speedup_interval is not None
    else:
        assert "reference step varied" in row.comparison.speedup.disturbed and row.speedup is None
    assert row.passes_saved is not None and 0.02 < row.passes_saved < 0.5
    winner = next(run for run in records if run.role == "winner")
    shown = pytest.approx((1 - winner.final.passes_saved) * 4 * 1200)
    assert winner.final.costs.samples_shown == shown
    out = tmp_path / "exported.yaml"
    export(row.run_id, out, uri, unproven=True)
    with pytest.warns(UnprovenSchedule) if row.verdict != "lossless" else contextlib.nullcontext():
        schedule = load_schedule(out)
    assert schedule.pruning.prune_ratio == pytest.approx(winner.params["pruning.prune_ratio"])  # type: ignore[attr-defined]
    assert schedule.tuned_on.data["source"] == "digits"
    assert schedule.tuned_on.train["settings"] == {"lr": 0.05, "width": 32}
    assert (result.schedule is not None) == (row.verdict == "lossless")

    (tmp_path / "my_train.py").write_text(block("my_train.py") + "\n# edited\n")
    with pytest.raises(UserError, match="holds no sweep of these settings"):
        go(file, uri, resume=True)
    (tmp_path / "my_train.py").write_text(block("my_train.py"))
    again, _ = go(file, uri, resume=True, trials=3)
    assert sum(len(row.run_ids) for row in again.rows) > sum(len(row.run_ids) for row in result.rows)
    after = store.records(open_tracker(uri), "my_train")
    assert {run.run_id for run in records} < {run.run_id for run in after}
    new = [run.role for run in after if run.run_id not in {run.run_id for run in records}]
    assert new in (["trial"], ["trial", *["winner"] * 3]), (
        "only the new trial ran, and won where it is cheaper"
    )


def test_a_run_of_a_script_is_confirmed(tmp_path: Path, uri: str) -> None:
    """The setting of a single run against its baseline, in a sweep of its own."""
    code = "import time\n\n\ndef main(run):\n    with run.training():\n        time.sleep(run.settings['pause'])\n"
    code += "    return {'test_accuracy': 90 + run.seed, 'val_accuracy': 90}\n"
    search = {"settings.pause": {"type": "float", "low": 0.01, "high": 0.02}}
    keys = {"settings": {"pause": 0.2}, "trial": {}, "search": search, "seeds": [0]}
    file = write(tmp_path, "pausing", code, trials=1, confirm={"winners": 0}, **keys)
    result, _ = go(file, uri)
    trial = next(row for row in result.rows if row.role == "trial")
    screen = Console(file=io.StringIO(), width=150)
    found = confirm(trial.run_id[:8], max_seeds=3, tracking_uri=uri, out=tmp_path, console=screen)
    row = next(row for row in found.rows if row.role == "winner")
    assert row.seeds == (0, 1, 2) and row.difference == 0 and row.speedup is not None and row.speedup > 1
    assert row.comparison is not None and row.comparison.speedup.clock == "wall seconds"


FAULTY = """
import time

import torch


def main(run):
    fault = run.settings["fault"]
    with run.training():
        time.sleep(0.01)
    if fault == 1:
        raise ArithmeticError("the loss went away")
    run.report(progress=0.5, val_accuracy=float("nan") if fault == 2 else 90.0)
    if fault == 3:
        run.report(progress=0.75, vall_accuracy=90.0)
    if fault == 4:
        return None
    return {"val_accuracy": torch.tensor(91.0), "test_accuracy": 99.0}
"""


def test_scripts_that_fail(tmp_path: Path, uri: str) -> None:
    """Each fault is a line of the table and of MLflow; the sweep goes on, and the test split stays unseen."""
    file = write(
        tmp_path,
        "faulty",
        FAULTY,
        settings={"fault": 0},
        trial={},
        search={"settings.fault": {"type": "int", "low": 1, "high": 5}},
        points_to_evaluate=[{"settings.fault": fault} for fault in (1, 2, 3, 4, 5)],
        trials=5,
        seeds=[0],
        confirm={"winners": 0},
    )
    _, text = go(file, uri)
    runs = {
        run.params["settings.fault"]: run
        for run in store.records(open_tracker(uri), "faulty")
        if run.role == "trial"
    }
    expected = {
        1: "trainable: faulty:main failed: ArithmeticError: the loss went away "
        f"({tmp_path / 'faulty.py'}, line 12)",
        2: "run.report: val_accuracy: nan is not allowed; expected a finite number",
        3: "run.report: vall_accuracy: unknown name; expected one of val_..., train_...",
        4: "trainable: faulty:main returned NoneType and did not finish; expected run.finish(...) or a dict of "
        "metrics at its end",
    }
    for fault, line in expected.items():
        assert (runs[fault].state, runs[fault].reason) == ("failed", line)
        assert f"failed: {line}" in text
    assert runs[5].state == "finished"
    final = runs[5].final
    assert final.of("validation") == 91.0 and final.of("test") is None
    assert final.costs.reference_steps is None and final.passes_saved == 0


def test_a_baseline_without_the_metric(tmp_path: Path, uri: str) -> None:
    code = FAULTY.replace('"val_accuracy": torch', '"val_top5": torch').replace("val_accuracy=", "val_top1=")
    file = write(tmp_path, "misnamed", code, settings={"fault": 0}, objectives={"val_top3": "max"})
    with pytest.raises(
        UserError,
        match=r"the script has no metric 'val_top3', which the search is tuned by; did you mean 'val_top",
    ):
        go(file, uri)
