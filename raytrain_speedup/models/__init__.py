"""Networks by name: small ones for CIFAR-sized images, torchvision's and timm's classifiers, and torchvision's
networks for segmentation and detection, masked autoencoders around timm's vision transformers, diffusers' U-Net,
and the causal language models of transformers.

settings = ModelSettings(name="resnet18")
model = build_model(settings, num_classes=10, image_size=32)
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from raytrain_speedup.models import library
from raytrain_speedup.models.airbench import Airbench
from raytrain_speedup.models.causal_lm import FAMILY, build_causal_lm, stored_options
from raytrain_speedup.models.cswin import CSWin
from raytrain_speedup.models.mae import build_mae
from raytrain_speedup.models.pretrained import classifier_keys, fit_weights, load_pretrained
from raytrain_speedup.models.resize import change_size, size_of
from raytrain_speedup.models.resnet import BasicBlock, Bottleneck, ResNet
from raytrain_speedup.models.unet import UNET, build_diffusers, unet_stride
from raytrain_speedup.models.vgg import VGG11
from raytrain_speedup.models.wide_resnet import WideResNet
from raytrain_speedup.settings import Settings, UserError
from raytrain_speedup.user_code import OwnCall, imported, is_import_path, what_happened


class ModelSettings(Settings):
    """Which network is trained, and what it starts from."""

    name: str = Field(
        description="resnet8, resnet18, resnet34, resnet50, wrn16_1, wrn16_2, wrn40_1, wrn40_2, vgg11, airbench "
        "or airbench_s (small images), cswin_t, cswin_s, cswin_b or cswin_l, torchvision/<model>, those for "
        "segmentation and detection too, timm/<model>, mae/<vision transformer of timm>, diffusers/UNet2DModel, "
        "transformers/<type of causal language model>, or the import path of what builds yours, such as "
        "my_package.nets:build"
    )
    drop_rate: float = Field(0.0, ge=0, lt=1, description="dropout rate, where the network has dropout")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate, where the network has it")
    bn_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="fraction of a batch in the running statistics of batch normalisation; MobileNetV3 and "
        "EfficientNet come with .01, for hundreds of thousands of steps; default: as the network has it",
    )
    pretrained: Path | None = Field(
        None,
        description="a state-dict file to start from; position tables are resized to the run's size, and "
        "a classifier for another number of classes starts afresh; of transformers/... the folder of a checkpoint",
    )
    weights: str | None = Field(
        None,
        description="published weights to start from, fetched on first use: torchvision's name "
        "(IMAGENET1K_V2) or timm's tag (a1_in1k)",
    )
    head_only: bool = Field(
        False,
        description="train the classifier alone, on the frozen features of `pretrained` or `weights` (a linear "
        "probe)",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="further keyword arguments of the torchvision, timm or own model (depths, embed_dim, ...); of "
        "transformers/... keys of its configuration, and lora_rank, lora_alpha, lora_dropout, lora_targets",
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModelSettings:
        if self.pretrained is not None and self.weights is not None:
            raise ValueError("a model starts from `pretrained` or from `weights`, not from both")
        return self

    @property
    def dropped(self) -> dict[str, float]:
        """The rates of dropping that are set."""
        return {key: getattr(self, key) for key in ("drop_rate", "drop_path") if getattr(self, key)}

    @property
    def is_language_model(self) -> bool:
        """Whether it is one of transformers, whose `pretrained` is a folder that has the configuration too."""
        return self.name.startswith(f"{FAMILY}/")

    @property
    def call(self) -> OwnCall:
        """What builds a network of the user's own."""
        return OwnCall("model.name", self.name, self.options, "model.options")

    def check_code(self) -> None:
        if is_import_path(self.name) and not isinstance(imported(self.name, "model.name"), nn.Module):
            self.call.check("num_classes", *self.dropped)


Builder = Callable[..., nn.Module]
"""Called with `num_classes`, `in_channels` and, if they are set, `drop_rate` and `drop_path`."""


def _resnet(block: type[BasicBlock] | type[Bottleneck], *depths: int, widths: tuple[int, ...]) -> Builder:
    return lambda **arguments: ResNet(block, depths, widths, **arguments)


def _wrn(depth: int, width: int) -> Builder:
    return lambda **arguments: WideResNet(depth, width, **arguments)


def _airbench(*widths: int) -> Builder:
    return lambda **arguments: Airbench(widths, **arguments)


def _cswin(dim: int, *depths: int, heads: tuple[int, ...]) -> Builder:
    return lambda **arguments: CSWin(dim, depths, heads, **arguments)


_IMAGENET_WIDTHS = (64, 128, 256, 512)
NETWORKS: dict[str, Builder] = {
    "resnet8": _resnet(BasicBlock, 1, 1, 1, widths=(16, 32, 64)),
    "resnet18": _resnet(BasicBlock, 2, 2, 2, 2, widths=_IMAGENET_WIDTHS),
    "resnet34": _resnet(BasicBlock, 3, 4, 6, 3, widths=_IMAGENET_WIDTHS),
    "resnet50": _resnet(Bottleneck, 3, 4, 6, 3, widths=_IMAGENET_WIDTHS),
    "wrn16_1": _wrn(16, 1),
    "wrn16_2": _wrn(16, 2),
    "wrn40_1": _wrn(40, 1),
    "wrn40_2": _wrn(40, 2),
    "vgg11": VGG11,
    "airbench": Airbench,
    "airbench_s": _airbench(24, 64, 64),
    "cswin_t": _cswin(64, 1, 2, 21, 1, heads=(2, 4, 8, 16)),
    "cswin_s": _cswin(64, 2, 4, 32, 2, heads=(2, 4, 8, 16)),
    "cswin_b": _cswin(96, 2, 4, 32, 2, heads=(4, 8, 16, 32)),
    "cswin_l": _cswin(144, 2, 4, 32, 2, heads=(6, 12, 24, 24)),
}
"""The networks of this package; a new one is one file and one line here."""


def model_names() -> list[str]:
    """Every name that `build_model` knows."""
    return [
        *NETWORKS,
        *(f"torchvision/{name}" for name in library.torchvision_names()),
        *(f"timm/{name}" for name in library.timm_names()),
    ]


def build_model(
    settings: ModelSettings,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int,
    dense: bool | None = False,
) -> nn.Module:
    """The network, on the CPU (or torch's default device), float32; `forward` gives (b, num_classes) logits,
    or (b, num_classes, H, W) where every pixel has a class.

    Fresh weights are drawn from torch's global generator: seed it for a repeatable start.

    Args:
        settings: which network.
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: size of the images in pixels at full resolution.
        dense: whether every pixel has a class, rather than every image; None where the network is for something
            else than classes, and is not tried here.

    Raises:
        UserError: for an unknown name, or a network that does not take these sizes, options or weights.
    """
    model = _construct(settings, num_classes, in_channels, image_size)
    if settings.bn_momentum is not None:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.momentum = settings.bn_momentum
    reason = _refusal(model, (in_channels, image_size, image_size), num_classes, dense)
    if reason is not None:
        shape = f"{in_channels} x {image_size} x {image_size}"
        raise UserError(f"model.name: {settings.name} takes no images of {shape}: {reason}")
    if settings.pretrained is not None and not settings.is_language_model:
        load_pretrained(model, settings.pretrained, num_classes=num_classes)
    if settings.head_only:
        _freeze_features(model, num_classes)
    return model


def _freeze_features(model: nn.Module, num_classes: int) -> None:
    """Leave the classifier alone to be trained.

    Raises:
        UserError: where there is none, or where batch statistics would move although no weight does.
    """
    head = classifier_keys(model, num_classes)
    moving = any(isinstance(layer, _BatchNorm) for layer in model.modules())
    if not head or moving:
        what = (
            "has batch normalisation, whose statistics would go on moving" if moving else "has no classifier"
        )
        raise UserError(f"model.head_only: {type(model).__name__} {what}; expected false, or another network")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)


def stride_of(
    settings: ModelSettings, *, image_size: int, num_classes: int = 10, in_channels: int = 3
) -> int:
    """The step in pixels in which the image size of a network may change.

    Networks that cut images into patches or windows need multiples of it. The others take any size, and the
    step only keeps their last feature map whole: 32 for large images, 4 for small ones.

    Raises:
        UserError: for an unknown name or options that the network does not take.
    """
    stride = None
    fresh = without_weights(settings)
    if is_import_path(settings.name):  # the user's code may do more than meta tensors can
        with torch.random.fork_rng(devices=[]):
            stride = _needed_stride(_construct(fresh, num_classes, in_channels, image_size))
    elif not settings.name.startswith("torchvision/"):  # those take any size or are refused
        with torch.device("meta"):
            stride = _needed_stride(_construct(fresh, num_classes, in_channels, image_size))
    return stride or (32 if image_size >= 128 else 4)


def check_sizes(
    settings: ModelSettings,
    sizes: Iterable[int],
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int,
    dense: bool | None = False,
) -> None:
    """Refuse a network that could not train at every size of a curriculum, without any arithmetic.

    Raises:
        UserError: naming the network, the size and the reason.
    """
    with torch.random.fork_rng(devices=[]):
        model = _construct(without_weights(settings), num_classes, in_channels, image_size)
    for size in sizes:
        reason = _refusal_of_change(model, (in_channels, size, size), num_classes, dense)
        if reason is not None:
            change = f"from {image_size} to {size}"
            raise UserError(f"model.name: {settings.name} cannot change its image size {change}: {reason}")


def _refusal_of_change(
    model: nn.Module, image_shape: tuple[int, int, int], num_classes: int, dense: bool | None
) -> str | None:
    size, stride = image_shape[-1], _needed_stride(model)
    if stride is not None and size % stride:
        return f"it takes multiples of {stride}"
    try:
        change_size(model, size)
    except ValueError as error:
        return str(error)
    return _refusal(model, image_shape, num_classes, dense)


def published_classes(settings: ModelSettings) -> int:
    """How many classes the published weights of a network know, without fetching them.

    Raises:
        UserError: if there are no such weights.
    """
    family, _, name = settings.name.rpartition("/")
    if settings.weights is None or family not in ("torchvision", "timm"):
        raise UserError(f"model.weights: none are published for {settings.name}")
    return library.published_classes(family, name, settings.weights)


def without_weights(settings: ModelSettings) -> ModelSettings:
    """The same network, freshly drawn."""
    update: dict[str, Any] = {"pretrained": None, "weights": None}
    if settings.is_language_model and settings.pretrained is not None:
        update["options"] = {**stored_options(settings.pretrained), **settings.options}
    return settings.model_copy(update=update)


def _needed_stride(model: Any) -> int | None:
    """What sides must be a multiple of: the patch of a ViT, or the whole downsampling where windows (or, in
    PVT, strided keys) must tile the last map."""
    if isinstance(model, CSWin):
        return CSWin.stride
    if type(model).__name__ == UNET:
        return unet_stride(model)
    if size_of(model) is not None or type(model).__name__ == "PyramidVisionTransformerV2":
        return max(info["reduction"] for info in model.feature_info)
    return None


def _refusal(
    model: nn.Module, image_shape: tuple[int, int, int], num_classes: int, dense: bool | None
) -> str | None:
    """Why a model can't take such images: a forward pass of shapes alone, without any arithmetic."""
    if dense is None:
        return None
    tensors = chain(model.named_parameters(), model.named_buffers())
    shapes = {key: tensor.to("meta") for key, tensor in tensors}
    images = torch.empty(2, *image_shape, device="meta")
    try:
        with torch.no_grad():
            logits = functional_call(model.eval(), shapes, images)
    except (RuntimeError, ValueError, AssertionError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # of a network that is the user's own
        return what_happened(error)
    finally:
        model.train()
    if not isinstance(logits, torch.Tensor):
        return f"it gives a {type(logits).__name__}, not a tensor of logits"
    expected = (num_classes, *image_shape[1:]) if dense else (num_classes,)
    if (found := tuple(logits.shape[1:])) != expected:
        wanted = "each pixel, as torchvision's segmentation networks do" if dense else "an image"
        return f"it gives outputs of shape {found}, not {num_classes} logits for {wanted}"
    return None


def _construct(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    shapes: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    if is_import_path(settings.name):
        return build_own(settings, **shapes)
    family, _, name = settings.name.rpartition("/")
    if family == "" and name in NETWORKS:
        return _construct_named(settings, **shapes)
    if family == FAMILY:
        return _construct_language_model(settings, name, num_classes, image_size)
    if family not in ("torchvision", "timm", "mae", "diffusers"):
        raise _unknown(settings.name)
    wished = settings.model_dump(include={"drop_rate", "drop_path", "options"})
    if family == "diffusers":
        _refuse_weights(settings)
        return build_diffusers(name, image_size=image_size, in_channels=in_channels, **wished)
    if family != "torchvision":
        if name not in library.timm_names():
            raise _unknown(settings.name)
        build = library.build_timm if family == "timm" else build_mae
        return build(name, image_size=image_size, weights=settings.weights, **shapes, **wished)
    if name not in library.torchvision_names():
        raise _unknown(settings.name)
    if settings.weights is not None and in_channels != 3:
        raise UserError(
            f"model.weights: torchvision's weights take 3 channels, and the data have {in_channels}"
        )
    model = library.build_torchvision(name, image_size=image_size, **shapes, **wished)
    if settings.weights is not None:
        fit_weights(model, library.torchvision_weights(name, settings.weights), num_classes=num_classes)
    return model


def _construct_language_model(settings: ModelSettings, name: str, num_tokens: int, length: int) -> nn.Module:
    _refuse_weights(settings)
    if settings.dropped or settings.head_only:
        key = next(iter(settings.dropped), "head_only")
        raise UserError(
            f"model.{key}: not known to {settings.name}; expected it left out (model.options has its own)"
        )
    return build_causal_lm(
        name, settings.options, vocabulary=num_tokens, length=length, folder=settings.pretrained
    )


def _construct_named(settings: ModelSettings, **shapes: int) -> nn.Module:
    if settings.options:
        raise UserError(
            f"model.options: {settings.name} has none, and {', '.join(settings.options)} is given"
        )
    _refuse_weights(settings)
    dropped = settings.dropped
    try:
        return NETWORKS[settings.name](**shapes, **dropped)
    except TypeError as error:
        raise UserError(f"model.name: {settings.name} does not take {' and '.join(dropped)}") from error


def build_own(settings: ModelSettings, *, num_classes: int, in_channels: int) -> nn.Module:
    """A network of the user's own: from a function or class that takes `num_classes`, and `in_channels` where its
    signature has it; a network that was handed over in Python is copied, so that each run starts from its weights.

    Raises:
        UserError: if there is no such code, if it takes other arguments or fails, or gives no network.
    """
    _refuse_weights(settings)
    given = imported(settings.name, "model.name")
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    arguments = {"num_classes": num_classes, **settings.dropped}
    model = settings.call(arguments, if_taken={"in_channels": in_channels})
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name: {settings.name} gives a {type(model).__name__}; expected a torch.nn.Module"
        )
    return model


def _refuse_weights(settings: ModelSettings) -> None:
    if settings.weights is not None:
        raise UserError(
            f"model.weights: none are published for {settings.name}; model.pretrained takes a file"
        )


def _unknown(name: str) -> UserError:
    close = difflib.get_close_matches(name, model_names(), n=5)
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else f"known are {', '.join(NETWORKS)}, torchvision/..., timm/..., mae/..., diffusers/..., transformers/..."
    )
    return UserError(f"model.name: there is no model {name!r}; {hint}")
