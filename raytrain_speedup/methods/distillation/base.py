"""What a synthesizer is: something that turns a teacher, and no data, into a batch of images at every call.

    synthesizer = settings.build(teacher, student, num_classes=10, image_size=32, channels=3, seed=0,
                                 device=device, normalise=(mean, std))
    pool = Pool(settings.pool_capacity, (3, 32, 32), device=device)
    for call in range(calls):
        pool.add(synthesizer.synthesize(call).images)
        for step in range(settings.student_steps if call >= settings.warmup else 0):
            ...                                   # `networks.py` says what a step is

A method is a settings class (what the experiment file says) and a synthesizer (what the loop talks to).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raytrain_speedup.methods.distillation.augment import Augment, augment
from raytrain_speedup.methods.distillation.bn_statistics import BatchNormProbe, Observation
from raytrain_speedup.methods.distillation.networks import borrowed, freeze, logits_of
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.randomness import torch_generator
from raytrain_speedup.settings import Settings, UserError

WHOLE = 1e-6
"""Pixels by which a scaled size may miss a whole number: a third is no float."""


@dataclass(frozen=True)
class Synthesis:
    """What one call gives.

    Attributes:
        images: uint8 (B, C, H, W) on the device, ready for the pool.
        metrics: 0-dimensional tensors on the device, such as `bn`, `oh` and `adv`; reading one synchronises.
    """

    images: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Synthesizer(ABC):
    """Makes images for a student out of its teacher.

    Attributes:
        problem: whose knowledge is distilled into whom.

    What a call draws is a function of (seed, rank, call) alone. On several workers every one makes its own
    images; `synthesize` is then a collective call, and everything learnt is the same on all workers after it.
    """

    problem: Problem

    @abstractmethod
    def synthesize(self, call: int) -> Synthesis:
        """The images of call `call` (from 0), made without waiting for the device."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later call depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most baselines learn nothing
        """Take up the state of `state_dict`: the calls after it equal those of an uninterrupted run."""


@dataclass(frozen=True)
class RealImages:
    """The training images themselves: only the control that asks what synthesis costs in accuracy reads them.

    Attributes:
        count: how many there are.
        read: from positions (b,), int64 on the CPU, to uint8 (k, C, H, W) on the device: those of them that can
            be read, in that order and unaugmented.
    """

    count: int
    read: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """Whose knowledge is to be distilled into whom, and what an image is.

    Attributes:
        teacher: frozen (see `freeze`), on the device.
        student: the network being trained, as it is at each call; never changed here.
        probe: the teacher's batch-norm statistics.
        dense: whether the outputs are maps (B, K, H, W), as in segmentation.
        image_shape: (C, H, W).
        mean, std: (C, 1, 1), how images in [0, 1] are normalised for both networks.
        seed: the root of all randomness.
        real: the training images, where there are any; synthesis has no use for them.
    """

    teacher: nn.Module
    student: nn.Module
    probe: BatchNormProbe
    num_classes: int
    dense: bool
    image_shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    seed: int
    device: torch.device
    real: RealImages | None = None

    def rng(self, *key: int) -> torch.Generator:
        """A generator on the device, seeded by the run's seed and `key`."""
        return torch_generator(self.device, self.seed, *key)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the networks expect them."""
        return (images - self.mean) / self.std

    def look(self, images: Tensor, how: Augment, rng: torch.Generator, *, instances: bool = False) -> View:
        """Show images in [0, 1] to the teacher, augmented; differentiable with respect to the images."""
        inputs = self.normalise(augment(images, how, rng))
        return View(inputs, self.probe.observe(inputs, instances=instances), self.student)


@dataclass(frozen=True)
class View:
    """One augmented view of a batch: the networks' inputs, and what the teacher makes of them."""

    inputs: Tensor
    teacher: Observation
    _student: nn.Module

    def student_logits(self, *, batch_statistics: bool = False) -> Tensor:
        """What the student makes of the same inputs: it is a judge here, and its gradients aren't touched.

        Args:
            batch_statistics: see `borrowed`.
        """
        with borrowed(self._student, batch_statistics=batch_statistics) as student:
            return logits_of(student(self.inputs))


class Enlarged(Synthesizer):
    """A synthesizer of small images, whose images are enlarged to those of the run (bilinear).

    A call at half the size costs a quarter of the FLOPs, and a teacher's features fill more of a small image: the
    first idea of MUSE (Tran et al. 2024, https://arxiv.org/abs/2411.17046), without its class activation maps,
    several resolutions and embeddings.

    Args:
        small: makes them; its problem has their shape.
        problem: with the shape of the run's.
    """

    def __init__(self, small: Synthesizer, problem: Problem) -> None:
        self.small, self.problem = small, problem

    def synthesize(self, call: int) -> Synthesis:
        made = self.small.synthesize(call)
        size = self.problem.image_shape[1:]
        images = F.interpolate(made.images.float() / 255, size=size, mode="bilinear", align_corners=False)
        return replace(made, images=to_uint8(images))

    def state_dict(self) -> dict[str, Any]:
        return self.small.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.small.load_state_dict(state)


class SynthesisSettings(Settings):
    """What the experiment file says of a method of distillation without data; `method` names it."""

    method: str
    batch_size: int = Field(256, ge=2, description="images synthesised per batch and worker")
    warmup: int = Field(20, ge=0, description="calls that only fill the pool: no student, no adversary")
    student_steps: int = Field(400, ge=1, description="distillation steps after each call")
    temperature: float = Field(20.0, gt=0, description="temperature of the distillation loss")
    pool_images: int = Field(65_536, ge=1, description="most images kept on each worker; the oldest give way")
    synthesis_scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="fraction of the image size at which images are synthesised; the pool has them enlarged",
    )
    augment: Augment = Field(Augment(), description="how images vary, in synthesis and for the student")
    student_augment: Augment | None = Field(
        None, description="how images vary for the student, if not as in synthesis"
    )

    @property
    def augment_for_student(self) -> Augment:
        """How the student's images vary."""
        return self.student_augment or self.augment

    @property
    def pool_capacity(self) -> int:
        """Images that the pool keeps."""
        return self.pool_images

    @property
    def needs_batch_norm(self) -> bool:
        """Whether the method asks for the teacher's BN statistics."""
        return False

    def cost_class(self, call: int) -> Hashable:
        """Calls of one class cost the same FLOPs: after the warm-up, the student may be asked too."""
        return call >= self.warmup

    def build(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        num_classes: int,
        image_size: int | tuple[int, int],
        channels: int,
        seed: int,
        device: torch.device | str,
        normalise: tuple[Sequence[float], Sequence[float]],
        real: RealImages | None = None,
    ) -> Synthesizer:
        """The synthesizer itself; `teacher` is frozen in place, and both networks are moved to the device.

        Pass the bare modules: inside a compiled network the statistics can't be seen, and data-parallel
        wrappers expect a backward pass after each forward pass. Wrap them for the student's steps only.

        Args:
            image_size: of the images, or (height, width).
            normalise: mean and standard deviation of each channel, for images in [0, 1].
            real: the training images; needed by the control `real` alone.

        Raises:
            UserError: if teacher and student don't fit the images, the classes or the method.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        device = torch.device(device)
        _check_finite(freeze(teacher.to(device)))
        student.to(device)
        scaled = self._scaled(height, width)
        for shape in dict.fromkeys((scaled, (height, width))):  # as a rule one; the run's own comes last
            example = torch.zeros(2, channels, *shape, device=device)
            logits = {"teacher": _try(teacher, example, "teacher")}
            with borrowed(student):
                logits["student"] = _try(student, example, "student")
        for name, output in logits.items():
            if output.shape[1] != num_classes:
                raise UserError(f"{name}: it knows {output.shape[1]} classes; the run has {num_classes}")
        problem = Problem(
            teacher=teacher,
            student=student,
            probe=BatchNormProbe(teacher, example),
            num_classes=num_classes,
            dense=logits["teacher"].dim() == 4,
            image_shape=(channels, height, width),
            mean=_per_channel(normalise[0], device),
            std=_per_channel(normalise[1], device),
            seed=seed,
            device=device,
            real=real,
        )
        if self.needs_batch_norm and not problem.probe.sizes:
            raise UserError(
                f"teacher: {type(teacher).__name__} has no batch-norm layers with running statistics, and "
                f"distillation.method={self.method} needs them; set bn=0 or choose another teacher"
            )
        if scaled == (height, width):
            return self.make(problem)
        return Enlarged(self.make(replace(problem, image_shape=(channels, *scaled))), problem)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the images that are synthesised."""
        scaled = height * self.synthesis_scale, width * self.synthesis_scale
        if any(abs(side - round(side)) > WHOLE for side in scaled):
            raise UserError(
                f"distillation.synthesis_scale: {self.synthesis_scale:g} of {height} x {width} pixels is "
                f"{scaled[0]:g} x {scaled[1]:g}; expected whole numbers"
            )
        return round(scaled[0]), round(scaled[1])

    def make(self, problem: Problem) -> Synthesizer:
        """The synthesizer for a problem that was checked."""
        raise NotImplementedError


def _check_finite(teacher: nn.Module) -> None:
    """A teacher with a NaN in it answers NaN to every image, and any student agrees with that."""
    for name, tensor in teacher.state_dict().items():
        if tensor.is_floating_point() and (count := int((~tensor.isfinite()).sum())):
            raise UserError(
                f"teacher: {count} of the {tensor.numel()} values of {name} are NaN or infinite; expected a "
                "teacher whose training went well"
            )


def _try(network: nn.Module, example: Tensor, name: str) -> Tensor:
    try:
        with torch.no_grad():
            return logits_of(network(example))
    except (RuntimeError, ValueError) as error:
        shape = " x ".join(str(side) for side in example.shape[1:])
        raise UserError(f"{name}: takes no images of {shape}: {str(error).splitlines()[0]}") from error


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=device).view(-1, 1, 1)
