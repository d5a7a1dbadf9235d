"""FastDFKD: a meta-generator that needs two to ten steps for a batch of images where others need hundreds.

Fang et al., "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022, https://arxiv.org/abs/2112.06253.

Each call copies the meta-generator, adapts the copy and fresh latent codes to a new batch for k steps, and
moves the meta-generator towards where the adaptation went, so that the next one has less far to go. On ImageNet
the authors learn the latent codes that a call starts from in the same way (`lr_z_meta`), at a rate of their own
(`lr_meta`), and draw these and Adam's state anew every fifty calls (`reset_latents`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raytrain_speedup.methods.distillation import losses, workers
from raytrain_speedup.methods.distillation.base import Problem, Synthesis, SynthesisSettings, Synthesizer
from raytrain_speedup.methods.distillation.bn_statistics import memory_share
from raytrain_speedup.methods.distillation.generator import Architecture, build_generator, initialise
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.methods.distillation.synthesis import Keep, Score, descend
from raytrain_speedup.randomness import INITIALISE, LATENT, RESET
from raytrain_speedup.settings import UserError

_BETAS = (0.5, 0.999)
Meta = Literal["reptile", "fomaml", "fomaml-last"]


class FastDFKDSettings(SynthesisSettings):
    """FastDFKD (Fang et al. 2022): k-step synthesis from a meta-learnt generator."""

    method: Literal["fastdfkd"] = "fastdfkd"
    steps: int = Field(10, ge=1, description="k, the steps that adapt generator and latents to a batch")
    lr_g: float = Field(2e-3, gt=0, description="inner rate of the generator; k = 2: 5e-3, 5: 3e-3, 10: 2e-3")
    lr_z: float = Field(0.01, gt=0, description="inner rate of the latent codes; k = 2: .015, 5 and 10: .01")
    bn: float = Field(10.0, ge=0, description="weight of the batch-norm statistics loss")
    oh: float = Field(0.5, ge=0, description="weight of the class loss; there is none in segmentation")
    adv: float = Field(1.1, ge=0, description="weight of the decision-adversarial loss, after the warm-up")
    bn_momentum: float = Field(
        0.9, ge=0, lt=1, description="fraction of earlier calls in the bn loss's statistics"
    )
    bn_bias_correction: bool = Field(
        True, description="weigh the first calls as the later ones (as Adam does); published: not"
    )
    lr_meta: float | None = Field(None, gt=0, description="rate of the meta-generator; lr_g x steps if unset")
    lr_z_meta: float | None = Field(
        None,
        gt=0,
        description="rate at which start latents are learnt; they are drawn for every call if unset",
    )
    reset_latents: int | None = Field(
        None, ge=1, description="calls after which learnt latents and the meta-optimizer start anew"
    )
    meta: Meta = Field("fomaml", description="meta-gradient: reptile, or the sum or last of the inner ones")
    reuse: Literal["none", "sequential", "common"] = Field(
        "common",
        description="what a batch starts from: a fresh generator, the last batch's, or the meta-generator",
    )
    keep: Keep = Field("best", description="store the best batch rendered after a step, or the last")
    tasks: int = Field(
        1, ge=1, description="batches adapted per call and worker; T tasks repeat a run of T workers on one"
    )
    reset_first_layer: int | None = Field(
        140, ge=1, description="call at which the first layer is drawn anew"
    )
    reset_every: int | None = Field(None, ge=1, description="calls after which the generator is drawn anew")
    generator: Architecture = Field(
        "small", description="small: CIFAR, 8 to 64 pixels; deep: ImageNet, latent maps"
    )
    width: int = Field(64, ge=1, description="channels before the generator's last layer")
    latent: int = Field(256, ge=1, description="channels of a latent code")

    @model_validator(mode="after")
    def _some_loss(self) -> FastDFKDSettings:
        if not (self.bn or self.oh):
            raise ValueError("nothing to synthesise by: bn or oh has to be above 0")
        return self

    @model_validator(mode="after")
    def _latents_are_learnt_with_the_generator(self) -> FastDFKDSettings:
        if self.lr_z_meta is not None and self.reuse != "common":
            raise ValueError(
                f"lr_z_meta: {self.lr_z_meta} is not used with reuse: {self.reuse}; expected reuse: common"
            )
        if self.reset_latents is not None and self.lr_z_meta is None:
            raise ValueError(
                f"reset_latents: {self.reset_latents} has no learnt latents to reset; expected lr_z_meta"
            )
        return self

    @property
    def needs_batch_norm(self) -> bool:
        return self.bn > 0

    def make(self, problem: Problem) -> FastDFKD:
        if problem.dense and not self.bn:
            raise UserError(
                "distillation.bn: 0 is not allowed; expected above 0, for segmentation has no class loss"
            )
        return FastDFKD(self, problem)


@dataclass
class _Adapted:
    """What one task contributes: its images, its meta-gradient, and the last step's statistics and losses."""

    images: Tensor
    gradient: list[Tensor]
    mean: Tensor
    var: Tensor
    metrics: Mapping[str, Tensor]


class FastDFKD(Synthesizer):
    """Common feature reuse by a meta-generator.

    On several workers (and for several tasks) the meta-gradients are averaged, and the statistics are those
    of all workers' images together.
    """

    def __init__(self, settings: FastDFKDSettings, problem: Problem) -> None:
        self.settings = settings
        self.problem = problem
        self.generator = build_generator(
            settings.generator,
            problem.image_shape,
            width=settings.width,
            latent=settings.latent,
            rng=problem.rng(INITIALISE),
        )
        self._adapted = copy.deepcopy(self.generator)
        self.latents: list[Tensor] = []  # (B, ...) what a call starts from, where that is learnt
        if settings.lr_z_meta is not None:
            self.latents = [self.generator.sample_latent(settings.batch_size, problem.rng(RESET, 0))]
        self._restart_optimizer()
        self._memory: tuple[Tensor, Tensor] | None = None  # BN statistics smoothed over calls
        self._remembered = 0  # calls in it

    def synthesize(self, call: int) -> Synthesis:
        self._reset(call)
        first = workers.rank() * self.settings.tasks
        adapted = [self._adapt(call, first + task) for task in range(self.settings.tasks)]
        gradient, mean, var = self._share(adapted)
        self._remember(mean, var)
        self._meta_step(gradient)
        metrics = {
            name: torch.stack([a.metrics[name] for a in adapted]).mean() for name in adapted[0].metrics
        }
        return Synthesis(to_uint8(torch.cat([a.images for a in adapted])), metrics)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "latents": self.latents,
            "memory": self._memory,
            "remembered": self._remembered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        for latents, kept in zip(self.latents, state["latents"], strict=True):
            latents.copy_(kept)
        memory, self._remembered = state["memory"], state["remembered"]
        self._memory = (
            None if memory is None else (memory[0].to(self.problem.device), memory[1].to(self.problem.device))
        )

    def score(self, images: Tensor, target: Tensor, rng: torch.Generator, call: int) -> Score:
        """The synthesis loss: bn + oh + adv, each weighted; the statistics are smoothed over calls."""
        how, problem = self.settings, self.problem
        view = problem.look(images, how.augment, rng)
        terms: dict[str, Tensor] = {}
        if how.bn:
            mean, var = self._smoothed(view.teacher.mean, view.teacher.var)
            learnt = problem.probe.running_mean, problem.probe.running_var
            terms["bn"] = how.bn * losses.bn_loss(mean, var, *learnt, problem.probe.sizes)
        if how.oh and not problem.dense:
            terms["oh"] = how.oh * losses.class_loss(view.teacher.logits, target)
        if how.adv and call >= how.warmup:
            terms["adv"] = how.adv * losses.decision_adversarial_loss(
                view.teacher.logits, view.student_logits()
            )
        return Score(terms, view)

    def _adapt(self, call: int, task: int) -> _Adapted:
        """k steps on a copy of the generator and fresh latent codes, for one batch of random labels."""
        how, generator = self.settings, self._adapted
        rng = self.problem.rng(LATENT, call, task)
        if how.reuse == "none":
            initialise(generator, rng)
        else:
            generator.load_state_dict(self.generator.state_dict())
        fresh = generator.sample_latent(how.batch_size, rng)
        z = (self.latents[0].clone() if self.latents else fresh).requires_grad_()
        target = torch.randint(self.problem.num_classes, (how.batch_size,), generator=rng, device=rng.device)
        weights = list(generator.parameters())
        optimizer = torch.optim.Adam(
            [{"params": weights, "lr": how.lr_g}, {"params": [z], "lr": how.lr_z}], betas=_BETAS, fused=True
        )
        gradient: list[Tensor] = []  # stays empty where no generator is kept
        by_difference = how.meta == "reptile" or how.reuse == "sequential"

        def note(inner: Sequence[Tensor]) -> None:
            if how.reuse == "common" and not by_difference:
                fomaml_gradient(gradient, inner[: len(self._learnt())], how.meta)

        images, last = descend(
            lambda: generator(z),
            lambda images: self.score(images, target, rng, call),
            optimizer,
            steps=how.steps,
            keep=how.keep,
            on_gradient=note,
        )
        if by_difference and how.reuse != "none":
            learnt = self._learnt()
            gradient = reptile_gradient(learnt, [*weights, z][: len(learnt)])
        seen = last.view.teacher
        return _Adapted(images, gradient, seen.mean.detach(), seen.var.detach(), last.metrics())

    def _share(self, adapted: Sequence[_Adapted]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Meta-gradient, mean and variance over all tasks of all workers: one collective.

        Means travel as distances from the teacher's, so that pooling the variances cancels no large numbers.
        """
        origin = self.problem.probe.running_mean
        rows = []
        for a in adapted:
            offset = a.mean - origin
            rows.append([*a.gradient, offset, a.var + offset.square()])
        local = [torch.stack(column).mean(0) for column in zip(*rows, strict=True)]
        *gradient, offset, square = workers.average(local)
        return gradient, origin + offset, square - offset.square()

    def _smoothed(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        if self._memory is None:
            return mean, var
        kept = self.settings.bn_momentum
        if self.settings.bn_bias_correction:
            kept = memory_share(kept, self._remembered)
        return kept * self._memory[0] + (1 - kept) * mean, kept * self._memory[1] + (1 - kept) * var

    def _remember(self, mean: Tensor, var: Tensor) -> None:
        self._memory = self._smoothed(mean, var)
        self._remembered += 1

    def _meta_step(self, gradient: Sequence[Tensor]) -> None:
        if self.settings.reuse == "none":
            return
        for parameter, step in zip(self._learnt(), gradient, strict=True):
            parameter.grad = step
        self.optimizer.step()

    def _reset(self, call: int) -> None:
        """Draw weights anew where the settings say so; the same on every worker."""
        how, rng = self.settings, self.problem.rng(RESET, call)
        if how.reset_every is not None and call > 0 and call % how.reset_every == 0:
            initialise(self.generator, rng)
            self._restart_optimizer()
        elif call == how.reset_first_layer:
            initialise(self.generator.first, rng)
        if how.reset_latents is not None and call > 0 and call % how.reset_latents == 0:
            self.latents[0].copy_(self.generator.sample_latent(how.batch_size, rng))
            self._restart_optimizer()

    def _learnt(self) -> list[Tensor]:
        """What the meta-step moves: the weights, and the latents where they are learnt."""
        return [*self.generator.parameters(), *self.latents]

    def _restart_optimizer(self) -> None:
        """Adam for the meta-generator; sequential reuse takes the adapted weights as they are."""
        weights, how = self.generator.parameters(), self.settings
        self.optimizer: torch.optim.Optimizer
        if how.reuse == "sequential":
            self.optimizer = torch.optim.SGD(weights, lr=1.0)
        else:
            rate = how.lr_g * how.steps if how.lr_meta is None else how.lr_meta
            groups = [{"params": list(weights), "lr": rate}]
            if how.lr_z_meta is not None:
                groups.append({"params": self.latents, "lr": how.lr_z_meta})
            self.optimizer = torch.optim.Adam(groups, betas=_BETAS, fused=True)


def reptile_gradient(meta: Sequence[Tensor], adapted: Sequence[Tensor]) -> list[Tensor]:
    """theta - theta': the way back from where the adaptation went (Nichol et al. 2018)."""
    return [(before - after).detach() for before, after in zip(meta, adapted, strict=True)]


def fomaml_gradient(total: list[Tensor], inner: Sequence[Tensor], meta: Meta) -> None:
    """Add an inner step's gradient at the adapted weights to `total`; with `fomaml-last`, it takes its place.

    The sum is what the reference uses; the gradient of the last step alone is the textbook's FOMAML (Finn et
    al. 2017, sec. 5.2). `total` is empty before the first step.
    """
    if not total or meta == "fomaml-last":
        total[:] = [gradient.clone() for gradient in inner]
    else:
        for so_far, gradient in zip(total, inner, strict=True):
            so_far += gradient
