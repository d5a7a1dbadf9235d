"""An experiment whose training loop is the user's own: `trainable: my_package.train:main`.

The platform gives the script a pruner, a curriculum's budget, a seed and its settings, and takes its metrics
(`engine/script_run.py`); data, model and loop are the script's affair. So its file has none of the sections that
describe them, and a section of free keys instead:

    name: mine
    trainable: my_package.train:main
    settings: {lr: 0.1, width: 32}     # every key the script reads, with its default
    train: {epochs: 20}

What makes two of its runs comparable is said here too: the script, its data and model by name, and every setting
that is not in `varies`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from raytrain_speedup import user_code
from raytrain_speedup.config import (
    Experiment,
    ScalingSettings,
    TrackingSettings,
    load_content,
    load_experiment_dict,
)
from raytrain_speedup.experiment_file import (
    absolute,
    find_experiment,
    import_own_code,
    overridden,
    parse_overrides,
    read_yaml,
)
from raytrain_speedup.methods.curriculum import CURRICULA, CurriculumSettings
from raytrain_speedup.methods.pruning import PRUNERS, PrunerSettings
from raytrain_speedup.metric import Direction, Metric
from raytrain_speedup.registry import Chosen
from raytrain_speedup.settings import Settings, UserError, did_you_mean, explain, flatten

UNNAMED = "the script's own"
SETTINGS = "settings."


class ScriptData(Settings):
    """What a script trains on, in words."""

    source: str = Field(UNNAMED, description="name of the data; runs are compared only where it is equal")


class ScriptModel(Settings):
    """What a script trains, in words."""

    name: str = Field(UNNAMED, description="name of the network; runs are compared only where it is equal")


class ScriptTrain(Settings):
    """What every training loop has."""

    epochs: int = Field(10, ge=1, description="the budget: passes over the whole data at full size")
    seed: int = Field(
        0, ge=0, description="seeds torch, NumPy and `random` before the script, and the pruner"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    threads: int | None = Field(None, ge=1, description="CPU threads of a worker; by default torch's choice")


class ScriptExperiment(Settings):
    """Everything that decides a run of a script."""

    name: str = Field(description="what to call it", min_length=1)
    about: str = Field("", description="a sentence about it")
    trainable: str = Field(description="import path of the script's function, such as my_package.train:main")
    python_path: tuple[Path, ...] = Field(
        (), description="folders it is imported from; default: the file's and the working directory"
    )
    plugins: tuple[str, ...] = Field(
        (), description="modules of your own that register methods, such as my_package.methods"
    )
    code: str = Field("", description="fingerprint of the script's file; filled in where it is not given")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="the script's keys, with their defaults"
    )
    varies: tuple[str, ...] = Field(
        (),
        description="keys of `settings` in which a run and its baseline may differ; a sweep adds what it varies",
    )
    metric: str = Field(
        "accuracy",
        pattern=r"^[a-z]\w*$",
        description="what ranks runs: the script reports val_NAME and test_NAME; accuracy is in percent",
    )
    direction: Direction = Field(
        "max", description="whether larger or smaller values of the metric are better; a loss: min"
    )
    data: ScriptData = Field(default_factory=ScriptData, description="what it trains on, in words")
    model: ScriptModel = Field(default_factory=ScriptModel, description="what it trains, in words")
    train: ScriptTrain = Field(default_factory=ScriptTrain, description="budget, seed, device")
    pruning: Annotated[PrunerSettings, Chosen(PRUNERS)] = Field(
        default_factory=lambda: PRUNERS["none"](method="none"), description="what `run.pruner` builds"
    )
    curriculum: Annotated[CurriculumSettings, Chosen(CURRICULA)] = Field(
        default_factory=lambda: CURRICULA["none"](method="none"), description="what `run.budget` follows"
    )
    scaling: ScalingSettings = Field(default_factory=ScalingSettings, description="workers and faults")
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="where the metrics go")

    @model_validator(mode="before")
    @classmethod
    def _plugins_first(cls, content: Any) -> Any:
        if isinstance(content, dict):
            import_own_code(content)
        return content

    @model_validator(mode="after")
    def _varies_what_there_is(self) -> ScriptExperiment:
        known = list(flatten(self.settings))
        for key in self.varies:
            _check_setting(key, known, "varies: ")
        return self

    @property
    def ranking(self) -> Metric:
        """`metric` with its `direction`."""
        return Metric(self.metric, self.direction)

    @property
    def distillation(self) -> None:
        """A script with data of no kind is its own affair."""
        return

    def main(self) -> Callable[..., Any]:
        """The script's function.

        Raises:
            UserError: if there is no such function, if it does not take a run, or if its file is another than
                when the experiment was read.
        """
        user_code.search(self.python_path)
        main = user_code.imported(self.trainable, "trainable")
        if not callable(main):
            found = type(main).__name__
            raise UserError(f"trainable: {self.trainable} is a {found}; expected a function, def main(run)")
        try:
            inspect.signature(main).bind(None)
        except TypeError:
            raise UserError(
                f"trainable: {self.trainable} is defined with {inspect.signature(main)}; expected a function of "
                "one argument, def main(run)"
            ) from None
        if self.code and self.code != (now := code_fingerprint(main)):
            raise UserError(
                f"trainable: {self.trainable} is not what it was (code {now}); expected {self.code}, by which "
                "the runs before this one were made"
            )
        return main

    def with_overrides(self, overrides: Iterable[str] | Mapping[str, Any]) -> ScriptExperiment:
        """The same experiment with dotted keys set to other values (`{"settings.lr": 0.4}`)."""
        parsed, known = parse_overrides(overrides), list(flatten(self.settings, SETTINGS))
        for key in parsed:
            if key.startswith(SETTINGS):
                _check_setting(key, known)
        return _validated(overridden(self.to_dict(), parsed), where=self.name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in YAML."""
        return self.model_dump(mode="json")

    def shipped(self) -> dict[str, Any]:
        """Plain data for another process: with absolute paths, since it may work in another directory."""
        folders = [str(folder.absolute()) for folder in self.python_path]
        return absolute(self.model_dump()) | {"python_path": folders}

    def to_yaml(self) -> str:
        """The experiment file that gives this experiment, with every default written out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


AnyExperiment = Experiment | ScriptExperiment


def load_script(
    content: Mapping[str, Any],
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    folder: Path,
    where: str | Path,
) -> ScriptExperiment:
    """An experiment of a script, whose function is found and looked at.

    Args:
        content: of an experiment file.
        folder: of the file, where the script may be.
        where: what to call the file.

    Raises:
        UserError: naming each wrong key; and as `ScriptExperiment.main`.
    """
    places = list(dict.fromkeys((str(folder.absolute()), str(Path.cwd()))))
    experiment = _validated({"python_path": places, **content}, where=str(where)).with_overrides(overrides)
    main = experiment.main()
    return experiment.model_copy(update={"code": experiment.code or code_fingerprint(main)})


def load_any(
    name: str | Path, overrides: Iterable[str] | Mapping[str, Any] = (), *, beside: Path | None = None
) -> AnyExperiment:
    """Read an experiment file or recipe, of a script or of the package's own loop.

    Args:
        beside: another file in whose folder code of the user's own may be.

    Raises:
        UserError: as `load_experiment` and `load_script`.
    """
    path = find_experiment(name)
    content = read_yaml(path)
    if "trainable" not in content:
        return load_content(content, overrides, files=(path, beside), where=str(name))
    return load_script(content, overrides, folder=path.parent, where=name)


def load_any_dict(content: dict[str, Any]) -> AnyExperiment:
    """An experiment from plain data, such as `to_dict` gives; a script is not imported."""
    if "trainable" not in content:
        return load_experiment_dict(content)
    return _validated(content, where=str(content.get("name", "experiment")))


def code_fingerprint(main: Callable[..., Any]) -> str:
    """A short hash of the file that a function is written in; what it imports is not in it."""
    file = inspect.getsourcefile(inspect.unwrap(main))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else ""


def _check_setting(key: str, known: list[str], before: str = "") -> None:
    if key not in known:
        hint = did_you_mean(key, known) or f"known here: {', '.join(known) or 'none'}"
        raise UserError(f"{before}{key}: unknown key; {hint}")


def _validated(content: dict[str, Any], *, where: str) -> ScriptExperiment:
    try:
        return ScriptExperiment.model_validate(content)
    except ValidationError as error:
        raise explain(error, ScriptExperiment, where=where) from None
