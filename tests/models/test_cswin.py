"""CSWin against its paper: parameters, FLOPs, shapes, and what the stripes see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raytrain_speedup.models import NETWORKS
from raytrain_speedup.models.cswin import CrossAttention, CSWin, StripeAttention, from_stripes, to_stripes


@pytest.mark.parametrize(
    ("name", "parameters_M", "flops_G", "flops_tolerance"),
    [
        ("cswin_t", 23, 4.3, 0.02),
        ("cswin_s", 35, 6.9, 0.02),
        ("cswin_b", 78, 15.0, 0.02),
        # The paper's own 15.0 for B times (144 / 96)^2 is 33.8, so its 31.5 for L was counted otherwise.
        ("cswin_l", 173, 31.5, 0.06),
    ],
)
def test_size_and_cost_as_published(
    name: str, parameters_M: float, flops_G: float, flops_tolerance: float
) -> None:
    with torch.device("meta"):
        model = NETWORKS[name](num_classes=1000, in_channels=3)
        images = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        logits = model(images)
    multiply_adds = counter.get_total_flops() / 2
    assert logits.shape == (1, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters_M, rel=0.031)
    assert multiply_adds / 1e9 == pytest.approx(flops_G, rel=flops_tolerance)


def test_stage_shapes() -> None:
    """At 224 pixels the stages are 56, 28, 14 and 7 wide with 64, 128, 256 and 512 channels."""
    with torch.device("meta"):
        model, x = CSWin(64, (1, 1, 1, 1), (2, 4, 8, 16), num_classes=10), torch.empty(2, 224, 224, 3)
    shapes = []
    for layer in model.layers:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[1::2] == [(56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]


@pytest.mark.parametrize(("size", "widths"), [(96, (1, 2, 3, 3)), (224, (1, 2, 7, 7)), (384, (1, 2, 12, 12))])
def test_stripe_widths_follow_the_image(
    size: int, widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = StripeAttention.forward

    def spy(self: StripeAttention, qkv: Tensor, height: int, width: int) -> Tensor:
        seen.append(min(height, width))
        return forward(self, qkv, height, width)

    monkeypatch.setattr(StripeAttention, "forward", spy)
    with torch.device("meta"):
        CSWin(64, (1, 1, 1, 1), (2, 4, 8, 16), num_classes=10)(torch.empty(1, 3, size, size))
    assert seen == [widths[0]] * 2 + [widths[1]] * 2 + [widths[2]] * 2 + [widths[3]]


def test_stripes_come_back() -> None:
    x = torch.randn(2, 6, 4, 3)
    for height, width in ((2, 4), (6, 1), (3, 2)):
        stripes = to_stripes(x, height, width)
        assert stripes.shape == (2 * 24 // (height * width), height, width, 3)
        assert torch.equal(stripes[0], x[0, :height, :width])
        assert torch.equal(from_stripes(stripes, 6, 4), x)


def test_stripe_attention_is_the_papers_formula() -> None:
    """Equation 8, head by head, on one stripe that is the whole map."""
    torch.manual_seed(0)
    attention = StripeAttention(8, 2)
    qkv = torch.randn(1, 3, 4, 24)
    q, k, v = (part.reshape(12, 2, 4).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
    expected = ((q @ k.transpose(1, 2) / 4**0.5).softmax(-1) @ v).transpose(0, 1).reshape(1, 3, 4, 8)
    lepe = F.conv2d(
        qkv[..., 16:].permute(0, 3, 1, 2), attention.lepe.weight, attention.lepe.bias, padding=1, groups=8
    )
    torch.testing.assert_close(attention(qkv, 3, 4), expected + lepe.permute(0, 2, 3, 1))


def test_the_window_is_a_cross() -> None:
    """A token of a 1-wide block sees its row in the first half of the channels, its column in the other."""
    torch.manual_seed(0)
    block = CrossAttention(8, 2, stripe=1)
    block.proj = nn.Identity()
    x = torch.randn(1, 5, 5, 8, requires_grad=True)
    out = block(x)
    rows = torch.autograd.grad(out[0, 1, 3, :4].sum(), x, retain_graph=True)[0].abs().sum(-1)[0] > 0
    columns = torch.autograd.grad(out[0, 1, 3, 4:].sum(), x)[0].abs().sum(-1)[0] > 0
    row, column = torch.zeros(2, 5, 5, dtype=torch.bool)
    row[1], column[:, 3] = True, True
    assert torch.equal(rows, row)
    assert torch.equal(columns, column)


def test_drop_path_rises_to_the_last_block() -> None:
    model = CSWin(64, (1, 1, 2, 1), (2, 4, 8, 16), num_classes=10, drop_path=0.4)
    rates = [module.p for name, module in model.named_modules() if name.endswith("drop_path")]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
