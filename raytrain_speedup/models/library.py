"""Networks of torchvision and timm by name, with a user's mistakes told in one line.

timm and torchvision are imported when a model of theirs is asked for: timm alone takes longer to import than
the CIFAR networks take to build.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from raytrain_speedup.settings import UserError


def torchvision_names() -> list[str]:
    """The classifiers of torchvision, its networks for segmentation and its detectors."""
    from torchvision import models

    return [*models.list_models(module=models), *_dense_names(), *_detector_names()]


def _detector_names() -> list[str]:
    """Without those that also give masks or keypoints."""
    from torchvision import models

    beyond = ("maskrcnn", "keypointrcnn")
    return [name for name in models.list_models(module=models.detection) if not name.startswith(beyond)]


def _dense_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models.segmentation)


def timm_names() -> list[str]:
    """The architectures of timm, without the tags of their weights."""
    import timm

    return timm.list_models()


def build_torchvision(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    drop_rate: float,
    drop_path: float,
    options: Mapping[str, Any],
) -> nn.Module:
    """A torchvision network with fresh weights, and a first layer for the images' channels.

    One for segmentation gives the logits alone (b, num_classes, H, W), and a detector knows the
    background as one more class; `options` may name their `weights_backbone`.
    """
    from torchvision import models

    arguments: dict[str, Any] = {"num_classes": num_classes}
    dense = name in _dense_names()
    if name in _detector_names():
        arguments["num_classes"] += 1
    if dense or name in _detector_names():
        arguments["weights_backbone"] = None  # torchvision's default is to download them
    if name.startswith("vit_"):
        arguments["image_size"] = image_size
    if name in ("googlenet", "inception_v3"):  # their auxiliary heads would return a tuple while training
        arguments |= {"aux_logits": False, "init_weights": True}
    if drop_rate:
        arguments["dropout"] = drop_rate
    if drop_path:
        arguments["stochastic_depth_prob"] = drop_path
    model = _call(f"torchvision/{name}", models.get_model, name, arguments | dict(options))
    if dense:
        from raytrain_speedup.models.dense import logits_alone

        logits_alone(model)
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    return model


def build_timm(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    drop_rate: float,
    drop_path: float,
    options: Mapping[str, Any],
    weights: str | None = None,
) -> nn.Module:
    """A timm model, with the pretrained weights of the tag `weights` if given."""
    import timm

    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = image_size
    if name.startswith(("swin_tiny", "swin_small", "swin_base", "swin_large")):
        arguments["window_size"] = max(1, image_size // 32)  # 7 at 224, 12 at 384
    if drop_rate:
        arguments["drop_rate"] = drop_rate
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if weights is not None:
        name, arguments["pretrained"] = f"{name}.{weights}", True
    return _call(f"timm/{name}", timm.create_model, name, arguments | dict(options))


def published_classes(family: str, name: str, weights: str) -> int:
    """How many classes published weights know; nothing is fetched."""
    if family == "torchvision":
        return len(_torchvision_weights(name, weights).meta["categories"])
    import timm

    try:
        published = timm.get_pretrained_cfg(f"{name}.{weights}")
    except RuntimeError:
        published = None
    if published is None:
        raise UserError(f"model.weights: timm/{name} has no {weights!r}")
    return published.num_classes


def torchvision_weights(name: str, weights: str) -> Mapping[str, Any]:
    """The state dict of torchvision's pretrained weights `weights`, such as IMAGENET1K_V2."""
    try:
        state = _torchvision_weights(name, weights).get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise UserError(f"model.weights: cannot fetch {weights} of torchvision/{name}: {error}") from error
    # The auxiliary head of a segmentation network is only there to be trained with.
    return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}


def _torchvision_weights(name: str, weights: str) -> Any:
    from torchvision import models

    try:
        known = models.get_model_weights(name)
    except ValueError as error:
        raise UserError(f"model.name: there is no model 'torchvision/{name}'") from error
    if weights not in known.__members__:
        raise UserError(
            f"model.weights: torchvision/{name} has no {weights!r}, but {', '.join(known.__members__)}"
        )
    return known[weights]


def _call(shown: str, function: Any, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model; what its constructor refuses is the user's mistake."""
    try:
        return function(name, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise UserError(f"model.name: {shown} cannot be built with {given}: {error}") from error


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    for parent in model.modules():
        for name, module in parent.named_children():
            if isinstance(module, nn.Conv2d) and module.in_channels == 3:
                setattr(parent, name, _with_in_channels(module, in_channels))
                return
    raise UserError(f"model.name: {type(model).__name__} has no first layer to give {in_channels} channels")


def _with_in_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    new = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
