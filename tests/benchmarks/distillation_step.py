"""One synthesis call and the student steps after it: this package against the naive form, in one run.

    python tests/benchmarks/distillation_step.py                      # 400 student steps, as in the paper
    python tests/benchmarks/distillation_step.py --steps 40 --repeats 3

Both do the same work on the same device: FastDFKD with k = 10 on a batch, then distillation steps of a
WRN-16-1 from a WRN-16-1 teacher on random batches of the pool, cropped and flipped. The naive form does it as
public implementations do:

- the pool is a folder of PNG files, listed anew and read by a new loader with four processes at each call;
- the teacher's parameters require gradients, which every inner step computes and nobody zeroes;
- its batch-norm hooks stay registered, so each distillation forward computes statistics that no one reads;
- every step reads its loss with `.item()`.

Its distillation forwards run without a graph, as the public code's do. Prints a Markdown table; the metrics
are medians over interleaved repeats. Wall seconds are the metric; CPU seconds tell the same on a machine that
others use too. A small --pool restarts the naive loader's processes often: the paper's holds up to 220 calls.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raytrain_speedup.methods.distillation.fastdfkd import FastDFKDSettings
from raytrain_speedup.methods.distillation.generator import build_generator
from raytrain_speedup.methods.distillation.losses import distillation_loss
from raytrain_speedup.methods.distillation.networks import student_inputs, teacher_logits
from raytrain_speedup.methods.distillation.pool import Pool
from raytrain_speedup.randomness import torch_generator

WHO = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
CLASSES, MEAN, STD = 10, [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


class Block(nn.Module):
    """BN-ReLU-conv twice, with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + self.shortcut(active if isinstance(self.shortcut, nn.Conv2d) else x)


def wide_resnet(width: int, blocks: int = 2) -> nn.Sequential:
    """WRN-(6 * blocks + 4)-width for CIFAR."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    inputs = 16
    for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for index in range(blocks):
            layers.append(Block(inputs, outputs, stride if index == 0 else 1))
            inputs = outputs
    head = [
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, CLASSES),
    ]
    return nn.Sequential(*layers, *head)


class Ours:
    """The package: settings, synthesizer, pool, student step."""

    def __init__(self, how: FastDFKDSettings, teacher: nn.Module, student: nn.Module, options: Any) -> None:
        self.how, self.teacher, self.student = how, teacher, student
        size, device = options.size, options.device
        self.synthesizer = how.build(
            teacher, student, num_classes=CLASSES, image_size=size, channels=3, seed=0, device=device,
            normalise=(MEAN, STD),
        )  # fmt: skip
        self.pool = Pool(how.pool_capacity, (3, size, size), device=device)
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        self.optimizer = torch.optim.SGD(student.parameters(), 0.2, momentum=0.9, weight_decay=1e-4)

    def synthesise(self, call: int) -> None:
        self.pool.add(self.synthesizer.synthesize(call).images)

    def distill(self, call: int, steps: int) -> None:
        self.student.train()
        for step in range(steps):
            images = self.pool.sample(self.how.batch_size, 0, call, step)
            inputs = student_inputs(images, self.how.augment, self.mean, self.std, 0, call, step)
            target = teacher_logits(self.teacher, inputs)
            loss = distillation_loss(target, self.student(inputs), self.how.temperature).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class Files(Dataset[Tensor]):
    """Every PNG in a folder, listed when it is made."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(folder.glob("*.png"))
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]))


class StatisticsHook:
    """The gap of one layer's statistics, computed at every forward for as long as the hook is registered."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.gap = torch.zeros(())
        layer.register_forward_hook(self)

    def __call__(self, layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean((0, 2, 3))
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.gap = (layer.running_var - var).norm() + (layer.running_mean - mean).norm()


class Naive:
    """The same method as public implementations write it."""

    def __init__(
        self, how: FastDFKDSettings, teacher: nn.Module, student: nn.Module, options: Any, folder: Path
    ) -> None:
        self.how, self.teacher, self.student, self.folder = how, teacher.eval(), student, folder
        self.size, self.device, self.workers = options.size, options.device, options.workers
        self.hooks = [
            StatisticsHook(layer) for layer in teacher.modules() if isinstance(layer, nn.BatchNorm2d)
        ]
        self.generator = build_generator(
            "small",
            (3, self.size, self.size),
            width=how.width,
            latent=how.latent,
            rng=torch_generator(self.device, 0),
        )
        self.meta = torch.optim.Adam(self.generator.parameters(), how.lr_g * how.steps, betas=(0.5, 0.999))
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD)
        )
        self.optimizer = torch.optim.SGD(student.parameters(), 0.2, momentum=0.9, weight_decay=1e-4)

    def synthesise(self, call: int) -> None:
        how, best = self.how, float("inf")
        self.student.eval()
        fast = copy.deepcopy(self.generator)
        z = torch.randn(how.batch_size, how.latent, device=self.device).requires_grad_()
        target = torch.randint(CLASSES, (how.batch_size,), device=self.device)
        optimizer = torch.optim.Adam(
            [{"params": fast.parameters(), "lr": how.lr_g}, {"params": [z], "lr": how.lr_z}],
            betas=(0.5, 0.999),
        )
        self.meta.zero_grad()
        kept = z
        for _ in range(how.steps):
            images = fast(z)
            inputs = (self._vary(images) - self.mean) / self.std
            logits, answer = self.teacher(inputs), self.student(inputs)
            agree = (logits.argmax(1) == answer.argmax(1)).float()
            kl = F.kl_div(answer.log_softmax(1), logits.softmax(1), reduction="none").sum(1)
            loss = how.bn * sum(hook.gap for hook in self.hooks)
            loss = loss + how.oh * F.cross_entropy(logits, target) - how.adv * (kl * agree).mean()
            if loss.item() < best:
                best, kept = loss.item(), images.detach()
            optimizer.zero_grad()
            loss.backward()
            for parameter, adapted in zip(self.generator.parameters(), fast.parameters(), strict=True):
                parameter.grad = (
                    adapted.grad.clone() if parameter.grad is None else parameter.grad + adapted.grad
                )
            optimizer.step()
        self.meta.step()
        self._save(kept, call)

    def _vary(self, images: Tensor) -> Tensor:
        """One crop and flip of each image, by padding and slicing."""
        padded = F.pad(images, [4] * 4)
        tops, lefts, flipped = (torch.randint(high, (len(images),)).tolist() for high in (9, 9, 2))
        crops = [
            image[:, top : top + self.size, left : left + self.size]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
        return torch.stack(
            [crop.flip(2) if flip else crop for crop, flip in zip(crops, flipped, strict=True)]
        )

    def _save(self, images: Tensor, call: int) -> None:
        pixels = (images.cpu() * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(self.folder / f"{call}-{index}.png")

    def _batches(self) -> Iterator[Tensor]:
        loader = DataLoader(
            Files(self.folder, self.size), self.how.batch_size, shuffle=True, num_workers=self.workers
        )
        while True:
            yield from loader

    def distill(self, call: int, steps: int) -> None:
        self.student.train()
        batches, temperature = self._batches(), self.how.temperature
        for _ in range(steps):
            inputs = next(batches).to(self.device)
            with torch.no_grad():
                logits = self.teacher(inputs)
            answer = (self.student(inputs) / temperature).log_softmax(1)
            loss = F.kl_div(answer, (logits / temperature).softmax(1), reduction="batchmean") * temperature**2
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()


class Cost(NamedTuple):
    """What a piece of work took: wall seconds, and CPU seconds of this process and its loaders."""

    wall: float
    cpu: float


def cost(work: Callable[..., None], *arguments: int) -> Cost:
    """Measure one call, synchronised."""

    def clock() -> Cost:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Cost(time.perf_counter(), sum(sum(resource.getrusage(who)[:2]) for who in WHO))

    start = clock()
    work(*arguments)
    end = clock()
    return Cost(end.wall - start.wall, end.cpu - start.cpu)


def main() -> None:
    """Run both forms in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="student steps after the call")
    parser.add_argument("--repeats", type=int, default=3, help="measured calls of each form")
    parser.add_argument("--batch", type=int, default=256, help="images per batch")
    parser.add_argument("--size", type=int, default=32, help="size of the images")
    parser.add_argument("--pool", type=int, default=8, help="calls whose images are in the pool beforehand")
    parser.add_argument("--workers", type=int, default=4, help="processes of the naive form's loader")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    how = FastDFKDSettings(batch_size=options.batch, warmup=0)
    torch.manual_seed(0)
    teacher, student = wide_resnet(1).to(options.device), wide_resnet(1).to(options.device)
    with tempfile.TemporaryDirectory() as folder:
        naive_networks = copy.deepcopy((teacher, student))
        forms: dict[str, Ours | Naive] = {
            "naive": Naive(how, *naive_networks, options, Path(folder)),
            "ours": Ours(how, teacher, student, options),
        }
        for call in range(options.pool):  # the pool of earlier calls; the last one warms everything up
            for form in forms.values():
                form.synthesise(call)
        costs: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in forms}
        for form in forms.values():
            form.distill(0, 2)
        for call in range(options.pool, options.pool + options.repeats):
            for name, form in forms.items():
                costs[name].append((cost(form.synthesise, call), cost(form.distill, call, options.steps)))
    report(costs, options)


def report(costs: dict[str, list[tuple[Cost, Cost]]], options: argparse.Namespace) -> None:
    """Print medians and ratios as a Markdown table."""
    where = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"{where}, torch {torch.__version__}: k = 10, batch {options.batch}, {options.steps} student steps, "
        f"WRN-16-1 -> WRN-16-1 at {options.size} x {options.size}, median of {options.repeats}\n"
    )
    print(
        "| form | synthesis call (s) | student step (ms) | together (s) | speedup | CPU seconds | fewer by |"
    )
    print("|---|---|---|---|---|---|---|")
    wall, cpu = (
        {name: statistics.median(pair[0][i] + pair[1][i] for pair in pairs) for name, pairs in costs.items()}
        for i in range(2)
    )
    for name, pairs in costs.items():
        synthesis, steps = (
            statistics.median(part.wall for part in column) for column in zip(*pairs, strict=True)
        )
        print(
            f"| {name} | {synthesis:.2f} | {1000 * steps / options.steps:.1f} | {wall[name]:.2f} "
            f"| {wall['naive'] / wall[name]:.2f}x | {cpu[name]:.2f} | {cpu['naive'] / cpu[name]:.2f}x |"
        )


if __name__ == "__main__":
    main()
