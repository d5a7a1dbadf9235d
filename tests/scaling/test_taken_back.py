"""A node that is taken back with notice: its metadata service, the watcher, Ray, and the workers of a run."""

import subprocess
import sys
from pathlib import Path

import pytest
from outside_ray import plain_environment

NODES = """
import logging, subprocess, sys, threading, time
from pathlib import Path
import ray, torch
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from metadata_service import serving
from raytrain_speedup.config import load_experiment
from raytrain_speedup.scaling.launch import launch

logging.basicConfig(stream=sys.stdout, format="said: %(message)s", level=logging.WARNING)
NOTICE = 25
head = {"num_cpus": 0, "resources": {"tune_driver": 8}, "include_dashboard": True}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = {node.node_id: node for node in [cluster.add_node(num_cpus=1) for _ in range(3)]}
ray.init(address=cluster.address, log_to_driver=False)


def take_back(service):
    alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    node = list_actors(filters=alive, detail=True)[-1].node_id
    service.deadline = time.time() + NOTICE
    watch = [sys.executable, "-m", "raytrain_speedup.cli", "cluster", "watch", "--metadata", service.address]
    subprocess.run([*watch, "--node", node, "--address", cluster.address], check=True, stdout=subprocess.DEVNULL)
    time.sleep(max(service.deadline - time.time(), 0))
    cluster.remove_node(nodes[node], allow_graceful=False)
    print("killed before its end:", not list(Path("noticed").glob("checkpoint-*/model.pt")))


def run(folder, at=None, disturb=None):
    threads = []

    def listen(kind, metrics):
        if kind == "report" and metrics.get("epoch") == at and not threads:
            threads.append(threading.Thread(target=disturb))
            threads[0].start()

    metrics = launch(load_experiment("digits", keys), Path(folder), listen).to_dict()
    for thread in threads:
        thread.join()
    print("shown:", metrics["samples_shown"])
    return torch.load(sorted(Path(folder).glob("checkpoint-*/model.pt"))[-1], weights_only=True)


keys = {
    "data.image_size": 8, "data.augment": "none", "data.val_fraction": 0.5, "pruning.method": "random",
    "train.epochs": 60, "train.batch_size": 34, "train.eval_every": 0, "train.checkpoint_every": 60,
    "scaling.workers": 2, "scaling.start_timeout": 300, "scaling.max_failures": 0,
}
with serving("AWS") as service:
    noticed = run("noticed", 5, lambda: take_back(service))
whole = run("whole")
print("the same weights:", all(torch.equal(whole[name], noticed[name]) for name in whole))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_go_on_elsewhere_with_nothing_lost(tmp_path: Path) -> None:
    """The node is killed 25 s after the notice. No checkpoint is due before the end, no failure allowed."""
    found = subprocess.run(
        [sys.executable, "-c", NODES],
        capture_output=True,
        text=True,
        timeout=840,
        env=plain_environment() | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"},
        cwd=tmp_path,
    )
    said = [line for line in found.stdout.splitlines() if line.startswith("said: ")]
    told = found.stdout[-2000:] + found.stderr[-2000:]
    assert len(said) == 2 and "is taken back by the cloud (notice of " in said[0], told
    assert (
        said[0].endswith(f"the checkpoint is {Path('noticed') / 'checkpoint-000000'}")
        or tmp_path.name in said[0]
    )
    assert said[1].endswith("the workers went on from checkpoint-000000; 0 steps (0.0 s) lost"), told
    assert "killed before its end: True" in found.stdout, told
    assert "the same weights: True" in found.stdout, told
