"""CIFAR-10 and CIFAR-100 in torchvision's folder; downloaded only when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import ArraySource, Dataset, DataSettings
from raytrain_speedup.settings import UserError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


class _CifarSettings(DataSettings):
    """What both sets share."""

    dataset: ClassVar[str]

    root: Path = Field(Path("data"), description="folder of torchvision's data sets")
    download: bool = Field(False, description="fetch the set (170 MB) into `root` if it is not there")
    mean: tuple[float, ...] = Field((0.4914, 0.4822, 0.4465), description="channel means, 0 to 1")
    std: tuple[float, ...] = Field((0.2470, 0.2435, 0.2616), description="channel stds, 0 to 1")

    def read(self) -> Dataset:
        train, test = (self._open(train=part) for part in (True, False))
        return Dataset(
            train=ArraySource(train.data, np.asarray(train.targets), f"{self.source} training"),
            test=ArraySource(test.data, np.asarray(test.targets), f"{self.source} test"),
            class_names=tuple(train.classes),
        )

    def _open(self, *, train: bool) -> CIFAR10:
        from torchvision import datasets  # half of this package's import time, and only CIFAR needs it

        kind: type[CIFAR10] = getattr(datasets, self.dataset)
        try:
            return kind(self.root, train=train, download=self.download)
        except RuntimeError:  # torchvision's word for files that are missing or damaged
            raise UserError(
                f"data.root: {self.root.absolute()} holds no whole copy of {self.source}; expected "
                f"torchvision's folder '{kind.base_folder}' in it, or data.download=true to fetch it"
            ) from None
        except OSError as error:
            raise UserError(f"data.download: {self.source} cannot be fetched or unpacked: {error}") from None


class Cifar10Settings(_CifarSettings):
    """CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels in 10 classes."""

    dataset: ClassVar = "CIFAR10"
    source: Literal["cifar10"] = "cifar10"


class Cifar100Settings(_CifarSettings):
    """CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels in 100 classes."""

    dataset: ClassVar = "CIFAR100"
    source: Literal["cifar100"] = "cifar100"
    mean: tuple[float, ...] = Field((0.5071, 0.4865, 0.4409), description="channel means, 0 to 1")
    std: tuple[float, ...] = Field((0.2673, 0.2564, 0.2762), description="channel stds, 0 to 1")
