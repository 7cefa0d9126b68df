"""MATLAB files: the same arrays as scipy reads, and a sentence for what is damaged."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

import numpy as np
import pytest
from scipy import io as scipy_io

from benchmarks.fuzzing.mutations import damage
from maskaudit.data.matlab import HEAD, read_arrays
from maskaudit.errors import InputError

KINDS = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


def _saved(packed: bool = False, **arrays: object) -> bytes:
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, arrays, do_compression=packed)
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_are_what_scipy_wrote(packed: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"a{kind}": (generator.random((3, 1, 2, 5)) * 100).astype(kind) for kind in KINDS}
    arrays |= {"b": np.arange(3.0)[None], "empty": np.zeros((0, 3)), "skipped": np.ones((2, 2))}
    path = tmp_path / "a.mat"
    path.write_bytes(_saved(packed, text="not asked for", **arrays))
    wanted = [name for name in arrays if name != "skipped"]
    read = read_arrays(path, wanted)
    assert list(read) == wanted
    for name, array in read.items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])


def test_numbers_kept_in_a_shorter_type(tmp_path: Path) -> None:
    """MATLAB stores doubles that are small whole numbers as bytes; here one is rewritten by hand."""
    content = bytearray(_saved(y=np.array([[1.0]])))
    tag = content.rindex(np.array([9, 8], "<u4").tobytes())
    content[tag : tag + 16] = np.array([2 | 1 << 16, 7, 0, 0], "<u4").tobytes()
    path = tmp_path / "a.mat"
    path.write_bytes(bytes(content))
    array = read_arrays(path, ["y"])["y"]
    assert array.dtype == np.float64
    assert array.tolist() == [[7.0]]


@pytest.mark.parametrize("value", [np.array([[1j]]), "a text", np.array([{}], object)])
def test_other_than_real_numbers_is_refused(value: object, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(_saved(y=value))
    with pytest.raises(InputError, match="not a full array of real numbers"):
        read_arrays(path, ["y"])


def test_another_level_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, {"y": np.ones((2, 2))}, format="4")
    path = tmp_path / "a.mat"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="level 5"):
        read_arrays(path, ["y"])


@pytest.mark.parametrize("packed", [False, True])
def test_damage_ends_in_a_sentence(packed: bool, tmp_path: Path) -> None:
    path, good = tmp_path / "a.mat", _saved(packed, y=np.arange(6.0)[None], x=np.ones((2, 3), np.uint8))
    rng, refused = Random(0), 0
    for _ in range(300):
        path.write_bytes(good[:HEAD] + damage(good[HEAD:], rng))
        try:
            read_arrays(path, ["x", "y"])
        except InputError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("packed", [False, True])
def test_more_than_a_share_of_the_memory_is_refused(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(_saved(packed, x=np.zeros((1000, 1000))))
    monkeypatch.setattr("maskaudit.data.matlab.largest_file", lambda: 2**20)
    with pytest.raises(InputError, match=r"quarter of the memory|larger than 1 MiB"):
        read_arrays(path, ["x"])
