"""`fashion-mnist`, and the IDX files that it comes in: where they are looked for, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from maskaudit.data import fashion_mnist, idx, load_data
from maskaudit.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


def packed(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, *, zipped: bool = True, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> None:
    """Train files with all points, test files with the first five."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, n in (("train", None), ("t10k", 5)):
        for name, array in (("images-idx3", images[:n]), ("labels-idx1", labels[:n])):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(packed(array)) if zipped else packed(array))


@pytest.mark.parametrize(
    ("below", "zipped"), [("", True), ("fashion-mnist", False), ("FashionMNIST/raw", True), ("FashionMNIST/raw", False)]
)
def test_a_copy_below_the_data_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, zipped: bool
) -> None:
    write(tmp_path / below, zipped=zipped)
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    data = load_data("fashion-mnist")
    assert torch.equal(data.x[:, 0], torch.from_numpy(IMAGES[:5].astype(np.float32)) / 255)
    assert data.y.tolist() == LABELS[:5].tolist()
    sizes = [len(load_data("fashion-mnist", split=split)) for split in ("train", "test", "all")]  # type: ignore[arg-type]
    assert sizes == [12, 5, 17]
    assert float(load_data("fashion-mnist", split="train", bounds=(-1, 1)).x.min()) == -1.0


def test_a_limit_unpacks_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, zipped=False)
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[: 16 + 11 * 28 * 28])
    some = load_data("fashion-mnist", split="train", limit=11)
    assert torch.equal(some.x[:, 0], torch.from_numpy(IMAGES[:11].astype(np.float32)) / 255)
    assert some.y.tolist() == LABELS[:11].tolist()
    with pytest.raises(InputError, match="truncated"):
        load_data("fashion-mnist", split="train", limit=12)
    assert len(load_data("fashion-mnist", limit=100)) == 5


def test_without_a_copy_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"apt install dataset-fashion-mnist.*MASKAUDIT_DATA.*Nothing is downloaded"):
        load_data("fashion-mnist")


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debians_copy_is_the_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    data = load_data("fashion-mnist")
    assert data.x.shape == (10_000, 1, 28, 28)
    assert data.y.bincount().tolist() == [1000] * 10
    assert data.class_names is not None
    assert data.class_names[9] == "ankle boot"
    assert int(data.y[0]) == 9


WHOLE = packed(LABELS)
DAMAGED = {
    "empty": (b"", "ends after 0 of 4 bytes"),
    "not IDX": (b"PK\3\4" + WHOLE, "not an IDX file"),
    "floats": (WHOLE[:2] + b"\x0d" + WHOLE[3:], "not an IDX file of unsigned bytes"),
    "no axes": (b"\0\0\x08\0", "not an IDX file"),
    "header cut": (WHOLE[:6], "ends after 2 of 4 bytes"),
    "content cut": (WHOLE[:-1], "ends after 11 of 12 bytes"),
    "content too long": (WHOLE + b"\0", "more than the 12 bytes"),
    "absurd size": (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31), "above the limit"),
    "gzip cut": (gzip.compress(WHOLE)[:-9], "truncated or damaged"),
    "gzip damaged": (gzip.compress(WHOLE)[:10] + b"\xff" * 20, "truncated or damaged"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        idx.read(path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:, :27], LABELS, "28×28"),
        (IMAGES, LABELS[:, None], "one label per image"),
        (IMAGES, LABELS + 1, "labels must lie in 0 … 9"),
        (IMAGES[:9], LABELS, "one label per input"),
    ],
)
def test_files_that_are_not_fashion_mnist_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    write(tmp_path, images=images, labels=labels)
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    with pytest.raises(InputError, match=message):
        load_data("fashion-mnist", split="train")


def test_half_a_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    with pytest.raises(InputError, match="only a part of Fashion-MNIST"):
        load_data("fashion-mnist")
