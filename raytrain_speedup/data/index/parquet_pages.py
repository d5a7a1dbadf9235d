"""Where the values of a column of Parquet lie in its file, page by page.

A page's values stand one behind the other, each with its length before it. Of a page that is not compressed a value
has its own bytes in the file; of one that Snappy compressed it has a part of the stream (`snappy.py`). The other
codecs give a page as a whole or not at all, and are not read here. Pages of a dictionary's numbers lead to the
values in the dictionary.

pyarrow tells where the pages of a column begin and no more, so what is before each page is read here: a struct of
Thrift's compact protocol. Source: Apache Parquet's format, parquet.thrift and Encodings.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np

from raytrain_speedup.data.index.shards import PACKED
from raytrain_speedup.data.index.snappy import Damaged, Stream, decompressed, varint

PLACE = np.dtype([("offset", "<u8"), ("stored", "<u4"), ("packed", PACKED)])
"""One value: the bytes of the file it needs, and how it is packed in them. All 0 where there is none, or an empty
one."""
_DICTIONARY_PAGE, _DATA_PAGE, _DATA_PAGE_V2 = 2, 0, 3
_PLAIN, _RLE, _DICTIONARIES = 0, 3, (2, 8)
_HEADER = 1 << 12  # bytes that are read for a header at first: those with statistics of images are longer
_LONGEST_HEADER = 1 << 26
_PADDING = 8  # zeros at the end of fastparquet's pages


@dataclass(frozen=True)
class Chunk:
    """The column in one row group.

    Attributes:
        start, stop: of its pages in the file.
        compressed: by Snappy; otherwise not at all.
        highest_level: definition level of a value; what has a lower one is null. 0: all are values.
    """

    start: int
    stop: int
    compressed: bool
    highest_level: int


def places(file: IO[bytes], chunk: Chunk) -> np.ndarray:
    """(n,) of `PLACE`, the values of a column in a row group, in their order.

    Raises:
        Damaged: if the pages are not what their headers say, or of an encoding in which values are not whole.
    """
    dictionary = np.empty(0, PLACE)
    found = [np.empty(0, PLACE)]
    try:
        for page in _pages(file, chunk):
            if page.kind == _DICTIONARY_PAGE:
                dictionary = page.plain(page.count)
            else:
                found.append(page.values(dictionary))
    except Damaged:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        raise Damaged("a page is cut off, or its header is none") from None
    return np.concatenate(found)


@dataclass
class _Page:
    """One page.

    Attributes:
        kind: as parquet.thrift numbers them.
        begin, stop: of its body in the file, what is before it in a page of version 2 left out.
        size: of the body, decompressed.
        levels: bytes of the definition levels, where they are before the body.
    """

    file: IO[bytes]
    highest_level: int
    kind: int
    count: int
    encoding: int
    begin: int
    stop: int
    size: int
    compressed: bool
    levels: bytes | None = None

    @cached_property
    def _stored(self) -> bytes:
        """The body of a compressed page, as it lies in the file."""
        return _read(self.file, self.begin, self.stop)

    @cached_property
    def _body(self) -> bytes:
        return decompressed(self._stored, self.size)

    def values(self, dictionary: np.ndarray) -> np.ndarray:
        """(count,) of `PLACE`, of a page of data."""
        at, valid = 0, np.ones(self.count, dtype=bool)
        if self.highest_level:
            levels = self.levels
            if levels is None:  # they are in the body, behind their length
                at = 4 + int.from_bytes(self._bytes(0, 4), "little")
                levels = self._bytes(4, at)
            if levels:
                found = hybrid(levels, self.highest_level.bit_length(), self.count)
                valid = found == self.highest_level
        present = int(valid.sum())
        whole = np.zeros(self.count, PLACE)
        if self.encoding == _PLAIN:
            whole[valid] = self.plain(present, at)
        elif self.encoding in _DICTIONARIES:
            numbers = self._bytes(at, self.size)
            whole[valid] = dictionary[hybrid(numbers[1:], numbers[0], present) if present else []]
        else:
            raise Damaged(
                f"a page has encoding {self.encoding} of parquet.thrift; expected plain values (0) or a dictionary "
                "of them (2, 8), in which a value is whole"
            )
        return whole

    def plain(self, count: int, at: int = 0) -> np.ndarray:
        """(count,) of `PLACE`: values with their lengths before them, from `at` on in the body to its end."""
        start, length = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        for number in range(count):
            length[number] = int.from_bytes(self._bytes(at, at + 4), "little")
            start[number] = at + 4
            at += 4 + int(length[number])
        if not at <= self.size <= at + _PADDING or any(self._bytes(at, self.size)):
            raise Damaged(f"the values of a page take {at} bytes, and the page has {self.size}")
        return self._placed(start, length)

    def _placed(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        found = np.zeros(len(start), PLACE)
        packed = found["packed"]
        here = np.flatnonzero(length)
        if not self.compressed:
            found["offset"][here] = self.begin + start[here]
            for column in (found["stored"], packed["size"], packed["length"]):
                column[here] = length[here]
        elif len(here):
            stream = Stream(self._stored)
            for number in here:
                cut = stream.cut(int(start[number]), int(length[number]))
                found["offset"][number], found["stored"][number] = self.begin + cut.offset, cut.stored
                packed[number] = cut.size, cut.start, length[number], cut.literal, cut.tail
        return found

    def _bytes(self, start: int, stop: int) -> bytes:
        """Of the body; of one that is not compressed no other ones are read."""
        if not self.compressed:
            return _read(self.file, self.begin + start, self.begin + stop)
        if stop > len(self._body):
            raise Damaged(f"a value ends at {stop} of the {len(self._body)} bytes of its page")
        return self._body[start:stop]


def _pages(file: IO[bytes], chunk: Chunk) -> Iterator[_Page]:
    at = chunk.start
    while at < chunk.stop:
        header, at = _header(file, at, chunk.stop)
        kind, size, stored = header[1], header[2], header[3]
        compressed, levels, before = chunk.compressed, None, 0
        if kind == _DATA_PAGE_V2:
            told = header[8]
            count, encoding, before = told[1], told[4], told[5]
            levels = _read(file, at, at + before) if told[2] else b""
            compressed = compressed and told.get(7, True)
        else:
            told = header.get(5) or header.get(7) or {1: 0, 2: _PLAIN}
            count, encoding = told[1], told[2]
            if kind == _DATA_PAGE and chunk.highest_level and told[3] != _RLE:
                raise Damaged("the definition levels of a page are packed as they were before Parquet 2.0")
        if not (0 <= before <= stored <= chunk.stop - at and before <= size):
            raise Damaged("a page ends behind its row group")
        if kind in (_DICTIONARY_PAGE, _DATA_PAGE, _DATA_PAGE_V2):
            place = at + before, at + stored, size - before
            yield _Page(file, chunk.highest_level, kind, count, encoding, *place, compressed, levels)
        at += stored


def _header(file: IO[bytes], at: int, stop: int) -> tuple[dict[int, Any], int]:
    """The header of a page, and where its body begins."""
    length = _HEADER
    while True:
        data = _read(file, at, min(at + length, stop))
        try:
            header, end = _struct(data, 0)
            return header, at + end
        except IndexError:
            if at + length >= stop or length > _LONGEST_HEADER:
                raise
            length *= 16


def _read(file: IO[bytes], start: int, stop: int) -> bytes:
    file.seek(start)
    data = file.read(max(0, stop - start))
    if len(data) != stop - start:
        raise Damaged(f"the file ends at {start + len(data)}")
    return data


def hybrid(data: bytes, width: int, count: int) -> np.ndarray:
    """(count,) int64 of Parquet's run-length and bit-packed numbers of `width` bits.

    Raises:
        IndexError: if there are fewer.
    """
    found = np.empty(count, dtype=np.int64)
    at = done = 0
    while done < count:
        head, at = varint(data, at)
        if head & 1:
            nbytes = (head >> 1) * width
            numbers = _bit_packed(data[at : at + nbytes], width) if width else np.zeros(8 * (head >> 1), int)
        else:
            nbytes = (width + 7) // 8
            value = int.from_bytes(data[at : at + nbytes], "little")
            numbers = np.full(min(head >> 1, count - done), value)
        if not len(numbers):
            raise IndexError("no numbers in a run")
        numbers = numbers[: count - done]
        found[done : done + len(numbers)] = numbers
        at, done = at + nbytes, done + len(numbers)
    return found


def _bit_packed(data: bytes, width: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return bits[: len(bits) // width * width].reshape(-1, width) @ (1 << np.arange(width))


# --- Thrift's compact protocol -------------------------------------------------------------------------------

_TRUE, _FALSE, _BYTE, _WHOLE, _DOUBLE, _BINARY, _LISTS, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and the position behind it."""
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        kind = head & 0xF
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in _WHOLE:
        return _zigzag(data, at)
    if kind in (_TRUE, _FALSE, _BYTE):  # in a list a truth value takes a byte
        return data[at], at + 1
    if kind == _STRUCT:
        return _struct(data, at)
    if kind in (_DOUBLE, _BINARY):
        length, at = (8, at) if kind == _DOUBLE else varint(data, at)
        if at + length > len(data):
            raise IndexError("cut off")
        return data[at : at + length], at + length
    if kind in _LISTS:
        count, at, item = data[at] >> 4, at + 1, data[at] & 0xF
        if count == 15:
            count, at = varint(data, at)
        items = []
        for _ in range(count):
            value, at = _value(data, at, item)
            items.append(value)
        return items, at
    raise Damaged("the header of a page is none")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = varint(data, at)
    return value >> 1 ^ -(value & 1), at
