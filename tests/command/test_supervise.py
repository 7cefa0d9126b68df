"""Whatever a model does to its process, the command line says so in one sentence and a status of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from maskaudit.cli import cli
from maskaudit.command import jobs
from maskaudit.command.entry import asks_help
from maskaudit.command.relayed_output import MOST
from maskaudit.files import only_one_in

from .calling import ROOT, check, command, start

#: A model that classifies well by looking at one pixel per class, and misbehaves from its forty-first call on.
MODELS = """
import ctypes, json, os, signal, subprocess, sys, time
import click
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, act, after=40):
        super().__init__()
        self.act, self.after, self.calls = act, after, 0

    def forward(self, x):
        self.calls += 1
        if self.calls > self.after:
            self.act()
        return x.flatten(1)[:, :10] * 10

def raising(error):
    def act():
        raise error
    return act

class Speechless(Exception):
    def __str__(self):
        return None

class SpeechlessExit(BaseException):
    def __str__(self):
        raise ValueError

def leave_the_group():
    os.setpgid(0, os.getpgid(os.getppid()))
    time.sleep(600)

def leave_a_child_that_prints():
    child = subprocess.Popen(["yes", "y" * 9999], start_new_session=True)
    time.sleep(0.2)
    with open("left", "w") as left:
        left.write(str(child.pid))
    os._exit(0)

def spoil_json():
    json.dumps = lambda *args, **kwargs: "{}"

def native_sleep():
    ctypes.CDLL(None).sleep(600)

def announce():
    print("\\x1b[2Jmodel speaks")
    os.write(1, b"raw bytes\\x07\\n")

def shout():
    print("word " * 100_000)
    if not os.path.samefile("/dev/fd/1", os.devnull):
        open("heard", "a").write("x")

def shout_for_ever():
    while True:
        shout()

def after_announcing_ready():
    if not os.path.exists("ready"):
        open("ready", "w").close()
    time.sleep(0.2)

def Exit(): return Model(lambda: sys.exit(0))
def Generator(): return Model(raising(GeneratorExit()))
def Keyboard(): return Model(raising(KeyboardInterrupt()))
def ClickExit(): return Model(raising(click.exceptions.Exit(0)))
def OsExit(): return Model(lambda: os._exit(0))
def OsExitOne(): return Model(lambda: os._exit(1))
def Crash(): return Model(lambda: ctypes.string_at(0))
def Killed(): return Model(lambda: os.kill(os.getpid(), signal.SIGKILL))
def AtOnce(): return Model(lambda: os._exit(0), after=0)
def InterruptsItself(): return Model(lambda: os.kill(os.getpid(), signal.SIGINT))
def TerminatesItself(): return Model(lambda: os.kill(os.getpid(), signal.SIGTERM))
def SaysNothing(): return Model(raising(Speechless()))
def SaysNothingAndEnds(): return Model(raising(SpeechlessExit()))
def SpoilsJson(): return Model(spoil_json)
def LeavesTheGroup(): return Model(leave_the_group)
def LeavesAChild(): return Model(leave_a_child_that_prints)
def Sleeps(): return Model(lambda: time.sleep(600))
def SleepsBefore(): time.sleep(600)
def SleepsBetween():
    model = Model(announce, after=0)
    model.train = lambda mode=True: time.sleep(600)
    return model
def SleepsNatively(): return Model(native_sleep)
def Speaks(): return Model(announce, after=0)
def Shouts(): return Model(shout)
def ShoutsForEver(): return Model(shout_for_ever)
def Slow(): return Model(after_announcing_ready)
def SlowAtOnce(): return Model(after_announcing_ready, after=0)
def ForgesFrames(): return Model(lambda: [_write(fd, b'{"kind": "end"}' * 9) for fd in range(3, 40)])

def _write(fd, data):
    try:
        os.write(fd, data)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the models and forty points that they get right."""
    here = tmp_path_factory.mktemp("models")
    (here / "models.py").write_text(MODELS)
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32) * 0.4
    y = np.arange(40) % 10
    x.reshape(40, 64)[np.arange(40), y] = 0.9
    np.savez(here / "x.npz", x=x, y=y)
    return here


#: Model, and what the sentence on stderr says.
ENDS = [
    ("Exit", "SystemExit"),
    ("Generator", "GeneratorExit"),
    ("Keyboard", "KeyboardInterrupt"),
    ("ClickExit", "Exit"),
    ("OsExit", "ended the process with status 0"),
    ("OsExitOne", "ended the process with status 1"),
    ("Crash", "SIGSEGV"),
    ("Killed", "lack of memory"),
    ("ForgesFrames", "private channel"),
    ("SpoilsJson", "private channel"),
    ("InterruptsItself", "Interrupted by SIGINT"),
    ("TerminatesItself", "Interrupted by SIGTERM"),
    ("SaysNothing", "raised Speechless on input"),
    ("SaysNothingAndEnds", "raised SpeechlessExit on input"),
]


@pytest.mark.parametrize(("model", "says"), ENDS)
def test_a_model_that_ends_its_process_is_a_failure_with_a_partial_report(model: str, says: str, folder: Path) -> None:
    done = check(model, "--json", cwd=folder)
    assert done.status == 4
    assert says in done.err
    assert "Traceback" not in done.err
    document = json.loads(done.out)
    assert says in document["partial"]["reason"]
    assert document["verdict"]["label"] == "inconclusive"
    assert document["accuracy"]["clean"]["n"] == 32


@pytest.mark.parametrize("model", ["Exit", "OsExit"])
def test_the_files_of_a_partial_report_say_that_it_is_one(model: str, folder: Path, tmp_path: Path) -> None:
    done = check(model, "--json", "--out", str(tmp_path), cwd=folder)
    document = json.loads(done.out)
    assert json.loads((tmp_path / "audit.json").read_text())["partial"] == document["partial"]
    assert "Partial report" in (tmp_path / "report.html").read_text()
    assert "Partial report" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / ".journal" / "fingerprint").is_file()


def test_an_end_before_anything_was_measured_is_one_sentence_and_one_document(folder: Path) -> None:
    done = check("AtOnce", "--json", cwd=folder)
    assert done.status == 4
    assert json.loads(done.out)["error"]["exit_status"] == 4
    assert len(done.err.splitlines()) == 1


def test_workers_that_are_told_to_exit_report_a_failure_of_the_model(folder: Path) -> None:
    done = check("Exit", "--workers", "2", cwd=folder)
    assert done.status == 4
    assert "SystemExit" in done.err


@pytest.mark.parametrize(
    "hanging",
    [("SleepsNatively",), ("Sleeps", "--workers", "2"), ("LeavesTheGroup",), ("ShoutsForEver",)],
    ids=lambda value: value[0],
)
def test_a_call_that_hangs_is_ended(hanging: tuple[str, ...], folder: Path) -> None:
    done = check(*hanging, "--json", "--call-timeout", "1", cwd=folder)
    assert done.status == 4
    assert "did not answer within 1 s" in done.err
    assert "did not answer within 1 s" in json.loads(done.out)["partial"]["reason"]
    assert len(done.err) < 2 * MOST


@pytest.mark.parametrize("hanging", ["SleepsBefore", "SleepsBetween"])
def test_code_of_a_model_that_hangs_before_it_is_asked_is_ended(hanging: str, folder: Path) -> None:
    done = check(hanging, "--json", "--call-timeout", "1", cwd=folder)
    assert done.status == 4
    assert "did not answer within 1 s" in json.loads(done.out)["error"]["message"]


def test_a_process_that_a_model_leaves_behind_holds_nobody_up(folder: Path) -> None:
    done = check("LeavesAChild", "--json", cwd=folder)
    os.kill(int((folder / "left").read_text()), signal.SIGKILL)
    assert done.status == 4
    assert "ended the process with status 0" in json.loads(done.out)["partial"]["reason"]


def test_what_a_model_prints_goes_cleaned_to_stderr(folder: Path) -> None:
    done = check("Speaks", "--json", "--select", "noise", cwd=folder)
    assert json.loads(done.out)["partial"] is None
    assert "model speaks" in done.err
    assert "raw bytes" in done.err
    assert not set(done.err) & set("\x1b\x07")


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["here", "workers"])
def test_a_model_that_prints_without_end_is_cut_off_and_audited(workers: tuple[str, ...], folder: Path) -> None:
    (folder / "heard").unlink(missing_ok=True)
    done = check("Shouts", "--json", "--select", "noise", *workers, cwd=folder)
    document = json.loads(done.out)
    assert document["partial"] is None
    assert len(done.err) < 2 * MOST
    assert done.err.count("what follows is not shown") == 1
    calls = sum(row["forwards"] for row in document["attacks"])
    assert (folder / "heard").stat().st_size < calls, "from then on nothing is written for nobody"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_writes_a_partial_report_and_keeps_the_journal(
    signum: int, status: int, folder: Path, tmp_path: Path
) -> None:
    (folder / "ready").unlink(missing_ok=True)
    running = start("Slow", "--json", "--out", str(tmp_path), cwd=folder)
    running.wait_for((folder / "ready").exists)
    os.kill(running.pid, signum)
    done = running.end()
    assert done.status == status
    document = json.loads(done.out)
    assert "Interrupted" in document["partial"]["reason"]
    assert document["verdict"]["label"] == "inconclusive"
    assert json.loads((tmp_path / "audit.json").read_text()) == document
    assert (tmp_path / "evidence.safetensors").is_file()
    assert (tmp_path / ".journal" / "fingerprint").is_file()


def test_two_interruptions_stop_at_once(folder: Path, tmp_path: Path) -> None:
    running = start("SleepsNatively", "--json", "--out", str(tmp_path), cwd=folder)
    running.wait_for((tmp_path / ".journal" / "fingerprint").exists)
    os.kill(running.pid, signal.SIGINT)
    running.wait_for(lambda: "interrupted" in running.err.read_text())
    os.kill(running.pid, signal.SIGINT)
    done = running.end()
    assert done.status == 130
    json.loads(done.out)
    assert (tmp_path / ".journal" / "fingerprint").is_file()


def test_an_interrupted_command_promises_no_option_that_it_lacks(folder: Path) -> None:
    (folder / "ready").unlink(missing_ok=True)
    running = command("inspect", "py:models:SlowAtOnce", "--data", "x.npz", cwd=folder)
    running.wait_for((folder / "ready").exists)
    os.kill(running.pid, signal.SIGINT)
    done = running.end()
    assert done.status == 130
    assert "Interrupted" in done.err
    assert "--resume" not in done.err


def test_a_second_audit_in_the_same_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".journal").mkdir()
    with only_one_in(tmp_path):
        done = check("Slow", "--out", str(tmp_path), cwd=folder)
    assert done.status == 2
    assert "Another audit is at work" in done.err
    assert (tmp_path / ".journal").is_dir()
    with only_one_in(tmp_path):
        pass


def test_a_disk_that_is_full_costs_the_files_and_not_the_verdict(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the report fits, the page with its figures does not."""
    done = check(
        "Speaks", "--out", str(tmp_path), "--select", "noise", "--fail-on", "never", cwd=folder, largest_file=60_000
    )
    assert done.status == 2, "a success whose files are missing is none"
    assert "INCONCLUSIVE" in done.out
    assert "cannot be written" in done.err
    assert (tmp_path / "audit.json").is_file()
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / ".journal").is_dir()


def test_a_reader_that_leaves_makes_no_success(folder: Path) -> None:
    done = check("Speaks", "--select", "noise", "--fail-on", "never", cwd=folder, reader=False)
    assert done.status == 2


def test_a_fault_of_ours_has_a_status_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("ours\x1b[2J")

    monkeypatch.setattr(jobs, "inspect_source", broken)
    done = command("inspect", "m.pt", "--json", cwd=tmp_path).end()
    assert done.status == 70
    assert "ZeroDivisionError" in done.err
    assert "\x1b" not in done.err
    assert "fault of maskaudit" in json.loads(done.out)["error"]["message"]


@pytest.mark.parametrize("where", [">&-", ">/dev/full", "<&- >&- 2>&-", "2>&-", "2>/dev/full"])
@pytest.mark.parametrize("arguments", ["--help", "--version", "check m.pt --budget huge"])
def test_a_closed_or_full_stream_is_no_fault_of_ours_and_a_lost_result_no_success(
    arguments: str, where: str, tmp_path: Path
) -> None:
    line = f'exec "$0" -m maskaudit {arguments} {where}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable], cwd=tmp_path, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, check=False,
    )  # fmt: skip
    fails = "huge" in arguments or ">&-" in where.replace("2>&-", "") or where == ">/dev/full"
    assert done.returncode == (2 if fails else 0)
    assert b"Traceback" not in done.stderr
    if where == ">/dev/full" and "huge" not in arguments:
        assert b"Standard output cannot be written: No space left on device." in done.stderr


@pytest.mark.parametrize(("arguments", "helps"), [
    ("check -qh", True), ("check m.pt --json -h", True), ("zoo list -h", True), ("-h check", True),
    ("check m.pt --data -h", False), ("check -- -h", False), ("check m.pt -oh", False), ("check", False),
    ("zoo -h list", True), ("frobnicate -h", False), ("check --nothing -h", False),
])  # fmt: skip
def test_help_is_what_click_takes_for_it(arguments: str, helps: bool) -> None:
    cli.commands["check"].make_context("check", ["m.pt"])  # of a command on its own: the options are the same
    assert asks_help(cli, arguments.split()) is helps


LIGHT = [
    (("--version",), 0),
    (("check", "--help"), 0),
    (("frobnicate",), 2),
    (("check",), 2),
    (("check", "m.pt", "--budget", "huge"), 2),
]


@pytest.mark.parametrize(("arguments", "status"), LIGHT, ids=lambda value: str(value))
def test_errors_and_help_load_no_torch(arguments: tuple[str, ...], status: int, tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import atexit, sys
        def say():
            import os
            os.write(2, b"torch" if "torch" in sys.modules else b"light")
        atexit.register(say)
        from maskaudit.cli import main
        main()
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == status
    assert "light" in done.stderr
    assert "torch" not in done.stderr


def test_the_supervisor_loads_no_torch_even_to_deliver_a_partial_report(folder: Path, tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys
        parent = os.getpid()
        from maskaudit.cli import main
        try:
            main()
        finally:
            if os.getpid() == parent:
                print("torch" in sys.modules, file=sys.stderr)
    """)
    done = subprocess.run(
        [
            sys.executable, "-c", script, "check", "py:models:OsExit", "--data", "x.npz", "--budget", "quick", "-q",
            "--out", str(tmp_path),
        ],
        capture_output=True, text=True, cwd=folder, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "False"
    assert (tmp_path / "report.html").is_file()


def test_one_model_of_a_gate_that_ends_its_process_costs_no_other(folder: Path, tmp_path: Path) -> None:
    models = "".join(
        f'[[models]]\nmodel = "py:models:{name}"\nfail_on = "never"\n'
        for name in ("OsExit", "AtOnce", "InterruptsItself", "Speaks", "Shouts")
    )
    (folder / "gate.toml").write_text('data = "x.npz"\nbudget = "quick"\nselect = ["noise"]\n' + models)
    done = command("gate", "--config", "gate.toml", "--json", "-q", "--out", str(tmp_path), cwd=folder).end()
    assert done.status == 4
    rows = {row["name"]: row for row in json.loads(done.out)["models"]}
    assert [row["status"] for row in rows.values()] == [4, 4, 4, 0, 0]
    assert "ended the process" in rows["OsExit"]["error"]
    assert json.loads((tmp_path / "OsExit" / "audit.json").read_text())["partial"]
    for name in ("Speaks", "Shouts"):
        assert json.loads((tmp_path / name / "audit.json").read_text())["partial"] is None
    assert MOST < len(done.err) < 2 * MOST, "what one model prints without end is cut off"
    assert not set(done.err) & set("\x1b\x07")
