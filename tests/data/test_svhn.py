"""`svhn`: the original files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import io

from maskaudit.data import load_data, svhn
from maskaudit.errors import InputError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    return tmp_path


def _arrays(n: int, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    labels = np.arange(1, n + 1, dtype=np.uint8)[:, None] % 10 + 1
    return {"X": generator.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), "y": labels}


@pytest.mark.parametrize("place", svhn.PLACES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_original_files_are_read(place: str, packed: bool, root: Path) -> None:
    (root / place).mkdir(exist_ok=True)
    for name, n in (("train", 12), ("test", 11)):
        io.savemat(str(root / place / f"{name}_32x32.mat"), _arrays(n), do_compression=packed)
    data = load_data("svhn")
    arrays = _arrays(11)
    torch.testing.assert_close(data.x, torch.from_numpy(arrays["X"].transpose(3, 2, 0, 1).copy()).float() / 255)
    assert data.y.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2], "the label 10 is the digit 0"
    assert [len(load_data("svhn", split=part)) for part in ("train", "all")] == [12, 23]  # type: ignore[arg-type]
    assert len(load_data("svhn", limit=4)) == 4


def test_without_a_copy_it_says_where_to_put_one(root: Path) -> None:
    with pytest.raises(InputError, match=r"test_32x32\.mat.*MASKAUDIT_DATA.*Nothing is downloaded"):
        load_data("svhn")


@pytest.mark.parametrize(
    "change",
    [{"X": np.zeros((32, 32, 3, 11))}, {"X": np.zeros((8, 8, 3, 11), np.uint8)}, {"y": np.ones((5, 1))}],
)
def test_other_arrays_are_refused(change: dict[str, Any], root: Path) -> None:
    io.savemat(str(root / "test_32x32.mat"), {**_arrays(11), **change})
    with pytest.raises(InputError, match="must hold X"):
        load_data("svhn")


@pytest.mark.parametrize("kept", [0, 60, 200, 5000])
def test_a_truncated_file_is_refused(kept: int, root: Path) -> None:
    path = root / "test_32x32.mat"
    io.savemat(str(path), _arrays(11))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cannot be read|must hold|not a MATLAB file"):
        load_data("svhn")
