"""A folder with one sub-folder of PNG or JPEG images per class.

Classes are numbered in the order of their names, images follow in the order of
theirs. Where the folder holds `train` and `test` (or `val`) instead, those are the
splits. Sub-folders are not descended further, so links cannot make a loop; a link to an image
is followed. Files and folders whose name starts with a dot are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from maskaudit.data.interface import Dataset, Draw, Split, evenly_spaced, scale_to_bounds
from maskaudit.errors import InputError, MaskauditError, describe_error
from maskaudit.files import largest_file

SUFFIXES = (".png", ".jpg", ".jpeg")
#: Largest image that is decoded, in pixels; a classifier's input is far below, a decompression bomb above.
MAX_PIXELS = 4096 * 4096
#: Largest image file, in bytes: what the largest image takes without compression.
MAX_FILE = 4 * MAX_PIXELS
#: Most images, and most entries of one folder: the train part of ImageNet has 1.3 million.
MAX_ENTRIES = 2_000_000
GREY_MODES = ("1", "L")
COLOUR_MODES = ("P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")


def load(
    path: Path, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """Images as (N, C, H, W), 0 … 255 scaled to the bounds: C = 1 when all are grey, else 3 (alpha is dropped).

    Of more than `limit` images that many are decoded, evenly spaced, so that every class has its share; with
    `draw` those drawn.

    Raises:
        InputError: for fewer than two classes, no images, images of several sizes, or an unreadable image.
    """
    parts, notes = _parts(path, split)
    every_part, _ = _parts(path, "all")
    classes = sorted({folder.name for part in every_part for folder in _folders(part)})
    if len(classes) < 2:
        raise InputError(f"{path}: expected one sub-folder per class and at least 2 classes, found {len(classes)}.")
    files: list[tuple[Path, int]] = []
    ignored = 0
    for part in parts:
        for label, name in enumerate(classes):
            images, others = _images(part / name)
            files += [(image, label) for image in images]
            ignored += others
    if len(files) > MAX_ENTRIES:
        raise InputError(f"{path} holds {len(files)} images; at most {MAX_ENTRIES} are read.")
    if not files:
        raise InputError(f"{path}: there are no PNG or JPEG images in its {len(classes)} class folders.")
    if ignored:
        notes.append(f"{ignored} files that are not PNG or JPEG were ignored.")
    total = len(files)
    rows = list(range(total))
    if draw is not None:
        chosen = draw.rows(torch.tensor([label for _, label in files]))
        draw, rows = draw.of(chosen), chosen.tolist()
    elif limit is not None:
        rows = evenly_spaced(total, limit)
    pixels = decoded([Image(str(file), file) for file, _ in files], rows, notes)
    files = [files[row] for row in rows]
    return Dataset(
        name=str(path),
        x=scale_to_bounds(torch.from_numpy(pixels), 255, bounds),
        y=torch.tensor([label for _, label in files], dtype=torch.int64),
        num_classes=len(classes),
        bounds=bounds,
        class_names=tuple(classes),
        split=split,
        notes=tuple(notes),
        draw=draw,
        total=total if draw else None,
    )


def _parts(path: Path, split: Split) -> tuple[list[Path], list[str]]:
    """The folders that hold the class folders of a split, and notes."""
    by_name = {folder.name: folder for folder in _folders(path)}
    held_out = by_name.get("test") or by_name.get("val")
    if set(by_name) <= {"train", "test", "val"} and "train" in by_name and held_out is not None:
        chosen = {"train": [by_name["train"]], "test": [held_out], "all": [by_name["train"], held_out]}[split]
        return chosen, []
    return [path], ["The folder has no train part: its train and test splits are the same points."]


def _folders(path: Path) -> list[Path]:
    return sorted((item for item in _entries(path) if item.is_dir()), key=_name)


def _entries(folder: Path) -> list[Path]:
    """What is visible in a folder."""
    found = list(islice(folder.iterdir(), MAX_ENTRIES + 1))
    if len(found) > MAX_ENTRIES:
        raise InputError(f"{folder} has more than {MAX_ENTRIES} entries; give a folder with fewer.")
    return [item for item in found if not item.name.startswith(".")]


def _images(folder: Path) -> tuple[list[Path], int]:
    """Image files of one class, sorted by name, and how many other files lie next to them."""
    if not folder.is_dir():
        return [], 0
    visible = _entries(folder)
    images = sorted((item for item in visible if item.suffix.lower() in SUFFIXES), key=_name)
    for image in images:
        if not image.is_file():
            raise InputError(f"{image} is a broken link or not a regular file; remove it or restore its target.")
        if image.stat().st_size > MAX_FILE:
            raise InputError(
                f"{image} is larger than {MAX_FILE >> 20} MiB, more than any image that is read; remove it."
            )
    return images, len(visible) - len(images)


def _name(path: Path) -> str:
    return path.name


@dataclass(frozen=True)
class Image:
    """An image by the name that messages have for it, and where it is read from."""

    name: str
    source: Path | IO[bytes]


def decoded(images: list[Image], rows: list[int], notes: list[str]) -> np.ndarray:
    """Those of the images at `rows` as uint8 (n, C, H, W); the headers of all are compared before any is decoded.

    Raises:
        InputError: for an image that cannot be read, is too large, or is of another size than the first.
    """
    size, modes = _survey(images)
    return _decode([images[row] for row in rows], size, modes, notes)


def _decode(files: list[Image], size: tuple[int, int], modes: set[str], notes: list[str]) -> np.ndarray:
    grey = modes <= set(GREY_MODES)
    channels = 1 if grey else 3
    width, height = size
    most = largest_file()
    if 4 * len(files) * channels * width * height > most:
        raise InputError(
            f"{len(files)} images of {width}×{height} pixels need more than {most / 2**30:.1f} GiB, a quarter of the "
            "memory here; give fewer."
        )
    if modes & {"RGBA", "LA"}:
        notes.append("The alpha channel of the images was dropped.")
    pixels = np.empty((len(files), channels, height, width), dtype=np.uint8)
    for row, file in enumerate(files):
        with opened(file.source, file.name) as image:
            found = np.asarray(image.convert("L" if grey else "RGB"))
        pixels[row] = found if grey else found.transpose(2, 0, 1)
    return pixels


def _survey(files: list[Image]) -> tuple[tuple[int, int], set[str]]:
    """The one size (width, height) of all images and the set of their Pillow modes."""
    first: tuple[int, int] | None = None
    modes: set[str] = set()
    for file in files:
        with opened(file.source, file.name) as image:
            size, mode = image.size, image.mode
        if size[0] * size[1] > MAX_PIXELS:
            raise InputError(
                f"{file.name} claims {size[0]}×{size[1]} pixels, above the limit of {MAX_PIXELS}; resize it."
            )
        if mode not in GREY_MODES + COLOUR_MODES:
            raise InputError(f"{file.name} has the pixel format {mode}; convert it to 8-bit grey or RGB.")
        first = first or size
        if size != first:
            raise InputError(
                f"All images must have one size: {files[0].name} has {first[0]}×{first[1]} pixels, "
                f"{file.name} has {size[0]}×{size[1]}; resize them as your model expects."
            )
        modes.add(mode)
    assert first is not None  # the caller passes at least one file
    return first, modes


@contextmanager
def opened(source: Path | IO[bytes], name: str = "") -> Iterator[Any]:
    """A PNG or JPEG image as Pillow sees it; whatever is wrong with it becomes an `InputError`."""
    file = name or source
    from PIL import Image as Pillow

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # the size is checked by _survey
            with Pillow.open(source, formats=("PNG", "JPEG")) as image:
                yield image
    except Pillow.DecompressionBombError as error:
        raise InputError(f"{file} claims far more pixels than any classifier's input; remove it.") from error
    except MaskauditError:
        raise
    except Exception as error:  # the decoders raise almost anything on damaged bytes
        raise InputError(
            f"{file} cannot be read as PNG or JPEG, it may be truncated or damaged: {describe_error(error)}."
        ) from error
