"""A node that is taken back with notice: its metadata service, the watcher, Ray, and the workers of a run, or a
trial of one worker."""

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


TRIAL = """
import subprocess, sys, threading, time
from pathlib import Path
import ray, torch
from ray import tune
from ray.cluster_utils import Cluster
from metadata_service import serving
from raytrain_speedup.config import load_experiment
from raytrain_speedup.tuning.trials import guarded

NOTICE = 20
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = {node.node_id: node for node in [cluster.add_node(num_cpus=1) for _ in range(2)]}
ray.init(address=cluster.address, log_to_driver=False)
steps = Path("steps").absolute()


def slow(config):
    from raytrain_speedup.engine.loop import Loop
    from raytrain_speedup.scaling.tune_trial import trial
    train_step, node = Loop.train_step, ray.get_runtime_context().get_node_id()

    def counted(self, *arguments, **named):
        train_step(self, *arguments, **named)
        with steps.open("a") as file:
            print(node, self.tally.steps_taken, file=file)
        time.sleep(config["pause"])

    Loop.train_step = counted
    trial(config)


def take_back(service):
    while not steps.exists() or len(steps.read_text().splitlines()) < 20:
        time.sleep(0.1)
    node = steps.read_text().split()[0]
    service.deadline = time.time() + NOTICE
    watch = [sys.executable, "-m", "raytrain_speedup.cli", "cluster", "watch", "--metadata", service.address]
    subprocess.run([*watch, "--node", node, "--address", cluster.address], check=True, stdout=subprocess.DEVNULL)
    time.sleep(max(service.deadline - time.time(), 0))
    cluster.remove_node(nodes[node], allow_graceful=False)
    print("killed before its end:", not list(Path("taken").glob("trial/checkpoint-*/model.pt")))


def run(folder, pause):
    place = str(Path(folder).absolute())
    config = {"experiment": experiment.to_dict(), "folder": "trial", "storage": place, "pause": pause}
    failures = tune.FailureConfig(max_failures=0)
    [result] = tune.Tuner(
        tune.with_resources(guarded(slow), {"cpu": 1}),
        param_space=config,
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(name=folder, storage_path=place, verbose=0, failure_config=failures),
    ).fit()
    print("ended:", result.error, result.metrics.get("error"))
    return torch.load(sorted(Path(folder).glob("trial/checkpoint-*/model.pt"))[-1], weights_only=True)


experiment = load_experiment("digits", {
    "data.image_size": 8, "data.augment": "none", "data.val_fraction": 0.5, "pruning.method": "random",
    "train.epochs": 30, "train.batch_size": 34, "train.eval_every": 0, "train.checkpoint_every": 30,
})
with serving("AWS") as service:
    thread = threading.Thread(target=take_back, args=(service,))
    thread.start()
    taken = run("taken", 0.1)
    thread.join()
taken_steps = [line.split() for line in steps.read_text().splitlines()]
print("nodes:", len({node for node, _ in taken_steps}))
print("trained twice:", len(taken_steps) - len({number for _, number in taken_steps}))
whole = run("whole", 0)
print("the same weights:", all(torch.equal(whole[name], taken[name]) for name in whole))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trial_of_one_worker_goes_on_elsewhere_with_nothing_lost(tmp_path: Path) -> None:
    """Its node is killed 20 s after the notice, when the trial has 20 s of steps to go. No failure is allowed."""
    paths = f"{Path(__file__).parent}:{Path(__file__).parents[2]}"
    found = subprocess.run(
        [sys.executable, "-c", TRIAL],
        capture_output=True,
        text=True,
        timeout=540,
        env=plain_environment() | {"PYTHONPATH": paths},
        cwd=tmp_path,
    )
    told = found.stdout[-2000:] + found.stderr[-2000:]
    assert found.stdout.count("ended: None None\n") == 2, told
    assert "killed before its end: True" in found.stdout, told
    assert "nodes: 2\n" in found.stdout and "trained twice: 0\n" in found.stdout, told
    assert "the same weights: True" in found.stdout, told
