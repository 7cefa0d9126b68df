"""Files are whole or not there, and places that cannot be written are named before the work starts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from maskaudit.command import output
from maskaudit.command.compare import compare_files
from maskaudit.command.output import DIRECTORY_FILES, parse_outputs, write_file, write_outputs
from maskaudit.command.verify import verify_files
from maskaudit.data import load_data
from maskaudit.errors import InputError, UsageError
from maskaudit.files import only_one_in, write_atomically
from maskaudit.sources import load_model


def test_a_folder_gets_the_files_of_the_contract(tmp_path: Path) -> None:
    wanted = dict(parse_outputs((), str(tmp_path / "new" / "out")))
    assert {path.name for path in wanted.values()} == {
        "report.html", "audit.json", "evidence.safetensors", "summary.md", "plan.json",
    }  # fmt: skip
    assert set(wanted) == set(DIRECTORY_FILES)
    assert (tmp_path / "new" / "out").is_dir()


def test_options_and_folder_add_up(tmp_path: Path) -> None:
    wanted = parse_outputs((f"sarif={tmp_path}/a=b.sarif", f"evidence={tmp_path}/e"), str(tmp_path))
    assert ("sarif", tmp_path / "a=b.sarif") in wanted
    assert len(wanted) == len(DIRECTORY_FILES) + 2


@pytest.mark.parametrize("item", ["html", "html=", "=x.html", "pdf=x.pdf", "HTML=x", ""])
def test_a_malformed_option_is_refused(item: str) -> None:
    with pytest.raises(UsageError, match="FORMAT=PATH"):
        parse_outputs((item,), None)


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be made"):
        parse_outputs((f"json={tmp_path}/file/audit.json",), None)
    with pytest.raises(InputError, match="is a folder"):
        parse_outputs((f"json={tmp_path}",), None)
    with pytest.raises(InputError, match="cannot be made"):
        parse_outputs((), str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 300, "nul\0nul"])
def test_a_name_that_no_file_can_have_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    """Where results are to be written, and where files are read."""
    place = str(tmp_path / name)
    for outputs, folder in (((f"json={place}",), None), ((), place)):
        with pytest.raises(InputError, match=r"cannot be (made|written)"):
            parse_outputs(outputs, folder)
    for read in (
        lambda: compare_files(Path(place), Path(place)),
        lambda: verify_files(Path(place), "zoo:standard"),
        lambda: load_model(place),
        lambda: load_model(__file__, arch=f"{place}.py:make"),
        lambda: load_data(place),
    ):
        with pytest.raises(InputError):
            read()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        parse_outputs((f"json={tmp_path}/audit.json",), None)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_file(path, b"old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "sub" / "audit.json", b"{}")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "sub" / "audit.json").stat().st_mode) == 0o640


def test_a_pipe_is_written_to_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ((_, path),) = parse_outputs((f"json={pipe}",), None)
        write_file(path, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert parse_outputs(("json=/dev/null",), None) == [("json", Path("/dev/null"))]


def test_evidence_is_written_as_it_is_and_never_invented(tmp_path: Path) -> None:
    wanted = [("evidence", tmp_path / "e")]
    write_outputs(wanted, {}, b"bytes")
    assert (tmp_path / "e").read_bytes() == b"bytes"
    with pytest.raises(UsageError, match="does not contain the evidence"):
        write_outputs(wanted, {}, None)


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_ours_wherever_descriptor_1_leads(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_file(Path(place), "# a report ε\n".encode())
    assert capsys.readouterr().out == "# a report ε\n"
    with pytest.raises(UsageError, match="not text"):
        parse_outputs((f"evidence={place}",), None)
    with pytest.raises(UsageError, match="one document"):
        parse_outputs((f"md={place}",), None, as_json=True)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="descriptors have no names here")
def test_an_open_descriptor_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as stream:
        write_file(Path(f"/dev/fd/{stream.fileno()}"), b"whole")
        assert stream.read() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_reported_by_the_lock_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be made"), only_one_in(tmp_path / "file" / "out"):
        pass


def test_a_renaming_replaces_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe"):
        write_atomically(tmp_path / "pipe", b"content")
    assert os.listdir(tmp_path) == ["pipe"]
