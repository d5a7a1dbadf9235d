"""The student's step, and the whole of FastDFKD on digits."""

from __future__ import annotations

import torch
from distillation_nets import classifier
from sklearn.datasets import load_digits
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import SYNTHESIZERS, losses
from raytrain_speedup.methods.distillation.augment import Augment
from raytrain_speedup.methods.distillation.generator import initialise
from raytrain_speedup.methods.distillation.networks import freeze, student_inputs, teacher_logits
from raytrain_speedup.methods.distillation.pool import Pool
from raytrain_speedup.randomness import torch_generator


def test_a_step_teaches_the_student_and_leaves_the_teacher_alone() -> None:
    teacher, student = freeze(classifier()), classifier(2, seed=1)
    inputs = torch.randn(8, 1, 8, 8)
    target = teacher_logits(teacher, inputs)
    assert torch.equal(target, teacher(inputs))
    losses.distillation_loss(target, student(inputs), 4.0).mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_target_has_no_graph_even_if_teacher_and_inputs_could() -> None:
    target = teacher_logits(classifier(), torch.randn(4, 1, 8, 8, requires_grad=True))
    assert not target.requires_grad and target.dtype == torch.float32


def test_inputs_are_normalised_images() -> None:
    images = torch.randint(0, 256, (4, 2, 5, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5]).view(-1, 1, 1), torch.tensor([0.2, 0.3]).view(-1, 1, 1)
    inputs = student_inputs(images, Augment(crop=0, flip=False), mean, std, 0)
    torch.testing.assert_close(inputs, (images / 255 - mean) / std)


def digits_network(width: int, seed: int) -> nn.Sequential:
    """Four convolutions for 8 x 8 digits."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        (1, width, 1),
        (width, width, 2),
        (width, 2 * width, 1),
        (2 * width,) * 2 + (2,),
    ):
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))
    initialise(network, torch_generator("cpu", seed))
    return network


def train(network: nn.Module, images: Tensor, target: Tensor) -> None:
    """Twelve epochs of SGD on real digits."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(12):
        for batch in torch.randperm(len(images), generator=torch_generator("cpu", epoch)).split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_a_student_learns_digits_that_it_has_never_seen() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    images, target = (images - 0.3) / 0.35, torch.tensor(digits.target)
    teacher, student = digits_network(16, seed=0), digits_network(16, seed=1)
    train(teacher, images[:1400], target[:1400])

    how = SYNTHESIZERS["fastdfkd"](
        batch_size=64,
        warmup=2,
        steps=10,
        width=64,
        augment={"crop": 1, "flip": False},  # type: ignore[call-arg]
    )
    synthesizer = how.build(
        teacher,
        student,
        num_classes=10,
        image_size=8,
        channels=1,
        seed=0,
        device="cpu",
        normalise=([0.3], [0.35]),
    )
    pool, mean, std = Pool(how.pool_capacity, (1, 8, 8)), torch.tensor([[[0.3]]]), torch.tensor([[[0.35]]])
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=18)
    for call in range(20):
        pool.add(synthesizer.synthesize(call).images)
        for step in range(30 if call >= how.warmup else 0):
            inputs = student_inputs(pool.sample(64, 0, call, step), how.augment, mean, std, 0, call, step)
            answer = teacher_logits(teacher, inputs)
            loss = losses.distillation_loss(answer, student(inputs), how.temperature).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if call >= how.warmup:
            decay.step()

    with torch.no_grad():
        taught, learnt = teacher(images[1400:]), student.eval()(images[1400:])
    accuracy = [(logits.argmax(1) == target[1400:]).float().mean().item() for logits in (taught, learnt)]
    assert accuracy[0] > 0.9
    assert accuracy[1] > accuracy[0] - 0.1
