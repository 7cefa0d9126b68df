"""`py:` and `hf:` data: what is accepted from the user's code and from the hub, and what is refused."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskaudit.data import load_data
from maskaudit.errors import InputError

CODE = """
import numpy as np
import torch
from maskaudit.data import Dataset

X, Y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3

def pair():
    return X, Y
def arrays():
    return X.double().numpy(), Y.numpy().astype("uint8")
def split_of(split, n=2):
    return (X[:n], Y[:n]) if split == "test" else (X, Y)
def scaled(bounds):
    low, high = bounds
    return low + (high - low) * X, Y
def dataset():
    return Dataset("mine", X, Y, 5, (0.0, 1.0), class_names=tuple("abcde"))
def outside():
    return 2 * X - 1, Y
def integers():
    return (255 * X).long(), Y
def one():
    return X
def lists():
    return X.tolist(), Y.tolist()
def words():
    return np.array(["a", "b"]), Y
def fails():
    raise RuntimeError("disk is full")
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    path = tmp_path / "mydata.py"
    path.write_text(CODE)
    return f"py:{path}"


def test_a_pair_becomes_points_and_the_missing_split_is_told(code: str) -> None:
    for name in ("pair", "arrays"):
        data = load_data(f"{code}:{name}")
        assert (data.x.shape, data.x.dtype, data.y.dtype) == ((6, 1, 4, 4), torch.float32, torch.int64)
        assert data.y.tolist() == [0, 1, 2, 0, 1, 2]
        assert data.num_classes == 3
        assert "same points" in " ".join(data.notes)


def test_split_bounds_and_arguments_reach_the_callable(code: str) -> None:
    assert [len(load_data(f"{code}:split_of", split=split)) for split in ("test", "train")] == [2, 6]  # type: ignore[arg-type]
    assert len(load_data(f"{code}:split_of(n=4)")) == 4
    assert load_data(f"{code}:split_of").notes == ()
    scaled = load_data(f"{code}:scaled", bounds=(-1, 1))
    assert float(scaled.x.min()) < 0


def test_a_dataset_is_taken_as_it_is_when_its_bounds_agree(code: str) -> None:
    data = load_data(f"{code}:dataset")
    assert (data.num_classes, data.class_names, data.name) == (5, tuple("abcde"), "mine")
    with pytest.raises(InputError, match="bounds"):
        load_data(f"{code}:dataset", bounds=(-1, 1))


REFUSED = {
    "outside": "outside the bounds",
    "integers": "float inputs",
    "one": "pair",
    "lists": "tensors or arrays",
    "words": "cannot become a tensor",
    "fails": "disk is full",
    "absent": "has no absent",
}


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_else_the_code_returns_is_refused(code: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(f"{code}:{name}")


class Image:
    """Stands for `datasets.Image`, by which columns are recognised."""


class ClassLabel:
    """Stands for `datasets.ClassLabel`."""

    names = ("cat", "dog")


class Part(dict[str, list[Any]]):
    """Stands for `datasets.Dataset`: columns by name, and their kinds."""

    def __init__(self, images: list[np.ndarray], **more: Any) -> None:
        super().__init__(picture=images, kind=[row % 2 for row in range(len(images))])
        self.features: dict[str, Any] = {"picture": Image(), "kind": ClassLabel(), **more}

    def __len__(self) -> int:
        return len(self["kind"])

    def __getitem__(self, key: Any) -> Any:
        return {name: self[name][key] for name in self} if isinstance(key, int) else super().__getitem__(key)


GREY = [np.full((5, 6), 51 * row, dtype=np.uint8) for row in range(6)]
COLOUR = [np.full((5, 6, 3), 51 * row, dtype=np.uint8) for row in range(4)]


def hub(monkeypatch: pytest.MonkeyPatch, **sets: Any) -> None:
    package = types.ModuleType("datasets")
    package.load_dataset = lambda name: sets[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", package)


def test_hub_images_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(
        monkeypatch,
        grey={"train": Part(GREY), "test": Part(GREY[:2])},
        colour={"train": Part(COLOUR), "validation": Part(COLOUR[:3])},
    )
    sizes = [len(load_data("hf:grey", split=split)) for split in ("train", "test", "all")]  # type: ignore[arg-type]
    assert sizes == [6, 2, 8]
    grey = load_data("hf:grey", split="train")
    assert grey.x.shape == (6, 1, 5, 6)
    assert torch.allclose(grey.x[:, 0, 0, 0], torch.arange(6) / 5)
    assert (grey.y.tolist(), grey.class_names) == ([0, 1, 0, 1, 0, 1], ("cat", "dog"))
    assert load_data("hf:colour").x.shape == (3, 3, 5, 6)


BAD_SETS: dict[str, tuple[Any, str]] = {
    "absent": ({}, "hf:set has no test split"),
    "only train": ({"train": Part(GREY)}, "it has train"),
    "two image columns": ({"test": Part(GREY, other=Image())}, "one column of the kind Image, it has 2"),
    "sizes": ({"test": Part([GREY[0], GREY[1][1:]])}, "of one size"),
    "floats": ({"test": Part([image.astype(np.float32) for image in GREY])}, "8-bit images"),
    "no points": ({"test": Part([])}, "got none"),
}


@pytest.mark.parametrize(("parts", "message"), BAD_SETS.values(), ids=BAD_SETS.keys())
def test_hub_sets_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch, parts: Any, message: str) -> None:
    hub(monkeypatch, set=parts)
    with pytest.raises(InputError, match=message):
        load_data("hf:set")


def test_a_set_that_cannot_be_had_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch)
    with pytest.raises(InputError, match="hf:set is not available"):
        load_data("hf:set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        load_data("hf:set")
