"""Schedules by name: loaded from a tracker and from a server without MLflow, listed, compared and promoted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raytrain_speedup import cli
from raytrain_speedup.config import load_experiment
from raytrain_speedup.schedule import Schedule, load_schedule
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.export import export
from raytrain_speedup.tracking.schedules import promote
from raytrain_speedup.tracking.tracker import Tracker, split_name

KEYS = {"pruning.method": "infobatch"}


@pytest.fixture
def published(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> Callable[[float], Schedule]:
    """Export a proven schedule with a prune ratio."""
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)

    def new(ratio: float, loss: float = 0.0) -> Schedule:
        for seed in range(3):
            keys = KEYS | {"pruning.prune_ratio": ratio}
            run = write("winner", seed, keys=keys, accuracy=97.0 - loss + seed, train_seconds=10 * ratio)
        return export(run, tmp_path / f"{ratio}.yaml", tracker.uri, unproven=True)

    return new


def test_by_name_and_by_run(
    tracker: Tracker, experiment_name: str, published: Callable[..., Schedule]
) -> None:
    name = f"{experiment_name}-schedule"
    first, second, lossy = published(0.3), published(0.4), published(0.5, 9.0)
    for uri, expected in {
        f"models:/{name}/1": first,
        f"models:/{name}/2": second,
        f"models:/{name}@proven": second,
        f"runs:/{first.tuned_on.run_id}": first,
        f"runs:/{first.tuned_on.run_id[:10]}": first,
    }.items():
        assert load_schedule(uri, tracking_uri=tracker.uri) == expected
    with pytest.warns(UserWarning, match="not proven lossless"):
        assert load_schedule(f"models:/{name}", tracking_uri=tracker.uri) == lossy
    for uri, message in {
        f"models:/{name}@production": "no version '@production' at .*; expected 1, 2 @proven, 3; expected models",
        "models:/nothing/1": "no schedule of this name",
        "runs:/" + "0" * 32: "schedule/schedule.yaml cannot be read",
    }.items():
        with pytest.raises(UserError, match=message):
            load_schedule(uri, tracking_uri=tracker.uri)


def test_an_alias_is_promoted_to_what_is_proven(
    tracker: Tracker, experiment_name: str, published: Callable[..., Schedule],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name = f"{experiment_name}-schedule"
    first, _, _ = published(0.3), published(0.4), published(0.5, 9.0)
    where = ["--tracking-uri", tracker.uri]
    cli.app(["schedules", "promote", f"{name}/1", "production", *where], standalone_mode=False)
    assert load_schedule(f"models:/{name}@production", tracking_uri=tracker.uri) == first
    with pytest.raises(UserError, match=r"/3: not proven \(.*lossy\); expected a lossless schedule"):
        promote(tracker, f"{name}/3", "production")
    assert promote(tracker, name, "@production", unproven=True).version == 3
    assert tracker.version(name, "@production").version == 3, "and at no other"
    capsys.readouterr()
    monkeypatch.setattr(cli.console, "_width", 200)
    cli.app(["schedules", "--name", name, *where], standalone_mode=False)
    listed = capsys.readouterr().out
    assert "@production" in listed and "digits" in listed and listed.count(f"{name}/") == 3
    cli.app(["schedules", "compare", f"{name}/1", f"{name}@proven", *where], standalone_mode=False)
    compared = capsys.readouterr().out.splitlines()
    (ratio,) = [line for line in compared if "pruning.prune_ratio" in line]
    assert "0.3" in ratio and "0.4" in ratio
    assert not any("curriculum.method" in line for line in compared), "of what differs alone"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a@b", ("a", "@b")),
        ("a/3", ("a", "3")),
        ("a", ("a", "latest")),
        ("a/b", ("a/b", "latest")),
        ("a/b/12", ("a/b", "12")),
        ("a/b@c", ("a/b", "@c")),
    ],
)
def test_names(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


@pytest.fixture
def server(tracker: Tracker) -> Iterator[str]:
    """A real MLflow server on the tests' database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        tracker.uri,
        "--port",
        str(port),
    ]
    command += ["--host", "127.0.0.1", "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGTERM)


def test_a_server_needs_no_mlflow_here(
    tracker: Tracker, experiment_name: str, published: Callable[..., Schedule], server: str
) -> None:
    """The same schedules through REST where MLflow cannot be imported, and one line for what there is not."""
    name = f"{experiment_name}-schedule"
    first, second = published(0.3), published(0.4)
    program = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from raytrain_speedup.schedule import load_schedule\n"
        "from raytrain_speedup.settings import UserError\n"
        "for uri in sys.argv[2:]:\n"
        "    try: print(load_schedule(uri, tracking_uri=sys.argv[1]).pruning.prune_ratio)\n"
        "    except UserError as error: print(error)\n"
    )
    uris = [
        f"models:/{name}/1",
        f"models:/{name}@proven",
        f"models:/{name}",
        f"runs:/{first.tuned_on.run_id}",
    ]
    missing = [f"models:/{name}@production", "models:/nothing", "runs:/" + "0" * 32]

    def told(where: str, *asked: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program, where, *asked], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    answers = told(server, *uris, *missing)
    assert [float(answer) for answer in answers[:4]] == [0.3, 0.4, 0.4, 0.3]
    assert len(answers) == 7 and all(
        answer.startswith(uri) for uri, answer in zip(missing, answers[4:], strict=True)
    )
    assert "alias" in answers[4] and "no schedule of this name" in answers[5]
    (line,) = told(tracker.uri, uris[0])
    assert "cannot be read without MLflow; expected `pip install mlflow`, a tracking server" in line
    assert load_schedule(uris[1], tracking_uri=server) == second, "and with it"


def test_plain_files_keep_schedules_too(tmp_path: Path) -> None:
    tracker = open_tracker(f"json:{tmp_path}")
    with pytest.raises(UserError, match="no schedule of this name at json:.*; expected one of: none yet"):
        load_schedule("models:/x@production", tracking_uri=tracker.uri)


def test_elsewhere_than_tuned_is_refused(published: Callable[..., Schedule], tmp_path: Path) -> None:
    """Naming each key of data, model and budget, and no other."""
    published(0.4)
    file = tmp_path / "0.4.yaml"
    same = load_experiment(
        "digits", {"train.seed": 9, "train.lr": 0.7, "data.num_workers": 1, "data.val_fraction": 0}
    )
    assert load_schedule(file, for_experiment=same).pruning.method == "infobatch"
    other = same.with_overrides({"train.epochs": 999, "model.name": "resnet20", "data.image_size": 12})
    with pytest.raises(UserError) as told:
        load_schedule(file, for_experiment=other)
    text = str(told.value)
    assert text.startswith(
        f"{file}: tuned on something else: data.image_size is 16 there and 12 here; model.name is"
    )
    assert "; train.epochs is 20.0 there and 999.0 here." in text and "allow_transfer=True" in text
    assert text.count(" there and ") == 3
    assert load_schedule(file, for_experiment=other, allow_transfer=True).proven
    with pytest.raises(UserError, match="data.source is 'digits' there and 'cifar10' here"):
        load_schedule(file, for_experiment={"data": {"source": "cifar10"}})
    load_schedule(file, for_experiment={"train": {"epochs": same.train.epochs}})
