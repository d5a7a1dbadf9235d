"""Folders of images with boxes in a JSON file, in the format of COCO (Lin et al., ECCV 2014, arXiv 1405.0312).

A file has `images` (id, file_name), `categories` (id, name) and `annotations` (image_id, category_id, bbox: left,
top, width and height in pixels, iscrowd). An image without annotations has no objects, and is shown like any other.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from raytrain_speedup.data.base import Dataset
from raytrain_speedup.data.boxed import BoxedSource, BoxSettings
from raytrain_speedup.data.boxes import FIELDS
from raytrain_speedup.data.folders import FolderSource, is_folder, naming_the_split, shown, split_folders
from raytrain_speedup.settings import UserError

_KEY = "data.annotations"
SECTIONS = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ("image_id",)}
"""What a file has, and what each of these has at least."""


class CocoSettings(BoxSettings):
    """A JSON file and a folder of images for every split.

    `{split}` in their names stands for train, test and, where there is one, val. Without a file for test, as where
    a benchmark keeps its boxes back, val is the test split.
    """

    source: Literal["coco"] = "coco"
    root: Path = Field(description="folder above the files and the images")
    annotations: str = Field(
        "annotations/instances_{split}.json",
        description="file of a split's boxes, inside `root`; annotations/instances_{split}2017.json as COCO is "
        "unpacked",
    )
    images: str = Field(
        "{split}", description="folder of a split's images, inside `root`; {split}2017 in COCO"
    )
    image_size: int = Field(320, ge=4, le=2048, description="image size the network sees, in pixels")

    _names_the_split = field_validator("annotations", "images")(naming_the_split("{split}2017"))

    def read(self) -> Dataset:
        names = split_folders(lambda name: self._path(self.annotations, name).is_file())
        files = {split: _read(self._path(self.annotations, name)) for split, name in names.items()}
        categories = sorted((entry["id"], str(entry["name"])) for entry in files["train"]["categories"])
        if not categories:
            raise UserError(
                f"{_KEY}: {self._path(self.annotations, 'train')} has no categories; expected one"
            )
        numbers = {category: 1 + k for k, (category, _) in enumerate(categories)}
        sources = {split: self._source(files[split], name, numbers) for split, name in names.items()}
        class_names = tuple(name for _, name in categories)
        return Dataset(sources["train"], sources["test"], class_names, val=sources.get("val"))

    def _path(self, pattern: str, split: str) -> Path:
        return self.root / pattern.replace("{split}", split)

    def _source(self, file: dict[str, Any], split: str, numbers: Mapping[int, int]) -> BoxedSource:
        folder = self._path(self.images, split)
        if not is_folder("data.images", folder):
            raise UserError(
                f"data.images: there is no folder {shown(folder.absolute())}; expected the images of the {split} "
                "split"
            )
        by_image: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in file["images"]}
        if len(by_image) < len(file["images"]):
            raise UserError(
                f"{_KEY}: {self._path(self.annotations, split)} has several images of one id; expected an id each"
            )
        for annotation in file["annotations"]:
            if annotation["image_id"] not in by_image:
                raise UserError(
                    f"{_KEY}: {self._path(self.annotations, split)} has an annotation of image "
                    f"{annotation['image_id']!r}, which is not among its images"
                )
            by_image[annotation["image_id"]].append(annotation)
        boxes, broken = [], {}
        for index, of_image in enumerate(by_image.values()):
            try:
                boxes.append(_boxes(of_image, numbers))
            except ValueError as error:
                boxes.append(np.zeros((0, FIELDS)))
                broken[index] = str(error)
        names = np.array([os.fsencode(str(image["file_name"])) for image in file["images"]], dtype=bytes)
        return BoxedSource(FolderSource(folder, names, np.zeros(len(names), dtype=np.int64)), boxes, broken)


def _read(path: Path) -> dict[str, Any]:
    """The sections of a file.

    Raises:
        UserError: if it cannot be read, or has another form.
    """
    try:
        file = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{_KEY}: cannot read {path}: {error.strerror}; expected a file in COCO's format"
        ) from None
    except ValueError as error:
        raise UserError(f"{_KEY}: {path} is no JSON file: {error}") from None
    for section, fields in SECTIONS.items():
        entries = file.get(section) if isinstance(file, dict) else None
        if not isinstance(entries, list):
            raise UserError(
                f"{_KEY}: {path} has no list '{section}'; expected images, categories and annotations"
            )
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(field in entry for field in fields):
                raise UserError(
                    f"{_KEY}: {path}: entry {number} of '{section}' is {entry!s:.60}; expected "
                    f"{' and '.join(fields)} in it"
                )
    return file


def _boxes(annotations: list[Mapping[str, Any]], numbers: Mapping[int, int]) -> np.ndarray:
    """The objects of one image, (n, 5).

    Raises:
        ValueError: naming what makes no sense.
    """
    found = []
    for annotation in annotations:
        category: Any = annotation.get("category_id")
        bbox = annotation.get("bbox")
        if category not in numbers:
            raise ValueError(f"category {category!r} is not one of the training data's {len(numbers)}")
        if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
            raise ValueError(f"{bbox!s:.60} is no box; expected left, top, width and height")
        left, top, width, height = bbox
        if not (width > 0 and height > 0):
            raise ValueError(f"one at ({left:g}, {top:g}) of {width:g} x {height:g} pixels has no area")
        sign = -1 if annotation.get("iscrowd") else 1
        found.append([left, top, left + width, top + height, sign * numbers[category]])
    return np.array(found, dtype=np.float32).reshape(-1, FIELDS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
