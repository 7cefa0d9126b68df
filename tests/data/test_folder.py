"""`load_data` on a folder with one sub-folder per class."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from maskaudit.api import audit
from maskaudit.data import Dataset, load_data
from maskaudit.errors import InputError

Image = pytest.importorskip("PIL.Image")


def paint(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = Image.new("L", size, value)
    (bands if mode == "L" else bands.convert(mode)).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name, values in {"dog": (10, 20), "cat": (30, 40, 50)}.items():
        for row, value in enumerate(values):
            paint(tmp_path / "pets" / name / f"{row}.png", value)
    return tmp_path / "pets"


def test_order_labels_and_scale(pets: Path) -> None:
    data = load_data(str(pets))
    assert data.class_names == ("cat", "dog")
    assert data.x.shape == (5, 1, 4, 6)
    assert data.y.tolist() == [0, 0, 0, 1, 1]
    assert torch.allclose(data.x[:, 0, 0, 0] * 255, torch.tensor([30.0, 40, 50, 10, 20]))
    assert torch.equal(load_data(str(pets), split="train").x, data.x)
    assert "same points" in " ".join(data.notes)


def test_a_limit_decodes_a_share_of_every_class(pets: Path) -> None:
    assert sorted(load_data(str(pets), limit=4).y.tolist()) == [0, 0, 0, 1]
    assert torch.equal(load_data(str(pets), limit=9).x, load_data(str(pets)).x)


def test_a_limit_does_not_hide_a_coloured_image(pets: Path) -> None:
    paint(pets / "dog" / "9.png", 77, "RGB")
    assert load_data(str(pets), limit=2).x.shape == (2, 3, 4, 6)


def test_colour_keeps_the_order_of_channels(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2], pixels[..., 3] = 255, 51, 0, 7
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels, "RGBA").save(tmp_path / name / "1.png")
    paint(tmp_path / "b" / "2.jpg", 102)
    data = load_data(str(tmp_path))
    assert data.x.shape == (3, 3, 4, 6)
    assert torch.allclose(data.x[0, :, 0, 0], torch.tensor([1.0, 0.2, 0.0]))
    assert torch.allclose(data.x[2, :, 0, 0], torch.full((3,), 0.4), atol=0.01)
    assert "alpha" in " ".join(data.notes)


def test_train_and_test_folders_share_their_classes(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "1.png", 1)
    paint(tmp_path / "train" / "b" / "1.png", 2)
    paint(tmp_path / "train" / "c" / "1.png", 3)
    paint(tmp_path / "test" / "a" / "1.png", 4)
    paint(tmp_path / "test" / "c" / "1.png", 5)
    test = load_data(str(tmp_path))
    assert (test.y.tolist(), test.class_names) == ([0, 2], ("a", "b", "c"))
    assert load_data(str(tmp_path), split="train").y.tolist() == [0, 1, 2]
    assert len(load_data(str(tmp_path), split="all")) == 5


def test_other_files_are_ignored_and_counted(pets: Path) -> None:
    (pets / "cat" / "notes.txt").write_text("x")
    (pets / "cat" / ".hidden.png").write_text("x")
    (pets / ".git").mkdir()
    (pets / "readme.md").write_text("x")
    data = load_data(str(pets))
    assert len(data) == 5
    assert "1 files that are not PNG or JPEG" in " ".join(data.notes)


def test_links_are_followed_but_never_in_circles(pets: Path, tmp_path: Path) -> None:
    paint(tmp_path / "elsewhere.png", 99)
    os.symlink(tmp_path / "elsewhere.png", pets / "cat" / "9.png")
    os.symlink(pets, pets / "cat" / "loop")
    data = load_data(str(pets))
    assert len(data) == 6
    os.symlink(tmp_path / "gone.png", pets / "cat" / "broken.png")
    with pytest.raises(InputError, match=r"broken\.png is a broken link"):
        load_data(str(pets))


def test_pipe_does_not_hang(pets: Path) -> None:
    os.mkfifo(pets / "cat" / "pipe.png")
    with pytest.raises(InputError, match="not a regular file"):
        load_data(str(pets))


def test_sizes_must_agree(pets: Path) -> None:
    paint(pets / "dog" / "9.png", 1, size=(7, 4))
    with pytest.raises(InputError, match=r"one size: .*6×4 pixels, .*9\.png has 7×4"):
        load_data(str(pets))


def test_sixteen_bit_is_refused(pets: Path) -> None:
    Image.fromarray(np.full((4, 6), 40000, dtype=np.uint16)).save(pets / "dog" / "9.png")
    with pytest.raises(InputError, match="pixel format I;16"):
        load_data(str(pets))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims side × side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5000, 10_000, 60_000])
def test_decompression_bomb(pets: Path, side: int) -> None:
    (pets / "cat" / "0.png").write_bytes(bomb(side))
    with pytest.raises(InputError, match=r"0\.png claims"):
        load_data(str(pets))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:45])


def other_format(path: Path) -> None:
    Image.new("L", (6, 4)).save(path, format="BMP")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), truncate, other_format])
def test_unreadable_image_is_named(pets: Path, damage: object) -> None:
    damage(pets / "dog" / "1.png")  # type: ignore[operator]
    with pytest.raises(InputError, match=r"dog/1\.png cannot be read as PNG or JPEG"):
        load_data(str(pets))


@pytest.mark.parametrize(("classes", "message"), [((), "found 0"), (("a",), "found 1"), (("a", "b"), "no PNG or JPEG")])
def test_too_little(tmp_path: Path, classes: tuple[str, ...], message: str) -> None:
    for name in classes:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=message):
        load_data(str(tmp_path))


@pytest.mark.parametrize("named", [
    ("zebra", "Hot Dog, frankfurter", "cat"), ("zebra", "cat", "hot-dog"), ("zebra", "horse", "cat", "hot_dog")
])  # fmt: skip
def test_labels_are_matched_by_the_names_of_the_classes(named: tuple[str, ...], tmp_path: Path) -> None:
    """A folder counts its classes in alphabetical order, a model in its own."""
    for number, name in enumerate(("cat", "hot_dog", "zebra")):
        (tmp_path / name).mkdir()
        for copy in range(12):
            shade = np.full((4, 4, 3), 40 + 80 * number + copy, np.uint8)
            Image.fromarray(shade).save(tmp_path / name / f"{copy}.png")
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, len(named)))
    shades = torch.tensor([0.85 if "zebra" in n else 0.5 if "og" in n else 0.2 if n == "cat" else -9 for n in named])
    net[1].weight.data, net[1].bias.data = shades[:, None].expand(-1, 48) / 24, -(shades**2)  # the nearest shade
    net.config = SimpleNamespace(id2label=dict(enumerate(named)))
    found = audit(net, str(tmp_path), eps=0.01, budget="quick", samples=30, select=("noise",)).report.to_dict()
    assert found["accuracy"]["clean"]["value"] == 1.0
    assert any("cat is class" in note or "hot_dog is class" in note for note in found["notes"])


@pytest.mark.parametrize(("named", "notes"), [
    (("cat", "dog"), ()), (("LABEL_0", "LABEL_1"), ()), ((), ()), (("cat", "dog", "zebra"), ()),
    (("dog", "horse"), ("Labels were not matched by name: cat is not a class of the model.",)),
    (("dog", "cat", "cat"), ("Labels were not matched by name: two classes have one name.",)),
])  # fmt: skip
def test_labels_that_stay(named: tuple[str, ...], notes: tuple[str, ...]) -> None:
    data = Dataset("x", torch.zeros(2, 3), torch.tensor([0, 1]), 2, (0.0, 1.0), class_names=("cat", "dog"))
    found = data.with_classes_of(named)
    assert torch.equal(found.y, data.y)
    assert found.notes == notes
