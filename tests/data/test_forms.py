"""Further kinds of data: pairs of arrays, tensors, tables, archives of images; and what is refused of each.

`files/table.parquet` was written by pyarrow, `files/pandas.parquet` and `files/pandas.csv` by pandas, and
`files/shard.tar` by the package webdataset, each from the points of `points`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from maskaudit.data import Dataset, Draw, load_data
from maskaudit.errors import InputError, MaskauditError, UntrustedInputError, UsageError

FILES = Path(__file__).with_name("files")


def points() -> tuple[np.ndarray, np.ndarray]:
    """Twelve points of three features in [0, 1] and two classes."""
    x = (np.arange(36, dtype=np.float32).reshape(12, 3) * 7 % 36) / 64
    return x, np.arange(12) % 2


X, Y = points()
NAMES = ("age", "dose", "pulse")


def csv_text(separator: str = ",", labels: Any = Y) -> str:
    lines = [separator.join([*NAMES, "outcome"])]
    lines += [separator.join([*(repr(float(v)) for v in row), str(y)]) for row, y in zip(X, labels, strict=True)]
    return "\n".join(lines) + "\n"


def arrays(folder: Path, first: str, second: str) -> Path:
    np.save(folder / first, X)
    np.save(folder / second, Y)
    return folder / first


def tensors(folder: Path, content: Any, name: str = "d.pt", **how: Any) -> Path:
    torch.save(content, folder / name, **how)
    return folder / name


def safe(folder: Path) -> Path:
    safetensors.numpy.save_file({"x": X, "y": Y}, folder / "d.safetensors")
    return folder / "d.safetensors"


def text(folder: Path, content: str, name: str = "d.csv") -> Path:
    (folder / name).write_text(content)
    return folder / name


TX, TY = torch.from_numpy(X), torch.from_numpy(Y)
FORMS: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "pair beside": (lambda f: arrays(f, "x.npy", "y.npy"), None),
    "pair of test arrays": (lambda f: arrays(f, "X_test.npy", "y_test.npy"), None),
    "pair of images": (lambda f: arrays(f, "val-images.npy", "val-labels.npy"), None),
    "pair named": (lambda f: f"{arrays(f, 'a.npy', 'b.npy')},{f / 'b.npy'}", None),
    "torch dict": (lambda f: tensors(f, {"x": TX, "y": TY}), None),
    "torch pair": (lambda f: tensors(f, (TX, TY)), None),
    "torch, old format": (lambda f: tensors(f, [TX, TY], _use_new_zipfile_serialization=False), None),
    "torch, other names": (lambda f: tensors(f, {"images": TX, "labels": TY.int(), "note": 3}), None),
    "torch double": (lambda f: tensors(f, {"x": TX.double(), "y": TY, "class_names": ["a", "b"]}), None),
    "safetensors": (safe, None),
    "csv": (lambda f: text(f, csv_text()), "outcome"),
    "semicolons": (lambda f: text(f, csv_text(";")), "outcome"),
    "tabs": (lambda f: text(f, csv_text("\t"), "d.tsv"), "outcome"),
    "csv with texts as labels": (lambda f: text(f, csv_text(labels=["no", "yes"] * 6)), "outcome"),
    "csv of pandas": (lambda f: FILES / "pandas.csv", "outcome"),
    "parquet of pyarrow": (lambda f: FILES / "table.parquet", "outcome"),
    "parquet of pandas": (lambda f: FILES / "pandas.parquet", "outcome"),
}


@pytest.mark.parametrize(("write", "target"), FORMS.values(), ids=FORMS.keys())
def test_the_points_come_back(tmp_path: Path, write: Callable[[Path], Any], target: str | None) -> None:
    source = str(write(tmp_path))
    if source.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    data = load_data(source, target=target)
    assert torch.equal(data.x, TX)
    assert torch.equal(data.y, TY)
    assert data.num_classes == 2
    if target is not None:
        assert data.columns == NAMES
    drawn = load_data(source, target=target, draw=Draw(5, 3))
    index, x, y = drawn.sample(5, 3)
    assert torch.equal(x, TX[index])
    assert torch.equal(y, TY[index])


def test_texts_name_the_classes(tmp_path: Path) -> None:
    data = load_data(str(text(tmp_path, csv_text(labels=["well", "ill"] * 6))), target="outcome")
    assert data.class_names == ("ill", "well")
    assert torch.equal(data.y, 1 - TY)


def test_the_usual_column_of_labels_needs_no_option(tmp_path: Path) -> None:
    data = load_data(str(text(tmp_path, csv_text().replace("outcome", "Label"))))
    assert torch.equal(data.y, TY)
    assert "The labels are the column 'Label'." in data.notes


def test_what_a_column_of_labels_needs(tmp_path: Path) -> None:
    path = str(text(tmp_path, csv_text()))
    with pytest.raises(UsageError, match="say with --target which column holds the labels"):
        load_data(path)
    with pytest.raises(UsageError, match=r"no column 'outcom' .did you mean outcome"):
        load_data(path, target="outcom")
    with pytest.raises(UsageError, match="digits is none; leave it out"):
        load_data("digits", target="outcome")


def test_a_comma_before_decimals_where_something_else_separates_cells(tmp_path: Path) -> None:
    data = load_data(str(text(tmp_path, "a;b;outcome\n0,5;-0,25;1\n1;0,75;0\n")), target="outcome", bounds=(-1, 1))
    assert data.x.tolist() == [[0.5, -0.25], [1, 0.75]]


def test_yes_and_no_are_numbers(tmp_path: Path) -> None:
    data = load_data(str(text(tmp_path, "ill,smokes,outcome\nTrue,false,1\nFalse,true,0\n")), target="outcome")
    assert data.x.tolist() == [[1, 0], [0, 1]]


TABLES = {
    "a text among numbers": (csv_text().replace("0.0,", "old,", 1), "column 'age' holds 'old', not a number"),
    "an empty cell": (csv_text().replace("0.0,", ",", 1), "column 'age' holds '', not a number; fill the gap"),
    "a missing cell": (csv_text() + "1,2\n", "line 14 has 2 cells"),
    "twice the same name": (csv_text().replace("dose", "age"), "two columns are called 'age'"),
    "row numbers": (
        "," + csv_text().replace("\n", "\n0,").removesuffix("0,"),
        "column 1 has no name; pandas .*index=False",
    ),
    "out of bounds": (csv_text().replace("0.0,", "9.0,", 1), "give each column its own bounds with --features FILE"),
    "no rows": (csv_text().split("\n")[0] + "\n", "has no rows"),
    "one column": ("a\n1\n2\n", "has 1 columns"),
    "an open quote": (csv_text() + '"1,2\n', "not a text table"),
    "half a class": (csv_text(labels=[0.5] * 12), "must be class numbers or texts"),
    "endless label": (csv_text(labels=["inf"] * 12), "must be class numbers or texts"),
    "a long cell": (csv_text(labels=["a" * 2000, "b"] * 6), "cell of more than 1000"),
    "not finite": (csv_text().replace("0.0,", "nan,", 1), "NaN"),
    "negative class": (csv_text(labels=[-1, 1] * 6), "labels must lie in"),
}


@pytest.mark.parametrize(("content", "message"), TABLES.values(), ids=TABLES.keys())
def test_tables_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(str(text(tmp_path, content)), target="outcome")


@pytest.mark.parametrize(
    ("limit", "most", "message"),
    [("MAX_COLUMNS", 2, "has 4 columns; .* at most 2"), ("MAX_ROWS", 11, "more than 11 rows")],
)
@pytest.mark.parametrize("name", ["d.csv", "table.parquet"])
def test_tables_have_limits(
    name: str, limit: str, most: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "table.parquet":
        pytest.importorskip("pyarrow")
    path = FILES / name if name == "table.parquet" else text(tmp_path, csv_text())
    assert len(load_data(str(path), target="outcome").x) == 12
    monkeypatch.setattr(f"maskaudit.data.table.{limit}", most)
    with pytest.raises(InputError, match=message):
        load_data(str(path), target="outcome")


@pytest.mark.parametrize("length", [900, 1_001])
def test_a_text_is_read_once_however_many_rows_repeat_it(length: int, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = arrow.DictionaryArray.from_arrays(np.arange(100_000, dtype=np.int32) % 2, ["a" * length, "b" * length])
    table = arrow.table({"age": np.zeros(100_000, np.float32), "outcome": texts})
    parquet.write_table(table, tmp_path / "d.parquet", store_schema=False)
    if length > 1_000:
        with pytest.raises(InputError, match="a cell of more than 1000 characters"):
            load_data(str(tmp_path / "d.parquet"), target="outcome")
    else:
        data = load_data(str(tmp_path / "d.parquet"), target="outcome")
        assert data.y.tolist() == [0, 1] * 50_000
        assert [name[0] for name in data.class_names or ()] == ["a", "b"]
    assert arrow.default_memory_pool().max_memory() < 100_000 * length / 2


def test_cells_are_counted_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(text(tmp_path, csv_text()))
    monkeypatch.setattr("maskaudit.data.table.largest_file", lambda: 3000)
    with pytest.raises(InputError, match="more cells than a quarter of the memory"):
        load_data(path, target="outcome")


def test_tables_of_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"a,y\n\xff,1\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_data(str(tmp_path / "d.csv"))
    with pytest.raises(InputError, match=r"parquet"):
        load_data(str(text(tmp_path, "PAR1" * 200, "d.parquet")))


class Touch:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch OWNED",)


HOSTILE: dict[str, tuple[Callable[[Path], Any], type[MaskauditError], str]] = {
    "code in torch.save": (lambda f: tensors(f, {"x": Touch(), "y": TY}), UntrustedInputError, "would run code"),
    "sparse": (lambda f: tensors(f, {"x": TX.to_sparse(), "y": TY}), InputError, "not a plain dense tensor"),
    "complex": (lambda f: tensors(f, {"x": TX + 1j, "y": TY}), InputError, "not a plain dense tensor"),
    "no tensors": (lambda f: tensors(f, {"x": 3, "y": TY}), InputError, "x must be a tensor"),
    "no names": (lambda f: tensors(f, TX), InputError, "object of type Tensor; save inputs and labels"),
    "a model": (lambda f: tensors(f, {"w": TX}), InputError, "expected the arrays x and y, found w"),
    "alone": (lambda f: (np.save(f / "x.npy", X), f / "x.npy")[1], InputError, r"no y\.npy lies beside it"),
    "alone, odd name": (lambda f: (np.save(f / "q.npy", X), f / "q.npy")[1], InputError, "single array"),
    "half a pair": (lambda f: f"{arrays(f, 'a.npy', 'b.npy')},c.npy", InputError, r"no file 'c\.npy'"),
    "objects": (
        lambda f: (arrays(f, "x.npy", "y.npy"), np.save(f / "x.npy", np.array([Touch()], object)))[0],
        InputError,
        "object arrays",
    ),
}


@pytest.mark.parametrize(("write", "error", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any], error: type[MaskauditError],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load_data(str(write(tmp_path)))
    assert not (tmp_path / "OWNED").exists()


WRITTEN = {name: FORMS[name] for name in ("pair beside", "torch dict", "torch, old format", "safetensors", "csv")}


@pytest.mark.parametrize(("write", "target"), WRITTEN.values(), ids=WRITTEN.keys())
def test_damaged_bytes_never_crash(tmp_path: Path, write: Callable[[Path], Path], target: str | None) -> None:
    check_damage(write(tmp_path), target)


@pytest.mark.parametrize("name", ["table.parquet", "shard.tar"])
def test_damaged_files_of_other_tools_never_crash(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((FILES / name).read_bytes())
    check_damage(tmp_path / name, "outcome" if name.endswith("parquet") else None)


def check_damage(path: Path, target: str | None) -> None:
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for cut in (1, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        attempt(path, target)
    for _ in range(25):
        damaged = bytearray(content)
        for place in generator.integers(len(content), size=4):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        attempt(path, target)


def attempt(path: Path, target: str | None) -> None:
    with contextlib.suppress(MaskauditError):
        assert isinstance(load_data(str(path), target=target), Dataset)


def image(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (colour, 0, 255 - colour)).save(stream, "PNG")
    return stream.getvalue()


def archive(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def test_a_shard_of_webdataset() -> None:
    data = load_data(str(FILES / "shard.tar"))
    assert data.point_shape == (3, 4, 5)
    assert data.y.tolist() == [0, 1, 2, 0]
    assert torch.allclose(data.x[:, 0, 0, 0], torch.tensor([0, 60, 120, 180]) / 255)
    assert len(load_data(str(FILES / "shard.tar"), draw=Draw(2, 0)).x) == 2


SHARDS: dict[str, tuple[dict[str, bytes], str]] = {
    "no class": ({"a/0.png": image(1)}, r"a/0\.cls is missing"),
    "no images": ({"0.cls": b"1", "0.json": b"{}"}, "there are no PNG or JPEG images"),
    "a text as class": ({"0.png": image(1), "0.cls": b"cat"}, "must hold one class number"),
    "a long class": ({"0.png": image(1), "0.cls": b"1" * 50}, "must hold one class number"),
    "no image": ({"0.png": b"PNG?", "0.cls": b"1"}, "cannot be read as PNG or JPEG"),
}


@pytest.mark.parametrize(("members", "message"), SHARDS.values(), ids=SHARDS.keys())
def test_archives_that_are_no_shards(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(str(archive(tmp_path / "d.tar", members)))


def test_packed_archives_and_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for name in ("0.png", "0.cls"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(entry)
    with pytest.raises(InputError, match="there are no PNG or JPEG images"):
        load_data(str(tmp_path / "d.tar"))
    with pytest.raises(InputError, match=r"d\.tgz"):
        load_data(str(archive(tmp_path / "d.tgz", {"0.png": image(0), "0.cls": b"1"}, "w:gz")))


def test_other_pickles_and_json_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(Touch()))
    (tmp_path / "d.json").write_text(json.dumps({"x": [1]}))
    for name in ("d.pkl", "d.json"):
        with pytest.raises(InputError, match=r"of no form that data come in"):
            load_data(str(tmp_path / name))
