"""What `docs/extending.md` shows, as it stands: a folder outside the package, trained, searched and called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain_speedup import cli
from raytrain_speedup.config import load_experiment
from raytrain_speedup.methods.pruning import PRUNERS
from raytrain_speedup.models import build_model
from raytrain_speedup.schedule import Schedule, TunedOn, save_schedule
from raytrain_speedup.settings import UserError

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", DOC, flags=re.DOTALL))
SNIPPETS = re.findall(r"<!-- run -->\n```python\n(.*?)```", DOC, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("mine")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    before = list(sys.path)
    yield folder
    sys.path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
    PRUNERS._known.pop("one-in-turn", None)  # other tests count the methods


@pytest.fixture
def elsewhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is not that of the code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def speedup(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["speedup", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_one_worker_trains(elsewhere: Path, monkeypatch, capsys) -> None:
    assert speedup(monkeypatch, "train", str(elsewhere / "mine.yaml")) == 0, capsys.readouterr().err
    assert "test accuracy" in capsys.readouterr().out


def test_the_help_lists_the_keys_of_a_plugin(elsewhere: Path, monkeypatch, capsys) -> None:
    assert speedup(monkeypatch, "train", str(elsewhere / "mine.yaml"), "--help") == 0
    assert "pruning.every" in capsys.readouterr().out


@pytest.mark.usefixtures("ray_session")
def test_two_workers_train(elsewhere: Path, monkeypatch, capsys) -> None:
    arguments = ["train", str(elsewhere / "mine.yaml"), "scaling.workers=2", "scaling.start_timeout=300"]
    assert speedup(monkeypatch, *arguments) == 0, capsys.readouterr().err
    assert "2 x " in capsys.readouterr().out


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_searches_its_keys(elsewhere: Path, monkeypatch, capsys, workers: int) -> None:
    keys = [f"scaling.workers={workers}", "scaling.start_timeout=300", "train.epochs=1"]
    assert speedup(monkeypatch, "sweep", str(elsewhere / "space.yaml"), *keys) == 0, capsys.readouterr().err
    assert "one-in-turn" in capsys.readouterr().out


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(elsewhere: Path, monkeypatch, snippet: str) -> None:
    monkeypatch.syspath_prepend(str(elsewhere))
    exec(snippet, {})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "model.name",
            "my_package.nets:bild",
            "model.name: my_package.nets has no 'bild'; did you mean 'build'",
        ),
        ("model.name", "my_package.net:build", "model.name: there is no module 'my_package.net'"),
        (
            "model.options",
            {"widht": 3},
            "model.options: my_package.nets:build takes no argument 'widht'; did you",
        ),
        ("data.options", {"sample": 3}, "data.options: my_package.data:make takes no argument 'sample'; did"),
        ("data.dataset", "my_package.data:Stripes", "takes no argument 'split'"),
        ("task.options", {"scal": 1}, "task.options: my_package.tasks:Brier takes no argument 'scal'; did"),
        ("task.optons", {}, "task.optons: unknown key; did you mean 'options'?"),
        (
            "pruning.method",
            "one-in-tern",
            "pruning.method: 'one-in-tern' is not allowed; expected one of none,",
        ),
        ("pruning.evry", 3, "pruning.evry: unknown key; did you mean 'every'?"),
        ("plugins", ["my_package.method"], "plugins: there is no module 'my_package.method'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(elsewhere: Path, key, value, said) -> None:
    with pytest.raises(UserError) as error:
        load_experiment(elsewhere / "mine.yaml", {key: value})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_schedule_of_a_plugin_is_read_with_it(elsewhere: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(elsewhere))
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from raytrain_speedup import load_schedule\n"
        "print(load_schedule('schedule.yaml', plugins=['my_package.methods']).pruner(100, 8).plan(1).kept)\n"
        "try:\n    load_schedule('schedule.yaml', plugins=['my_package.none'])\n"
        "except Exception as error:\n    print(error)\n"
    )
    where = TunedOn(
        experiment="mine",
        run_id="0" * 16,
        data={},
        model={},
        train={"epochs": 2.0},
        workers=1,
        hardware="a desk",
        package_version="0.1.0",
    )
    pruning = load_experiment(elsewhere / "mine.yaml").pruning
    content = {"version": 1, "pruning": pruning, "curriculum": {"method": "none"}, "tuned_on": where}
    save_schedule(Schedule.model_validate(content), tmp_path / "schedule.yaml")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(elsewhere), str(ROOT)])}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    kept, refusal = said.stdout.splitlines()
    assert kept == "75", said.stderr
    assert refusal.startswith("plugins: there is no module 'my_package.none'")


def test_a_method_of_an_installed_package_is_found(elsewhere: Path, tmp_path: Path, monkeypatch) -> None:
    """By the entry point that its metadata name, without `plugins`."""
    metadata = tmp_path / "one_in_turn-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: one-in-turn\nVersion: 1.0\n")
    points = "one-in-turn = my_package.methods:OneInTurnSettings\nbroken = my_package.none:Settings\n"
    (metadata / "entry_points.txt").write_text(f"[raytrain_speedup.pruning]\n{points}")
    program = (
        "from raytrain_speedup.config import load_experiment\n"
        "print(load_experiment('digits', {'pruning.method': 'one-in-turn'}).pruning.every)\n"
        "for method in ('broken', 'none-such'):\n"
        "    try:\n        load_experiment('digits', {'pruning.method': method})\n"
        "    except Exception as error:\n        print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(elsewhere), str(tmp_path), str(ROOT)])}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    every, broken, unknown = said.stdout.splitlines()
    assert every == "4", said.stderr
    assert broken.startswith(
        "entry point broken = my_package.none:Settings of raytrain_speedup.pruning: cannot"
    )
    assert "expected one of none, infobatch, random, epochs, " in unknown and "one-in-turn; " in unknown


def test_options_reach_the_code(elsewhere: Path) -> None:
    mine = load_experiment(elsewhere / "mine.yaml")
    assert build_model(mine.model, num_classes=2, in_channels=1, image_size=8)[0].out_channels == 8
    assert len(mine.data.read().train) == 128
    assert mine.task.build().scale == 0.5
