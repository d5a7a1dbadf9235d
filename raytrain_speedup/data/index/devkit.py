"""The labels of ILSVRC2012's validation images, which lie in no folders: from its development kit as downloaded.

`ILSVRC2012_devkit_t12.tar.gz` has the number of a class for each image, in the order of the images' names
(`data/ILSVRC2012_validation_ground_truth.txt`), and what the numbers stand for (`data/meta.mat`, a MATLAB file
whose `synsets` have an `ILSVRC2012_ID` and a `WNID`, the name of the class's training tar file, each).
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath

import scipy.io

from raytrain_speedup.data.folders import shown
from raytrain_speedup.settings import UserError

NUMBERS, MEANINGS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def devkit_labels(path: Path, key: str) -> dict[str, str]:
    """The class of every validation image by its file name, such as n01751748 of ILSVRC2012_val_00000001.JPEG.

    Args:
        path: the kit, a tar file, packed or not.
        key: for messages.

    Raises:
        UserError: if it cannot be read, or is no such kit.
    """
    try:
        with tarfile.open(path) as tar:
            found = {PurePosixPath(entry.name).name: entry for entry in tar if entry.isfile()}
            numbers, meanings = (tar.extractfile(found[name]) for name in (NUMBERS, MEANINGS))
            assert numbers is not None and meanings is not None, "they are files"
            images = [int(line) for line in numbers.read().split()]
            synsets = scipy.io.loadmat(io.BytesIO(meanings.read()), squeeze_me=True)["synsets"]
        ids = zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True)
        name_of = {int(number): str(name) for number, name in ids}
        return {f"ILSVRC2012_val_{k:08d}.JPEG": name_of[number] for k, number in enumerate(images, 1)}
    except (OSError, tarfile.TarError, LookupError, ValueError, TypeError) as error:
        raise UserError(
            f"{key}: --labels: {shown(path)} cannot be read: {error}; expected lines of NAME CLASS, or "
            f"ILSVRC2012_devkit_t12.tar.gz with {NUMBERS} and {MEANINGS} in it"
        ) from None
