"""The files of the last samples read, so that a curriculum with replay shows them again without reading."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from raytrain_speedup.data.base import CorruptSample, Source

_LOOKED_AT = 16


class KeptFiles:
    """Encoded images by index, first in, first out.

    Encoded is the smallest form there is, and the only one that every crop and every size can be made from;
    it spares reading, not decoding. A file that had to leave is read again.

    Attributes:
        nbytes: memory they take.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._files: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def add(self, files: Mapping[int, bytes], max_bytes: int) -> None:
        """Let files in; the oldest make place until all take no more than `max_bytes`."""
        for index, file in files.items():
            self.nbytes += len(file) - len(self._files.pop(index, b""))
            self._files[index] = file
        while self.nbytes > max_bytes:
            self.nbytes -= len(self._files.popitem(last=False)[1])

    def among(self, indices: Sequence[int]) -> dict[int, bytes]:
        """Those of the samples asked for that are held."""
        return {index: self._files[index] for index in indices if index in self._files}


def usual_bytes(source: Source) -> int:
    """Mean size of a few files from all over a source; 0 where it has plain pixels, in memory already."""
    sizes = [0]
    for index in np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int).tolist():
        try:
            sizes.append(len(source.encoded(index) or b""))
        except CorruptSample:
            continue
    return sum(sizes) // max(1, len(sizes) - 1)
