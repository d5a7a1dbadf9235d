"""Where the values of a column of Parquet lie in its file, page by page.

A page's values stand one behind the other, each with its length before it. Of a page that is not compressed a value
has its own bytes in the file; of one that Snappy compressed it has a part of the stream (`snappy.py`); the other
codecs give a page as a whole or not at all. Pages of a dictionary's numbers lead to the values in the dictionary.

pyarrow tells where the pages of a column begin and no more, so what is before each page is read here: a struct of
Thrift's compact protocol. Source: Apache Parquet's format, parquet.thrift and Encodings.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa

from raytrain_speedup.data.index.shards import PACKED
from raytrain_speedup.data.index.snappy import Damaged, Stream, restore, varint

PLACE = np.dtype([("offset", "<u8"), ("stored", "<u4"), ("packed", PACKED)])
"""One value: the bytes of the file it needs, and how it is packed in them. All 0 for a null."""
CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7}
"""As pyarrow names them in a file and parquet.thrift numbers them. (LZ4 is LZ4_RAW; Hadoop's older one has the same
name, and is found to be damaged.)"""
_DECOMPRESSORS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_DICTIONARY_PAGE, _DATA_PAGES = 2, (0, 3)
_PLAIN, _RLE, _DICTIONARIES = 0, 3, (2, 8)
_HEADER = 1 << 12  # bytes that are read for a header at first: those with statistics of images are longer
_LONGEST_HEADER = 1 << 26


@dataclass(frozen=True)
class Chunk:
    """The column in one row group.

    Attributes:
        start, stop: of its pages in the file.
        codec: as Parquet names it.
        levels: definition levels; values of a lower one than the highest are nulls.
    """

    start: int
    stop: int
    codec: str
    levels: int


def places(file: IO[bytes], chunk: Chunk) -> np.ndarray:
    """(n,) of `PLACE`, the values of a column in a row group, in their order.

    Raises:
        Damaged: if the pages are not what their headers say, or of an encoding in which values are not whole.
    """
    if chunk.codec not in CODECS:
        raise Damaged(f"{chunk.codec} is no codec that is read here ({', '.join(CODECS)})")
    dictionary = np.empty(0, PLACE)
    found = [np.empty(0, PLACE)]
    try:
        for page in _pages(file, chunk):
            if page.kind == _DICTIONARY_PAGE:
                dictionary = page.plain(page.count)
            else:
                found.append(page.values(dictionary))
    except (IndexError, KeyError, ValueError) as error:
        raise Damaged(str(error) if isinstance(error, Damaged) else "a page is cut off") from None
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
    chunk: Chunk
    kind: int
    count: int
    encoding: int
    begin: int
    stop: int
    size: int
    codec: int
    levels: bytes | None

    def __post_init__(self) -> None:
        self._body: bytes | None = None

    def values(self, dictionary: np.ndarray) -> np.ndarray:
        """(count,) of `PLACE`, of a page of data."""
        at, valid = 0, np.ones(self.count, dtype=bool)
        if self.chunk.levels:
            levels = self.levels
            if levels is None:  # they are in the body, behind their length
                at = 4 + int.from_bytes(self._bytes(0, 4), "little")
                levels = self._bytes(4, at)
            if levels:
                width = self.chunk.levels.bit_length()
                valid = hybrid(levels, width, self.count) == self.chunk.levels
        present = int(valid.sum())
        if self.encoding == _PLAIN:
            found = self.plain(present, at)
        elif self.encoding in _DICTIONARIES:
            numbers = self._bytes(at, self.size)
            found = dictionary[hybrid(numbers[1:], numbers[0], present) if present else []]
        else:
            raise Damaged(
                f"a page has encoding {self.encoding} of parquet.thrift, in which lengths and bytes are apart; "
                "expected plain values or a dictionary of them"
            )
        whole = np.zeros(self.count, PLACE)
        whole[valid] = found
        return whole

    def plain(self, count: int, at: int = 0) -> np.ndarray:
        """(count,) of `PLACE`: values with their lengths before them, from `at` on in the body to its end."""
        start, length = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        for number in range(count):
            length[number] = int.from_bytes(self._bytes(at, at + 4), "little")
            start[number] = at + 4
            at += 4 + int(length[number])
        if at != self.size:
            raise Damaged(f"the values of a page take {at} bytes, and the page has {self.size}")
        return self._placed(start, length)

    def _placed(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        found = np.zeros(len(start), PLACE)
        packed = found["packed"]
        packed["length"] = length
        if self.codec == CODECS["UNCOMPRESSED"]:
            found["offset"], found["stored"], packed["size"] = self.begin + start, length, length
        elif self.codec == CODECS["SNAPPY"]:
            packed["codec"] = self.codec
            stream = Stream(_read(self.file, self.begin, self.stop))
            for number in np.flatnonzero(length):
                cut = stream.cut(int(start[number]), int(length[number]))
                found["offset"][number], found["stored"][number] = self.begin + cut.offset, cut.stored
                for name in ("size", "start", "literal", "tail"):
                    packed[name][number] = getattr(cut, name)
        else:
            found["offset"], found["stored"], packed["codec"] = self.begin, self.stop - self.begin, self.codec
            packed["start"], packed["size"] = start, self.size
        return found

    def _bytes(self, start: int, stop: int) -> bytes:
        """Of the body; of one that is not compressed no other ones are read."""
        if self.codec == CODECS["UNCOMPRESSED"]:
            return _read(self.file, self.begin + start, self.begin + stop)
        if self._body is None:
            self._body = _decompressed(_read(self.file, self.begin, self.stop), self.size, self.codec)
        if stop > len(self._body):
            raise Damaged(f"a value ends at {stop} of the {len(self._body)} bytes of its page")
        return self._body[start:stop]


def unpacked(stored: bytes, how: np.void) -> bytes:
    """A value from the bytes of its place.

    Args:
        how: of `PACKED`.

    Raises:
        Damaged: if they do not decompress to it.
    """
    size, start, length, literal, tail, codec = how.tolist()
    if not codec or not length:
        return stored
    if codec == CODECS["SNAPPY"]:
        whole = restore(stored, size, literal, tail)
    else:
        whole = _decompressed(stored, size, codec)
    return whole[start : start + length]


def _decompressed(data: bytes, size: int, codec: int) -> bytes:
    """A whole page."""
    try:
        return pa.decompress(data, size, _DECOMPRESSORS[codec], asbytes=True)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(str(error)) from None


def _pages(file: IO[bytes], chunk: Chunk) -> Iterator[_Page]:
    at = chunk.start
    while at < chunk.stop:
        header, at = _header(file, at, chunk.stop)
        kind, size, stored = header[1], header[2], header[3]
        codec, levels, before = CODECS[chunk.codec], None, 0
        if kind == 3:
            told = header[8]
            count, encoding, repeated, before = told[1], told[4], told[6], told[5]
            levels = _read(file, at, at + before) if told[2] else b""
            if repeated:
                raise Damaged("the column holds lists; expected one image in every row")
            if not told.get(7, True):
                codec = CODECS["UNCOMPRESSED"]
        else:
            told = header.get(5) or header.get(7) or {1: 0, 2: _PLAIN}
            count, encoding = told[1], told[2]
            if kind == 0 and chunk.levels and told[3] != _RLE:
                raise Damaged("the definition levels of a page are packed as they were before Parquet 2.0")
        if kind == _DICTIONARY_PAGE or kind in _DATA_PAGES:
            yield _Page(
                file, chunk, kind, count, encoding, at + before, at + stored, size - before, codec, levels
            )
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
    data = file.read(stop - start)
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
