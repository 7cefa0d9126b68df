"""Only the points that an audit draws are decoded and held, and they are those of the whole source."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskaudit.api import audit
from maskaudit.data import Draw, load_data, npy
from maskaudit.data.interface import Dataset
from maskaudit.errors import InputError, UsageError

from .test_code_and_hub import COLOUR, Part, hub
from .test_sources import FakeSet

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.integers(0, 255, (40, 3, 6, 5), dtype=np.uint8), RANDOM.permutation(np.arange(40) % 4)


class Labelled(FakeSet):
    """A set that tells its labels, as most of torchvision's do."""

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        super().__init__(root, train, download)
        self.targets = [row % 2 for row in range(self.size)]

    def __len__(self) -> int:
        return self.size


def packed(folder: Path, _patch: pytest.MonkeyPatch) -> str:
    np.savez_compressed(folder / "d.npz", x=X, y=Y)
    return str(folder / "d.npz")


def lying_open(folder: Path, _patch: pytest.MonkeyPatch) -> str:
    np.savez(folder / "d.npz", x=X[:10].astype(np.float64) / 255, y=Y[:10], x_train=X[10:] / 255.0, y_train=Y[10:])
    return str(folder / "d.npz")


def images(folder: Path, _patch: pytest.MonkeyPatch) -> str:
    for number, (pixels, label) in enumerate(zip(X, Y, strict=True)):
        (folder / f"class{label}").mkdir(exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"class{label}" / f"{number:03}.png")
    return str(folder)


def hub_set(_folder: Path, patch: pytest.MonkeyPatch) -> str:
    hub(patch, set={"train": Part(COLOUR), "test": Part(COLOUR[:3])})
    return "hf:set"


def torchvision(folder: Path, patch: pytest.MonkeyPatch) -> str:
    (folder / "present").touch()
    patch.setenv("MASKAUDIT_DATA", str(folder))
    stand_in = ModuleType("torchvision")
    stand_in.datasets = SimpleNamespace(Set=Labelled)  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "torchvision", stand_in)
    return "torchvision:Set"


SOURCES = (packed, lying_open, images, hub_set, torchvision)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("small", [True, False], ids=["in memory", "on disk"])
@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_what_is_drawn_is_what_the_whole_source_gives(
    make: Callable[[Path, pytest.MonkeyPatch], str], small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path, monkeypatch)
    for split, by_class in itertools.product(("test", "all"), (False, True)):
        whole = load_data(source, split=split)  # type: ignore[arg-type]
        ordered = whole.by_class(9) if by_class else whole
        with monkeypatch.context() as patch:
            if not small:
                patch.setattr(npy, "largest_file", lambda: 4 * 8 * X[0].size)
            some = load_data(source, split=split, draw=Draw(4, 9, by_class))  # type: ignore[arg-type]
            first = load_data(source, split=split, limit=3)  # type: ignore[arg-type]
        assert (len(some), len(some.x), some.num_classes) == (len(whole), min(4, len(whole)), whole.num_classes)
        for points in (1, 3, 4):
            assert same(some.sample(points, 9), ordered.sample(points, 9))
        assert len(first) == min(3, len(whole))
        assert all(any(torch.equal(point, other) for other in whole.x) for point in first.x)
        if make is not images:  # which takes evenly spaced ones
            assert same((first.x, first.y), (whole.some(3).x, whole.some(3).y))
    with pytest.raises(UsageError, match="drawn under seed 9, not under 1"):
        some.sample(2, 1)


def test_every_class_has_its_share_of_any_number() -> None:
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])
    whole = Dataset("x", torch.rand(100, 2), y, 4, (0.0, 1.0))
    first = []
    for seed in range(40):
        torch.manual_seed(seed)
        drawn = whole.by_class(3 * seed)
        index, x, found = drawn.sample(50, 3 * seed)
        assert torch.equal(x, whole.x[index])
        assert torch.equal(found, y[index])
        assert same(drawn.sample(20, 3 * seed), [part[:20] for part in (index, x, found)])
        for n in range(1, 51):
            shares = n * torch.tensor([0.6, 0.3, 0.09, 0.01])
            assert float((found[:n].bincount(minlength=4) - shares).abs().max()) < 2
        first.append(int(index[0]))
    assert len(set(first)) > 20
    assert len(set(drawn.sample(100, 117)[0].tolist())) == 100


def test_an_audit_of_points_drawn_by_class() -> None:
    y = torch.tensor([0] * 75 + [1] * 25)
    x = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) / 2 + y[:, None] / 2
    net = torch.nn.Linear(2, 2)
    net.weight.data, net.bias.data = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.tensor([1.0, -1.0])
    found = audit(net, (x, y), eps=0.01, budget="quick", samples=40, stratify=True, select=("noise",)).report.to_dict()
    assert [y[found["points"]["index"]].tolist().count(label) for label in (0, 1)] == [30, 10]
    assert any(note.startswith("Points are drawn by class") for note in found["notes"])


def test_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packed(tmp_path, monkeypatch)
    monkeypatch.setattr(npy, "largest_file", lambda: 4 * 8 * X[0].size)
    with pytest.raises(InputError, match=r"d\.npz: x\.npy does not fit into a quarter of the memory"):
        load_data(source)


def test_values_are_checked_portion_by_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskaudit.target.chunks.MOST_ELEMENTS", 64)
    x = torch.rand(50, 20)
    x[37, 3] = torch.nan
    with pytest.raises(InputError, match="1 of 50 inputs hold NaN or infinite values, the first is point 37"):
        Dataset("x", x, torch.arange(50) % 2, 2, (0.0, 1.0))


POINTS, SHAPE = 50_000, (3, 224, 224)
CHECK = """
import sys, torch
from maskaudit import api
from maskaudit.settings import AuditSettings
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(147, 2)).eval()
settings = AuditSettings(budget="quick", samples=12, select=("noise", "zero-gradient"), memory="4GB")
request = api.Request("net", data=sys.argv[1], eps=0.1, settings=settings)
report = api.run(api.prepare(request, loaded=api.in_memory(net))).report.to_dict()
print(report["settings"]["samples"], max(report["points"]["index"]), report["timing"]["peak_memory"])
"""


def hollow(path: Path) -> None:
    """An archive of 50,000 float32 images that are zero, 30 GB, of which the disk holds next to nothing."""
    np.savez(path, x=np.zeros((1, *SHAPE), np.float32), y=np.arange(POINTS) % 2)
    with zipfile.ZipFile(path) as archive:
        labels = archive.read("y.npy")
    header = npy_header((POINTS, *SHAPE))
    size = len(header) + 4 * POINTS * int(np.prod(SHAPE))
    with path.open("wb") as file:
        wide = struct.pack("<HHQQ", 1, 16, size, size)
        local = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 33, 0, 2**32 - 1, 2**32 - 1, 5, len(wide))
        file.write(local + b"x.npy" + wide + header)
        file.seek(len(local) + 5 + len(wide) + size)
        second = file.tell()
        crc = zipfile.crc32(labels)
        file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, len(labels), len(labels), 5, 0))
        file.write(b"y.npy" + labels)
        start = file.tell()
        fields = "<4s6H3I5H2I"
        big, most = struct.pack("<HHQQ", 1, 16, size, size), 2**32 - 1
        file.write(struct.pack(fields, b"PK\1\2", 45, 45, 0, 0, 0, 33, 0, most, most, 5, len(big), 0, 0, 0, 0, 0))
        file.write(b"x.npy" + big)
        far = struct.pack("<HHQ", 1, 8, second)
        file.write(struct.pack(fields, b"PK\1\2", 45, 20, 0, 0, 0, 33, crc, len(labels), len(labels), 5, len(far),
                               0, 0, 0, 0, most))  # fmt: skip
        file.write(b"y.npy" + far)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, end - start, start))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, end - start, most, 0))


def npy_header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.heavy
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits what a process may take")
def test_thirty_gigabytes_are_audited_in_four(tmp_path: Path) -> None:
    source = tmp_path / "large.npz"
    hollow(source)
    assert source.stat().st_size > 30 * 10**9
    done = subprocess.run([sys.executable, "-c", CHECK, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    samples, last, peak = map(int, done.stdout.split())
    assert samples == 12
    assert last > 30_000
    assert peak < 4 * 10**9
