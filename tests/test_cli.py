"""The command line: what it teaches, and a user's mistake as one message and exit code 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raytrain_speedup import cli
from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.experiment_file import recipes
from raytrain_speedup.explain import keys
from raytrain_speedup.settings import RunFailed, UserError

QUICK = ["data.image_size=8", "data.val_fraction=0.84", "train.batch_size=64", "train.threads=1"]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `speedup` in this process; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["speedup", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def program(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """`speedup` as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it for whoever connects, as other tests do
    return subprocess.Popen(
        [sys.executable, "-m", "raytrain_speedup.cli", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "digits", "train.epoch=5"], "train.epoch: unknown key; did you mean 'epochs'?"),
        (
            ["train", "digits", "pruning.method=infobatch", "pruning.prune_ratio=1.2"],
            "pruning.prune_ratio: 1.2",
        ),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "digit"], "digit: no such recipe"),
        (["train", "digits", "train.lr"], "'train.lr': expected key=value"),
        (["train", "digits", "--resume", "nowhere"], "--resume: nowhere is not a folder"),
        (["train", "digits", "--resume", "."], "--resume: . holds no checkpoint; expected the folder of an"),
        (["recipes", "digit"], "digit: no such recipe; did you mean 'digits'?"),
        (
            ["recipes", "mnist"],
            "mnist: no such recipe; expected a YAML file or one of: ade20k-deeplabv3_resnet50, camvid, ",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, expected, monkeypatch, capsys):
    assert command(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert len(printed.err.splitlines()) == 1
    assert "Traceback" not in printed.err + printed.out


def test_a_teacher_that_cannot_teach_is_one_message_and_exit_code_2(tmp_path: Path):
    """Found out by the run itself, behind the launch."""
    vit = ["teacher.model.name=timm/vit_tiny_patch16_224", "teacher.model.options={patch_size: 4, depth: 1}"]
    with program("train", "digits-dfkd", *QUICK, *vit, "teacher.train.epochs=1", folder=tmp_path) as run:
        printed, told = run.communicate(timeout=120)
    assert run.returncode == 2
    assert "teacher: VisionTransformer has no batch-norm layers with running statistics" in told
    assert "Traceback" not in told + printed


def test_a_message_is_printed_as_it_is(monkeypatch, capsys):
    """Brackets are no markup, and long lines stay whole, so that they can be searched for."""
    text = "data.mean: [0.1, 0.2] has [/b] values; expected [red]3[/red]" + " and" * 40

    def fail(*_: object) -> None:
        raise UserError(text)

    monkeypatch.setattr("raytrain_speedup.config.load_experiment", fail)
    assert command(monkeypatch, "recipes", "digits") == 2
    assert capsys.readouterr().err == f"error {text}\n"


def test_a_run_that_failed_exits_with_1(monkeypatch):
    def fail(*_: object) -> None:
        raise RunFailed("the loss is not finite at step 3")

    monkeypatch.setattr("raytrain_speedup.config.load_experiment", fail)
    assert command(monkeypatch, "recipes", "digits") == 1


def test_recipes_are_listed_and_shown(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setenv("COLUMNS", "200")
    assert command(monkeypatch, "recipes") == 0
    listed = capsys.readouterr().out
    for name in recipes():
        assert name in listed
        assert load_experiment(name).about[:40] in listed
    assert command(monkeypatch, "recipes", "digits") == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown) == load_experiment("digits").to_dict()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_of_train_explains_every_key(columns: int, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert command(monkeypatch, "train", "--help") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    lines = [line.split() for line in printed.splitlines() if line.strip()]
    explained = {words[0] for words in lines if len(words) > 1}
    assert {key for key, _, _ in keys()} <= explained


def test_every_key_has_a_description():
    assert [key for key, _, meaning in keys() if len(meaning) < 8] == []
    told = {key for key, _, _ in keys()}
    for name in recipes():
        for section, values in load_experiment(name).to_dict().items():
            assert isinstance(values, dict) or section in told or values is None
            for key in values if isinstance(values, dict) else ():
                assert f"{section}.{key}" in told
    assert set(Experiment.model_fields) <= {key.partition(".")[0] for key in told}


def test_the_program_has_no_traceback_for_a_mistake(tmp_path: Path):
    process = program("train", "digits", "train.lr=fast", folder=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err == "error digits: train.lr: 'fast' is not allowed; expected a number\n"
    assert out == ""


def test_a_nan_loss_ends_the_program_with_1_and_the_step(tmp_path: Path):
    overrides = ["train.epochs=2", "train.lr=1e30", "train.start_div=1", *QUICK]
    process = program("train", "digits", *overrides, folder=tmp_path)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    assert "not finite" in err
    assert "there is no checkpoint before it" in err
    assert "Traceback" not in err


def test_ctrl_c_leaves_a_checkpoint_exits_with_130_and_the_run_can_be_resumed(tmp_path: Path):
    process = program("train", "digits", "train.epochs=300", *QUICK, folder=tmp_path)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("runs/*/checkpoint-0*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopped in epoch" in err
    assert "Traceback" not in err
    assert list(tmp_path.glob("runs/*/checkpoint-0*/run.pt"))


def test_a_mistake_found_late_leaves_nothing_behind(tmp_path: Path):
    """No folder and no row of the leaderboard: nothing came of it."""
    with program("train", "digits", "model.name=resnet7", folder=tmp_path) as run:
        _, told = run.communicate(timeout=120)
    assert run.returncode == 2 and "there is no model 'resnet7'" in told
    assert not list(tmp_path.glob("runs/*"))
    with program("leaderboard", folder=tmp_path) as board:
        assert "no runs yet" in board.communicate(timeout=120)[0]


@pytest.mark.parametrize(
    "name",
    [
        *("train", "preflight", "recipes", "sweep", "leaderboard", "report", "export"),
        *("schedules", "schema", "study"),
    ],
)
def test_the_help_of_every_command_has_an_example_and_fits(name: str, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert command(monkeypatch, name, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith(f"speedup {name}") for line in lines)
    assert max(map(len, lines)) <= 80


def test_ctrl_c_in_the_first_imports_is_no_traceback(monkeypatch, capsys):
    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_command", interrupt)
    assert command(monkeypatch, "recipes") == 130
    assert capsys.readouterr().err == "interrupted\n"
