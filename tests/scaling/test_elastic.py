"""A group of [fewest, most] workers: what is accepted, and nodes that come and go."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from outside_ray import plain_environment

from raytrain_speedup.config import ScalingSettings, load_experiment
from raytrain_speedup.scaling.cluster import require
from raytrain_speedup.scaling.group import trainer_of
from raytrain_speedup.settings import UserError
from raytrain_speedup.tuning.space import load_sweep

ELASTIC = {"scaling.workers": [2, 4]}


def test_ray_is_told_of_both_numbers(tmp_path: Path) -> None:
    scaling = load_experiment("digits", ELASTIC | {"scaling.resize_seconds": 7}).scaling
    assert (scaling.least_workers, scaling.most_workers, scaling.elastic) == (2, 4, True)
    told = trainer_of(print, scaling, name="x").scaling_config
    assert told.elasticity_enabled and (told.min_workers, told.max_workers) == (2, 4)
    assert told.elastic_resize_monitor_interval_s == 7
    fixed = trainer_of(print, ScalingSettings(workers=(3, 3)), name="x").scaling_config
    assert not fixed.elasticity_enabled and fixed.num_workers == 3
    require(scaling, {"CPU": 2})  # room for the fewest is enough
    with pytest.raises(UserError, match=r"scaling\.workers: 2 x 1 CPU is more than this machine's 1"):
        require(scaling, {"CPU": 1})


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ([4, 2], r"scaling\.workers: \[4, 2\] is not allowed; expected two numbers, \[fewest, most\]"),
        ([1, 2, 3], r"scaling\.workers: \[1, 2, 3\] is not allowed; expected two numbers"),
        ([0, 2], r"scaling\.workers: \[0, 2\] is not allowed; expected greater than or equal to 1"),
        ([], r"scaling\.workers: \[\] is not allowed; expected greater than or equal to 1"),
        (
            "many",
            r"scaling\.workers: 'many' is not allowed; expected a whole number, or two: \[fewest, most\]",
        ),
    ],
)
def test_what_is_refused(workers: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_experiment("digits", {"scaling.workers": workers})


def test_batches_need_two_samples_a_worker_and_no_even_split(tmp_path: Path) -> None:
    assert load_experiment("digits", ELASTIC | {"train.batch_size": 9}).train.batch_size == 9
    with pytest.raises(
        UserError, match=r"batch_size: 7 is too small for 4 workers x 1 .* expected 8 at least"
    ):
        load_experiment("digits", ELASTIC | {"train.batch_size": 7})


def test_a_sweep_wants_one_number(tmp_path: Path) -> None:
    search = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
    said = r"scaling\.workers: \[2, 4\] is not allowed in a sweep; expected one number"
    with pytest.raises(UserError, match=said):
        load_sweep(search, ["scaling.workers=[2, 4]"])


NODES = """
import json, os, signal, subprocess, sys
from pathlib import Path
import ray, torch
from ray.cluster_utils import Cluster
from raytrain_speedup.config import load_experiment
from raytrain_speedup.scaling.launch import launch

head = {"num_cpus": 0, "resources": {"tune_driver": 1}, "include_dashboard": True}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
start = [Path(sys.executable).with_name("ray"), "start", "--address", cluster.address, "--num-cpus", "1", "--block"]
keys = {
    "data.image_size": 8, "data.augment": "none", "data.val_fraction": 0.84, "pruning.method": "random",
    "train.epochs": 400, "train.batch_size": 33, "train.eval_every": 0, "scaling.start_timeout": 300,
    "scaling.resize_seconds": 2,
}
nodes = []


def run(folder, workers, disturb=lambda seen: None):
    seen, reports = set(), []

    def listen(kind, metrics):
        if kind == "report" and "kept_fraction" in metrics:
            seen.add(metrics["workers"])
            reports.append(dict(metrics))
            disturb(seen)

    experiment = load_experiment("digits", keys | {"scaling.workers": workers})
    metrics = launch(experiment, Path(folder), listen).to_dict()
    last = torch.load(max(Path(folder).glob("checkpoint-*")) / "run.pt", weights_only=True)
    state = {name: last[name] for name in ("epoch", "next_step", "steps_taken", "samples_shown", "workers")}
    Path(f"{folder}.json").write_text(json.dumps({"metrics": metrics, "reports": reports, "state": state}))


def come_and_go(seen):
    if not nodes:  # a second node comes
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        nodes.append(subprocess.Popen(start, start_new_session=True, **quiet))
    if 2 in seen and len(nodes) == 1:  # and is lost
        os.killpg(nodes[0].pid, signal.SIGKILL)
        nodes.append(None)


run("whole", 1)
run("elastic", [1, 2], come_and_go)
"""

COUNTED = ("samples_shown", "passes_saved", "train_flops", "compute_spent", "epoch", "progress")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_comes_and_is_lost(tmp_path: Path) -> None:
    """What was shown, epoch by epoch and in all, is what one worker shows that nothing happens to."""
    found = subprocess.run(
        [sys.executable, "-c", NODES],
        capture_output=True,
        text=True,
        timeout=840,
        env=plain_environment() | {"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stdout[-500:] + found.stderr[-2000:]
    whole, elastic = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "elastic"))
    assert whole["metrics"]["hardware"].startswith("1 x ")
    assert elastic["metrics"]["hardware"].startswith("1 then 2 then 1 x ")
    for name in COUNTED:
        assert elastic["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-12), name
    ends = [run["state"] for run in (whole, elastic)]
    for name in ("epoch", "next_step", "steps_taken", "samples_shown"):
        assert ends[0][name] == ends[1][name], name
    assert {int(epoch) for epoch in ends[1]["workers"]} == set(range(400)), "an epoch that nobody trained"

    expected = {report["epoch"]: report for report in whole["reports"]}
    assert [report["epoch"] for report in whole["reports"]] == list(range(1, 401))
    assert {report["epoch"] for report in elastic["reports"]} == expected.keys()
    for report in elastic["reports"]:  # an epoch that is lost with a node is reported again, and alike
        as_before = expected[report["epoch"]]
        assert report["samples_shown"] == as_before["samples_shown"], report["epoch"]
        assert report["kept_fraction"] == as_before["kept_fraction"], report["epoch"]
    alone = list(itertools.takewhile(lambda report: report["workers"] == 1, elastic["reports"]))
    assert 0 < len(alone) < 400, "the other node came in between"
    for report in alone:  # the same weights, as long as one worker trains
        assert report["train_loss"] == expected[report["epoch"]]["train_loss"], report["epoch"]
