"""Hugging Face's Trainer trains the engine's weights from an exported schedule, resumed anywhere, on any number of
processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_runs import (
    ALIKE,
    BATCH,
    EPOCHS,
    LR,
    STAGED,
    STEADY,
    VIT,
    EngineOf,
    EngineRun,
    digits,
    equal,
    network,
    recorded,
    same_plan,
    sgd,
    sizes_seen,
    staged_loader,
    staged_schedule,
    tiny,
    trained_by_hand,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raytrain_speedup.settings import UserError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from raytrain_speedup.adapters.transformers import PrunedTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

CONSTANT = {"train.schedule": "constant", "train.warmup": 0.0}


class Classifier(nn.Module):
    """A network with the interface of Hugging Face's image classifiers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.sizes = net, sizes_seen(net)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": cross_entropy(logits, labels), "logits": logits}
        )


class Samples:
    """Digits as Hugging Face's datasets give them."""

    def __init__(self, experiment: Any) -> None:
        self.data = digits(experiment)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.data[index]
        return {"pixel_values": image, "labels": label, "name": f"digit {index}"}


class Stop(transformers.TrainerCallback):
    """The end after so many steps, as of a lost machine."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


def trainer(
    folder: Path,
    experiment: Any,
    *,
    accumulate: int = 1,
    world: int = 1,
    pruning: dict[str, Any] | None = None,
    **options: Any,
) -> PrunedTrainer:
    arguments = {
        "output_dir": str(folder / "hf"),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH // accumulate // world,
        "gradient_accumulation_steps": accumulate,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "seed": experiment.train.seed,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "steps",
        "save_steps": 1000,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    callbacks = options.pop("callbacks", [])
    model = Classifier(network(experiment))
    return PrunedTrainer(
        model,
        transformers.TrainingArguments(**arguments | options),
        train_dataset=Samples(experiment),
        optimizers=(sgd(model), None),
        callbacks=callbacks,
        **{"pruning": experiment.pruning} | (pruning or {}),
    )


def train(folder: Path, experiment: Any, *, path: Any = None, **options: Any):
    mine = trainer(folder, experiment, **options)
    with recorded() as shown:
        mine.train(resume_from_checkpoint=path)
    return shown, mine


@pytest.fixture
def engine(engine_of: EngineOf) -> EngineRun:
    return engine_of(CONSTANT)


def test_the_engine_and_the_trainer_train_the_same_weights(tmp_path: Path, engine):
    shown, mine = train(tmp_path, tiny(CONSTANT))
    assert same_plan(shown, engine[0])
    assert equal(mine.model.net.state_dict(), engine[1])
    assert mine.state.global_step == len(shown) and mine.state.epoch == EPOCHS
    assert [path.name for path in (tmp_path / "hf").glob("checkpoint-*")] == [f"checkpoint-{len(shown)}"]


@pytest.mark.parametrize("stop_after", [2, 6, 8, 9])
def test_resumed_anywhere_it_ends_with_the_same_weights(stop_after: int, tmp_path: Path, engine):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny(CONSTANT), save_steps=stop_after, callbacks=[Stop(stop_after)])
    shown, mine = train(tmp_path, tiny(CONSTANT), path=str(tmp_path / f"hf/checkpoint-{stop_after}"))
    assert same_plan(shown, engine[0][stop_after:])
    assert equal(mine.model.net.state_dict(), engine[1])


def test_accumulated_batches_are_whole_steps(tmp_path: Path, engine_of: EngineOf):
    _, expected = engine_of(STEADY | CONSTANT)
    _, mine = train(tmp_path, tiny(STEADY | CONSTANT), accumulate=4)
    torch.testing.assert_close(mine.model.net.state_dict(), expected, **ALIKE)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_schedules_of_the_trainer_end_where_they_should(kind: str, tmp_path: Path):
    _, mine = train(tmp_path, tiny(), lr_scheduler_type=kind, warmup_steps=3)
    rates = [entry["learning_rate"] for entry in mine.state.log_history if "learning_rate" in entry]
    assert max(rates) > 0.9 * LR and rates[0] < 0.5 * LR
    assert mine.lr_scheduler.get_last_lr()[0] < 1e-9
    assert rates == sorted(rates[: rates.index(max(rates))]) + sorted(
        rates[rates.index(max(rates)) :], reverse=True
    )


@pytest.mark.slow
def test_two_processes(tmp_path: Path, engine_of: EngineOf):
    """Started as `torchrun` does."""
    _, expected = engine_of(VIT | CONSTANT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*run, __file__, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "net.pt"), expected, **ALIKE)


def on_two_processes(folder: Path) -> None:
    torch.set_num_threads(1)
    _, mine = train(folder, tiny(VIT | CONSTANT), world=2)
    if int(os.environ["RANK"]) == 0:
        torch.save(mine.model.net.state_dict(), folder / "net.pt")


def test_pruning_and_curriculum_together_are_the_engines(tmp_path: Path, engine_of: EngineOf):
    """Image sizes, batches and learning rates of the stages, in as many passes as the budget buys; and a run that
    is cut off within the first stage goes on with what it would have shown. The weights are those of the loop by
    hand: the engine's images are not the same to the last bit."""
    experiment = tiny(STAGED | CONSTANT)
    expected_shown, _ = engine_of(STAGED | CONSTANT)
    pruning = {"pruning": staged_schedule(tmp_path), "image_size": 16}
    shown, mine = train(tmp_path, experiment, pruning=pruning)
    assert same_plan(shown, expected_shown)
    by_hand = trained_by_hand(experiment, staged_loader(tmp_path), schedule="constant", warmup=0.0)
    assert equal(mine.model.net.state_dict(), by_hand)
    sizes = mine.model.sizes
    assert set(sizes) == {8, 12, 16} and sizes == sorted(sizes)
    assert mine.args.num_train_epochs == mine.loader.epochs > EPOCHS
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, experiment, pruning=pruning, save_steps=3, callbacks=[Stop(3)])
    rest, again = train(tmp_path, experiment, pruning=pruning, path=str(tmp_path / "hf/checkpoint-3"))
    assert same_plan(rest, expected_shown[3:]) and again.model.sizes == sizes[3:]
    assert equal(again.model.net.state_dict(), mine.model.net.state_dict())


def test_losses_per_sample_are_those_of_the_models():
    """The loss of a sample alone is what Hugging Face's model says of a batch of one."""
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    args = transformers.TrainingArguments("unused", report_to="none", use_cpu=True)
    tokens = torch.randint(11, (3, 6))
    labels = tokens.clone()
    labels[1, 3:] = -100
    mine = PrunedTrainer(model, args, train_dataset=[0], pruning=tiny().pruning)
    found = mine.per_sample_losses(model(input_ids=tokens), {"labels": labels})
    for number, loss in enumerate(found):
        one = slice(number, number + 1)
        torch.testing.assert_close(loss, model(input_ids=tokens[one], labels=labels[one]).loss)


def test_what_pruning_cannot_follow_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="max_steps: 9 is not allowed"):
        trainer(tmp_path, tiny(), max_steps=9)
    _, mine = train(tmp_path, tiny(CONSTANT))
    (latest,) = (tmp_path / "hf").glob("checkpoint-*")
    (latest / "pruning.pt").unlink()
    with pytest.raises(
        UserError, match="pruning.pt: not found; expected a checkpoint of a trainer with pruning"
    ):
        mine.train(resume_from_checkpoint=str(latest))


if __name__ == "__main__":
    on_two_processes(Path(sys.argv[1]))
