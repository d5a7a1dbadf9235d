"""Parts of a Snappy stream, without what is before them.

Snappy writes what does not compress, as image files do not, byte by byte into its stream (literals), and now and
then a reference to bytes at most 64 KiB back (copies). So a part needs little more than its own bytes: it begins
within a literal, early enough for all its copies, and ends where it ends. With a head put before it that is a
stream of its own, for any decoder. A page of a hundred images, which Parquet's readers decompress whole for each
of them, is read image by image.

Source: Snappy's format description (github.com/google/snappy, format_description.txt).
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_LITERAL = 0xFFFFFFFF  # in place of what a copy refers to


class Damaged(ValueError):
    """What is no Snappy stream."""


class Cut(NamedTuple):
    """A part of a stream that decompresses without the rest.

    Attributes:
        offset, stored: the bytes of the stream.
        size: bytes that they decompress to.
        start: what is wanted begins there in them.
        literal: of the bytes stored, the first so many are what they stand for.
        tail: where among them the last literal begins, which may be cut short; 0: it is the first.
    """

    offset: int
    stored: int
    size: int
    start: int
    literal: int
    tail: int


class Stream:
    """The elements of a Snappy stream.

    Args:
        data: the whole of it.

    Attributes:
        size: bytes that it decompresses to.

    Raises:
        Damaged: if it is none.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self.size, begin = varint(data, 0)
            found = _elements(data, begin)
        except (IndexError, OverflowError):
            raise Damaged("the stream is cut off") from None
        tag, body, out, refers = (np.frombuffer(one, dtype=np.uint32) for one in found)
        if out[-1] != self.size or tag[-1] > len(data):
            raise Damaged(f"the stream holds {out[-1]} bytes and says {self.size}")
        self._tag, self._body = tag, body  # (E + 1,), (E,) positions in the stream
        self._out, self._refers = out, refers  # (E + 1,), (E,) in what it decompresses to

    def cut(self, start: int, length: int) -> Cut:
        """The part that holds `length` bytes, at least one, from `start` on of what the stream decompresses to."""
        end = start + length
        first, last = (int(np.searchsorted(self._out, at, side="right")) - 1 for at in (start, end - 1))
        begin, looked_at = start, last + 1
        while looked_at > first:  # until no copy refers to anything before
            lowest = int(self._refers[first:looked_at].min())
            begin = min(begin, lowest)
            looked_at, first = first, int(np.searchsorted(self._out, begin, side="right")) - 1
        offset = int(self._body[first]) + begin - int(self._out[first])
        whole = self._refers[last] != _LITERAL  # a copy is not cut
        stop = int(self._tag[last + 1]) if whole else int(self._body[last]) + end - int(self._out[last])
        size = int(self._out[last + 1] if whole else end) - begin
        literal = min(int(self._out[first + 1]) - begin, size)
        tail = 0 if whole or first == last else int(self._tag[last]) - offset
        return Cut(offset, stop - offset, size, start - begin, literal, tail)


def restore(stored: bytes, size: int, literal: int, tail: int) -> bytes:
    """What a part that was cut out decompresses to; the arguments are those of `Cut`.

    Raises:
        Damaged: if it does not.
    """
    head = _varint_of(size) + _literal_tag(literal)
    if tail:
        body = tail + 1 + max(0, (stored[tail] >> 2) - 59)
        if stored[tail] & 3 or body >= len(stored):
            raise Damaged("there is no literal at its end")
        stored = b"".join((stored[:tail], _literal_tag(len(stored) - body), stored[body:]))
    return decompressed(head + stored, size)


def decompressed(stream: bytes, size: int) -> bytes:
    """The bytes of a whole stream.

    Raises:
        Damaged: if these are not `size` bytes.
    """
    try:
        if size < 0 or varint(stream, 0)[0] != size:
            raise Damaged(f"the stream does not say that it holds {size} bytes")
        return pa.decompress(stream, size, "snappy", asbytes=True)
    except (pa.ArrowException, OSError, IndexError) as error:
        raise Damaged(str(error)) from None


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the position behind it.

    Raises:
        IndexError: if the data end within it.
    """
    value = shift = 0
    while (byte := data[at]) & 0x80:
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | byte << shift, at + 1


def _elements(data: bytes, at: int) -> tuple[array, array, array, array]:
    """Of each element: where its tag is, where its bytes are, where what it stands for begins, and where what it
    refers to begins. The first and third have the end as well. Numbers of four bytes: a page that compresses well
    has tens of millions."""
    tags, bodies, outs, refers = (array("I") for _ in range(4))
    out, end = 0, len(data)
    while at < end:
        tags.append(at)
        outs.append(out)
        tag = data[at]
        kind, number = tag & 3, tag >> 2
        if kind == 0:
            extra = max(0, number - 59)
            length = 1 + (int.from_bytes(data[at + 1 : at + 1 + extra], "little") if extra else number)
            body = at + 1 + extra
            at = body + length
            refers.append(_LITERAL)
        else:
            body = at
            if kind == 1:
                length, back, at = 4 + (number & 7), (tag >> 5) << 8 | data[at + 1], at + 2
            else:
                width = 2 * kind - 2
                length, back = 1 + number, int.from_bytes(data[at + 1 : at + 1 + width], "little")
                at += 1 + width
            if not 0 < back <= out:
                raise Damaged("a copy refers to nothing")
            refers.append(out - back)
        bodies.append(body)
        out += length
    tags.append(at)
    outs.append(out)
    return tags, bodies, outs, refers


def _literal_tag(length: int) -> bytes:
    number = length - 1
    if number < 60:
        return bytes([number << 2])
    extra = (number.bit_length() + 7) // 8
    return bytes([(59 + extra) << 2]) + number.to_bytes(extra, "little")


def _varint_of(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
