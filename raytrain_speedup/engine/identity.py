"""What makes two runs the same run, and what makes them comparable: two lists.

A checkpoint goes on only in the experiment that wrote it; `MAY_CHANGE` says what may be another then. A method
is compared only with a baseline whose network ran in the same way; `MAY_DIFFER` says what is the method's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel

from raytrain_speedup.config import Experiment, TrainSettings
from raytrain_speedup.settings import UserError

SECTIONS = ("task", "data", "model", "train", "pruning", "curriculum", "teacher", "distillation")
MAY_CHANGE = {
    *("train.device", "train.threads", "train.compile"),
    *("train.eval_every", "train.checkpoint_every", "train.checkpoint_steps"),
    "train.checkpoint_minutes",
    *("data.loader", "data.memory_limit_gb", "data.num_workers", "data.timeout"),
    "data.max_corrupt_fraction",
    *("data.cache", "data.cache_gb"),
}
"""Keys that may be another when a run goes on: where it runs, how often it looks and saves."""

MAY_DIFFER = (
    *("pruning.", "curriculum.", "distillation."),
    *("train.seed", "train.epochs", "train.optimizer", "train.lr", "train.layer_decay", "train.momentum"),
    *("train.beta2", "train.nesterov", "train.weight_decay", "train.schedule", "train.warmup"),
    *("train.start_div", "train.final_div", "train.clip_norm", "train.mixup", "train.cutmix"),
    *("train.mix_switch", "train.ema_decay"),
)
"""Beginnings of keys that may be another in a comparison: the methods, and what is tuned along with them. All
else that decides numbers or time may not, compilation, loader and batch size among it. The budget may only
where a sweep says that it varies it (`compare`)."""

FILES = {"model.pretrained", "task.features.weights"}
"""Keys whose file decides the numbers by its content, wherever it is; those of the data have a fingerprint."""

GONE = "(a file that is gone)"
"""Instead of a content: a run that goes on does not need its file any more (the checkpoint has the weights)."""


def identity(experiment: Experiment, fingerprint: str) -> dict[str, Any]:
    """Every key that decides the numbers of a run, as plain data.

    Args:
        experiment: what is run. Paths are left out, for data may move; of `FILES` the content counts.
        fingerprint: of the data themselves, as `Splits.fingerprint`.
    """
    keys: dict[str, Any] = {"data": fingerprint}
    for name in SECTIONS:
        section = getattr(experiment, name)
        if section is not None:
            keys |= {
                key: value
                for key, value in _decisive(section, f"{name}.").items()
                if _general(key) not in MAY_CHANGE
            }
    return keys


def _decisive(section: BaseModel, above: str) -> dict[str, Any]:
    """Dotted keys and plain values of a section and those inside it; of paths, the content of `FILES`."""
    keys: dict[str, Any] = {}
    for key, value in section.model_dump(mode="json").items():
        field = getattr(section, key)
        if isinstance(field, BaseModel):
            keys |= _decisive(field, f"{above}{key}.")
        elif not isinstance(field, Path):
            keys[above + key] = value
        elif _general(above + key) in FILES:
            keys[above + key] = _content_hash(field)
    return keys


def _general(key: str) -> str:
    """The key of a section that the teacher has as well, without saying whose it is."""
    return key.removeprefix("teacher.")


def _content_hash(path: Path) -> str:
    """A short hash of a file, which may be larger than the memory, or of the files of a checkpoint's folder."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
            return _short_hash({file.name: _content_hash(file) for file in files})
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError:
        return GONE


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Refuse what another experiment left. Of a file that is gone nothing is known: what was found holds.

    Args:
        what: the folder and what it holds, for the message.

    Raises:
        UserError: naming every key that differs.
    """
    known = {key: found.get(key) if value == GONE else value for key, value in expected.items()}
    if other := differences(found, known):
        raise UserError(f"{what} of another experiment: {'; '.join(other)}")


class ComparisonKeys(TypedDict):
    """What `comparison_keys` gives."""

    baseline_key: str
    train_key: str


def comparison_keys(identity: Mapping[str, Any], workers: int) -> ComparisonKeys:
    """Short hashes that tell which runs may be compared.

    `baseline_key` is equal for runs of one task, data set and model on as many workers, that differ in
    `MAY_DIFFER` alone; `train_key` for runs that are also trained alike but for the seed, so that the one
    without a method is the other's baseline.
    """
    train = {key: value for key, value in identity.items() if key.startswith("train.")}
    del train["train.seed"]
    problem = {key: value for key, value in identity.items() if not key.startswith(MAY_DIFFER)}
    return {"baseline_key": _short_hash({**problem, "workers": workers}), "train_key": _short_hash(train)}


def setup_of(train: TrainSettings, loading: str) -> str:
    """How a run's network ran, for people: what decides time and is nobody's method.

    Args:
        loading: what brings the batches.
    """
    parts = [f"batch {train.batch_size}", loading]
    parts += [f"in {train.accumulate} parts"] if train.accumulate > 1 else []
    parts += ["compiled"] if train.compile else []
    parts += ["channels last"] if train.channels_last else []
    parts += ["synchronised batch norm"] if train.sync_batch_norm else []
    return ", ".join(parts)


def _short_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """One text for every key in which two identities differ, in the order of the keys."""
    keys = [*expected, *(key for key in found if key not in expected)]
    return [
        f"{key} is {found.get(key)!r} there and {expected.get(key)!r} here"
        for key in keys
        if found.get(key) != expected.get(key)
    ]
