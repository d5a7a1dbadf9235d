"""The teacher's batch-norm statistics: right to float64, with their gradients, and without traces."""

from __future__ import annotations

import copy

import pytest
import torch
from distillation_nets import classifier
from torch import nn

from raytrain_speedup.methods.distillation import losses
from raytrain_speedup.methods.distillation.bn_statistics import BatchNormProbe, memory_share, moments
from raytrain_speedup.methods.distillation.networks import freeze


def reference_bn_loss(network: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Layer by layer in float64, from the definition: sum of ||running - batch||_2 over mean and variance."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in copy.deepcopy(network).double():
        if isinstance(layer, nn.BatchNorm2d):
            count = x.numel() / x.shape[1]
            mean = x.sum((0, 2, 3)) / count
            var = ((x - mean[:, None, None]) ** 2).sum((0, 2, 3)) / count
            total = total + ((layer.running_mean - mean) ** 2).sum().sqrt()
            total = total + ((layer.running_var - var) ** 2).sum().sqrt()
        x = layer(x)
    return total


def probe_loss(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    probe = BatchNormProbe(network, x.detach()[:2])
    seen = probe.observe(x)
    return losses.bn_loss(seen.mean, seen.var, probe.running_mean, probe.running_var, probe.sizes)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_bn_loss_and_its_gradient_equal_a_float64_reference(offset: float) -> None:
    network = freeze(classifier())
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + offset
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    loss, reference = probe_loss(network, ours), reference_bn_loss(network, exact)
    loss.backward()
    reference.backward()
    assert ours.grad is not None and exact.grad is not None
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        ours.grad.double(), exact.grad, rtol=1e-3, atol=1e-6 * exact.grad.abs().max().item()
    )


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 6)])
def test_the_derivative_of_the_moments_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    x = torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    assert torch.autograd.gradcheck(moments, x)
    mean, var = moments(x)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    torch.testing.assert_close(mean, x.mean(axes))
    torch.testing.assert_close(var, x.var(axes, correction=0))


def test_the_moments_of_bfloat16_are_taken_in_float32() -> None:
    x = torch.randn(64, 2, 16, 16).to(torch.bfloat16)
    mean, var = moments(x)
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(var, x.float().var((0, 2, 3), correction=0))


def test_logits_are_those_of_a_plain_forward() -> None:
    network = freeze(classifier())
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(BatchNormProbe(network, x).observe(x).logits, network(x))


def test_no_hook_outlives_an_observation_even_one_that_fails() -> None:
    network = freeze(classifier())
    probe = BatchNormProbe(network, torch.randn(2, 1, 8, 8))
    probe.observe(torch.randn(2, 1, 8, 8))
    with pytest.raises(RuntimeError):
        probe.observe(torch.randn(2, 5, 8, 8))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


class Reordered(nn.Module):
    """Runs its BN layers in another order than it lists them: one twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.second, self.first = nn.BatchNorm2d(7), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(self.second(self.first(x)) + 1).mean((2, 3)))


def test_layers_count_in_the_order_and_as_often_as_they_run() -> None:
    network = freeze(Reordered())
    assert isinstance(network.first, nn.BatchNorm2d) and isinstance(network.second, nn.BatchNorm2d)
    network.second.running_mean = torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(4, 3, 5, 5)
    probe = BatchNormProbe(network, x)
    assert probe.sizes == [3, 3, 3]
    assert probe.running_mean.tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 0]
    torch.testing.assert_close(probe.observe(x).mean[:3], x.mean((0, 2, 3)))


def test_features_are_the_input_of_the_last_layer_and_instances_each_images_channel_means() -> None:
    network = classifier()
    freeze(network)
    x = torch.randn(4, 1, 8, 8)
    seen = BatchNormProbe(network, x).observe(x, instances=True)
    assert torch.equal(network[-1](seen.features), seen.logits)
    torch.testing.assert_close(seen.instances.mean(0), seen.mean)
    torch.testing.assert_close(seen.instances[:, :4], network[0](x).mean((2, 3)))


def test_a_perfect_match_has_no_loss_and_a_finite_gradient() -> None:
    mean, var = torch.zeros(5, requires_grad=True), torch.ones(5, requires_grad=True)
    loss = losses.bn_loss(mean, var, torch.zeros(5), torch.ones(5), [2, 3])
    loss.backward()
    assert loss == 0 and mean.grad is not None and mean.grad.isfinite().all()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_smoothing_without_bias_weighs_every_call_by_its_age_alone(momentum: float) -> None:
    """Against the weighted mean of all calls in float64: sum_i m^i x_(n-i) / sum_i m^i."""
    values = torch.randn(15, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smoothed = torch.zeros(4, dtype=torch.float64)
    for n, value in enumerate(values):
        share = memory_share(momentum, n)
        smoothed = share * smoothed + (1 - share) * value
        weights = torch.tensor([momentum ** (n - i) for i in range(n + 1)], dtype=torch.float64)
        torch.testing.assert_close(smoothed, weights @ values[: n + 1] / weights.sum())
    assert memory_share(momentum, 0) == 0
    assert memory_share(momentum, 20_000) == pytest.approx(momentum)
