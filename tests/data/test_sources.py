"""`load_data`: digits, .npz, prefixes."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskaudit.data import load_data
from maskaudit.errors import InputError, UsageError

Arrays = dict[str, np.ndarray]


def test_digits_splits_are_stratified_and_disjoint() -> None:
    train, test, every = (load_data("digits", split=split) for split in ("train", "test", "all"))
    assert (train.x.shape, test.x.shape) == ((1200, 1, 8, 8), (597, 1, 8, 8))
    assert len(every) == 1797
    share = train.y.bincount(minlength=10) / every.y.bincount(minlength=10)
    assert (share - 1200 / 1797).abs().max() < 0.01
    both = torch.cat([train.x, test.x]).flatten(1)
    assert len(both.unique(dim=0)) == len(every.x.flatten(1).unique(dim=0))
    assert (every.x * 16 == (every.x * 16).round()).all()
    assert (float(every.x.min()), float(every.x.max())) == (0.0, 1.0)


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    every = load_data("digits", split="all")
    assert np.array_equal(every.x[:, 0].numpy() * 16, original.images)
    assert np.array_equal(every.y.numpy(), original.target)


def test_digits_fill_the_bounds() -> None:
    data = load_data("digits", bounds=(-1, 1))
    assert data.bounds == (-1.0, 1.0)
    assert torch.allclose(data.x, load_data("digits").x * 2 - 1)


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


RNG = np.random.default_rng(0)
LABELS = np.arange(6) % 2
LAYOUTS: dict[str, tuple[np.ndarray, tuple[int, ...], str]] = {
    "vectors": (RNG.random((6, 5)), (6, 5), ""),
    "NCHW": (RNG.random((6, 3, 8, 8), dtype=np.float32), (6, 3, 8, 8), ""),
    "NCHW, both ends": (RNG.random((6, 3, 8, 3)), (6, 3, 8, 3), ""),
    "feature maps": (RNG.random((6, 16, 8, 8)), (6, 16, 8, 8), ""),
    "grey": (RNG.random((6, 8, 9)), (6, 1, 8, 9), "grey images"),
    "NHWC": (RNG.random((6, 8, 9, 3)), (6, 3, 8, 9), "transposed"),
    "big-endian": (RNG.random((6, 5)).astype(">f4"), (6, 5), ""),
    "float16": (RNG.random((6, 5)).astype(np.float16), (6, 5), ""),
}


@pytest.mark.parametrize(("x", "shape", "note"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_npz_layouts(tmp_path: Path, x: np.ndarray, shape: tuple[int, ...], note: str) -> None:
    data = load_data(save(tmp_path / "d.npz", x=x, y=LABELS.astype(np.uint8)))
    assert tuple(data.x.shape) == shape
    assert note in " ".join(data.notes)
    assert ("transposed" in " ".join(data.notes)) == (note == "transposed")
    expected = np.moveaxis(x, 3, 1) if note == "transposed" else x.reshape(shape)
    assert np.array_equal(data.x.numpy(), expected.astype(np.float32))
    assert torch.equal(data.y, torch.tensor(LABELS))


@pytest.mark.parametrize(("bounds", "low", "high"), [(None, 0, 1), ((-1, 1), -1, 1), ((0, 255), 0, 255)])
def test_npz_bytes_fill_the_bounds(tmp_path: Path, bounds: Any, low: float, high: float) -> None:
    x = np.array([[0, 255], [51, 204]] * 3, dtype=np.uint8)
    data = load_data(save(tmp_path / "d.npz", x=x, y=LABELS), bounds=bounds)
    assert torch.allclose(data.x, low + torch.tensor(x).float() / 255 * (high - low), atol=1e-6 * (high - low))
    assert (data.x.min(), data.x.max()) == (low, high)


def test_npz_train_split(tmp_path: Path) -> None:
    x, x_train = RNG.random((6, 5)), RNG.random((4, 5))
    source = save(tmp_path / "d.npz", x=x, y=LABELS, x_train=x_train, y_train=np.array([0, 1, 2, 2]))
    sizes = {split: len(load_data(source, split=split)) for split in ("train", "test", "all")}
    assert sizes == {"train": 4, "test": 6, "all": 10}
    assert {load_data(source, split=split).num_classes for split in ("train", "test", "all")} == {3}


def test_npz_without_train_gives_the_same_points_and_says_so(tmp_path: Path) -> None:
    source = save(tmp_path / "d.npz", x=RNG.random((6, 5)), y=LABELS)
    train, test = load_data(source, split="train"), load_data(source)
    assert torch.equal(train.x, test.x)
    assert "same points" in " ".join(test.notes)


def test_a_limit_takes_the_first_points_unless_they_lack_a_class(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 6)[:, None]
    mixed = load_data(save(tmp_path / "m.npz", x=x, y=np.array([0, 1, 2, 0, 1, 2])), limit=3)
    assert mixed.x[:, 0].tolist() == pytest.approx([0, 0.2, 0.4])
    ordered = load_data(save(tmp_path / "o.npz", x=x, y=np.array([0, 0, 1, 1, 2, 2])), limit=3)
    assert sorted(ordered.y.tolist()) == [0, 1, 2]
    assert ordered.num_classes == 3
    x, y = np.linspace(0, 1, 900)[:, None], np.arange(900) // 90
    many = load_data(save(tmp_path / "many.npz", x=x, y=y), limit=400)
    assert many.y.bincount().tolist() == [40] * 10
    assert set(many.y[:40].bincount(minlength=10).tolist()) <= {3, 4, 5}  # so is every first part


def test_npz_declared_classes(tmp_path: Path) -> None:
    x = RNG.random((6, 5))
    assert load_data(save(tmp_path / "a.npz", x=x, y=LABELS, num_classes=np.array(7))).num_classes == 7
    named = load_data(save(tmp_path / "b.npz", x=x, y=LABELS, class_names=np.array(["cat", "dog", "owl"])))
    assert named.class_names == ("cat", "dog", "owl")
    assert named.num_classes == 3


@pytest.mark.parametrize("kind", [float, np.float32, np.float16, bool])
def test_labels_as_losses_want_them(tmp_path: Path, kind: type) -> None:
    labels = LABELS % 2
    data = load_data(save(tmp_path / "d.npz", x=RNG.random((6, 5)), y=labels.astype(kind)))
    assert data.y.tolist() == labels.tolist()
    assert data.num_classes == 2


X = RNG.random((6, 5))
BAD_ARRAYS: dict[str, tuple[Arrays, str]] = {
    "wrong keys": ({"a": X, "labels": LABELS}, "expected the arrays x and y, found a, labels"),
    "object array": ({"x": np.array([[1, 2], {}], dtype=object), "y": LABELS}, "object arrays"),
    "NaN": ({"x": np.where(X > 0.5, np.nan, X), "y": LABELS}, "NaN"),
    "float32 overflow": ({"x": X * 1e300, "y": LABELS}, "infinite"),
    "outside bounds": ({"x": X * 255, "y": LABELS}, "--bounds 0,255"),
    "integer pixels": ({"x": np.zeros((6, 5), dtype=np.int64), "y": LABELS}, "must be float"),
    "half a class": ({"x": X, "y": LABELS / 2}, "y must be class numbers, found 0.5"),
    "endless label": ({"x": X, "y": np.where(LABELS == 1, np.inf, 0.0)}, "y must be class numbers, found inf"),
    "labels in words": ({"x": X, "y": np.array(["a", "b"] * 3)}, "must be class numbers, got <U1"),
    "a little outside": (
        {"x": X * 0 + np.linspace(-0.01, 1.01, 5), "y": LABELS},
        "in 6 of 6 points.*--bounds -0.01,1.01",
    ),
    "one-hot": ({"x": X, "y": np.eye(6, dtype=int)}, "shape \\(N,\\).*argmax\\(axis=1\\)"),
    "one-hot as float": ({"x": X, "y": np.eye(6)}, "argmax\\(axis=1\\)"),
    "one class": ({"x": X, "y": LABELS * 0}, "at least 2 classes"),
    "negative": ({"x": X, "y": np.arange(6) % 3 - 1}, "labels must lie in 0 … 1, found -1 … 1"),
    "lengths": ({"x": X, "y": LABELS[:4]}, "one label per input"),
    "no points": ({"x": X[:0], "y": LABELS[:0]}, "no points"),
    "train shape": ({"x": X, "y": LABELS, "x_train": X[:, :3], "y_train": LABELS}, "points of one shape"),
    "num_classes": ({"x": X, "y": LABELS, "num_classes": np.array([2.5])}, "one integer"),
    "class_names": ({"x": X, "y": LABELS, "class_names": np.array([1, 2])}, "list of strings"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_npz_bad_arrays(tmp_path: Path, arrays: Arrays, message: str) -> None:
    source = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_data(source, split="all")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_truncated(tmp_path: Path, share: float, compressed: bool) -> None:
    whole, path = tmp_path / "whole.npz", tmp_path / "cut.npz"
    (np.savez_compressed if compressed else np.savez)(whole, x=RNG.random((500, 5)), y=np.arange(500) % 2)
    content = whole.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"cut\.npz"):
        load_data(str(path))


def test_npz_damaged_member(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    save(path, x=RNG.random((500, 5)), y=np.arange(500) % 2)
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_data(str(path))


@pytest.mark.parametrize("claimed", [10**6, 10**13, 10**30])
def test_npz_header_that_claims_too_much(tmp_path: Path, claimed: int) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape in {"x": (claimed, 5), "y": (claimed,)}.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<i8" if name == "y" else "<f8", "fortran_order": False, "shape": shape}
                )
                member.write(bytes(64))
    with pytest.raises(InputError, match=r"d\.npz"):
        load_data(str(path))


def test_single_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with path.open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(InputError, match="single array"):
        load_data(str(path))


SOURCES = {
    "missing": ("nowhere.npz", InputError, "no data source 'nowhere.npz'"),
    "device": ("/dev/null", InputError, "neither a file nor a folder"),
    "null byte": ("a\0b", InputError, "data source"),
    "too long": ("a" * 5000, InputError, "data source"),
    "py without callable": ("py:mod", UsageError, "must name code"),
    "py without module": ("py:no.such.module:fn", InputError, "no.such.module cannot be imported"),
    "torchvision name": ("torchvision:NoSuchSet", (UsageError, InputError), "torchvision"),
    "torchvision module": ("torchvision:os", (UsageError, InputError), "torchvision"),
}


@pytest.mark.parametrize(("source", "error", "message"), SOURCES.values(), ids=SOURCES.keys())
def test_refused_sources(source: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(source)


def test_refused_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="split"):
        load_data("digits", split="valid")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bounds"):
        load_data("digits", bounds=(1, 0))


class FakeSet:
    """Behaves like torchvision.datasets.MNIST: needs its files, images are arrays or PIL images."""

    classes = ("zero", "one")

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        if download or not Path(root, "present").exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.size = 4 if train else 2

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        if row >= self.size:
            raise IndexError
        return np.full((5, 6, 3), 51 * row, dtype=np.uint8), row % 2


@pytest.fixture
def torchvision_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    datasets.Fake = FakeSet  # type: ignore[attr-defined]
    package.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.mark.usefixtures("torchvision_stub")
def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"MASKAUDIT_DATA.*Nothing is downloaded"):
        load_data("torchvision:Fake")
    (tmp_path / "present").touch()
    data = load_data("torchvision:Fake", split="all")
    assert data.x.shape == (6, 3, 5, 6)
    assert torch.allclose(data.x[:, 0, 0, 0], torch.tensor([0, 0.2, 0.4, 0.6, 0, 0.2]))
    assert data.class_names == ("zero", "one")
    assert len(load_data("torchvision:Fake")) == 2


def test_torchvision_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="need the package torchvision"):
        load_data("torchvision:MNIST")
