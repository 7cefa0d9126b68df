"""WebDataset: a tar archive of images, each with its class number beside it (`0001.png`, `0001.cls`)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch

from maskaudit.data import folder
from maskaudit.data.interface import MAX_CLASSES, Dataset, Draw, Split, chosen_rows, scale_to_bounds
from maskaudit.errors import InputError, printable, refusing
from maskaudit.files import largest_file

#: Endings of images and of class numbers, behind the first dot of a file's name.
IMAGES, LABEL = ("png", "jpg", "jpeg"), "cls"
#: Longest class number, in bytes.
MAX_LABEL = 20


def load(
    path: Path, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """Images as (N, C, H, W), 0 … 255 scaled to the bounds; nothing is unpacked to the disk.

    Raises:
        InputError: for an archive that is damaged, packed or too large, images without a class number, or what
            `maskaudit.data.folder` refuses in an image.
    """
    if path.stat().st_size > largest_file():
        raise InputError(f"{path} is larger than a quarter of the memory here; give one shard of the data.")
    images: dict[str, folder.Image] = {}
    labels: dict[str, int] = {}
    others = 0
    with refusing(f"{path} cannot be read as a tar archive"):
        for name, content in _members(path):
            key, _, ending = name.partition(".") if "/" not in name else _split(name)
            if ending.lower() in IMAGES:
                images[key] = folder.Image(f"{path}: {printable(name, 80)}", io.BytesIO(content))
            elif ending.lower() == LABEL:
                labels[key] = _label(path, name, content)
            else:
                others += 1
    lacking = next((key for key in images if key not in labels), None)
    if not images or lacking is not None:
        what = (
            f"{printable(lacking, 60)}.{LABEL} is missing" if lacking is not None else "there are no PNG or JPEG images"
        )
        raise InputError(
            f"{path} is not a WebDataset of labelled images: {what}; expected pairs such as 1.png and 1.cls."
        )
    keys = list(images)
    y = torch.tensor([labels[key] for key in keys], dtype=torch.int64)
    rows = chosen_rows(y, limit, draw)
    notes = [f"{others} files that are neither images nor class numbers were ignored."] if others else []
    notes.append("The archive has no train part: its train and test splits are the same points.")
    pixels = folder.decoded([images[key] for key in keys], rows.tolist(), notes)
    return Dataset(
        name=str(path), x=scale_to_bounds(torch.from_numpy(pixels), 255, bounds), y=y[rows],
        num_classes=int(y.max()) + 1, bounds=bounds, split=split, notes=tuple(notes), draw=draw and draw.of(rows),
        total=len(y) if draw else None,
    )  # fmt: skip


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in the archive; packed archives, links and devices are not opened."""
    with tarfile.open(path, "r:") as archive:
        for number, member in enumerate(archive):
            if number >= folder.MAX_ENTRIES:
                raise InputError(f"{path} has more than {folder.MAX_ENTRIES} members; give a smaller shard.")
            if not member.isreg():
                continue
            if member.size > folder.MAX_FILE or member.issparse():
                raise InputError(
                    f"{path}: {printable(member.name, 80)} is larger than {folder.MAX_FILE >> 20} MiB, or sparse, and "
                    "is refused."
                )
            stream = archive.extractfile(member)
            content = stream.read() if stream is not None else b""
            if len(content) != member.size:
                raise InputError(f"{path}: {printable(member.name, 80)} is truncated.")
            yield member.name, content


def _split(name: str) -> tuple[str, str, str]:
    """Key and ending: a dot in the name of a folder parts nothing."""
    before, _, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return f"{before}/{stem}", dot, ending


def _label(path: Path, name: str, content: bytes) -> int:
    text = content[: MAX_LABEL + 1].decode("latin1").strip()
    if len(content) > MAX_LABEL or not text.isascii() or not text.isdecimal() or int(text) >= MAX_CLASSES:
        raise InputError(f"{path}: {printable(name, 80)} must hold one class number below {MAX_CLASSES}.")
    return int(text)
