"""Models of a gate in processes side by side: the same outcomes, faults told apart, and an end when it is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskaudit.errors import InputError
from maskaudit.gate import summary
from maskaudit.gate.config import read_config
from maskaudit.gate.running import run_gate
from maskaudit.gate.side_by_side import in_turn

from .stub import StubAudit, write_config

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("jobs", [2, 5])
def test_the_same_outcomes_in_the_same_order(jobs: int, tmp_path: Path) -> None:
    models = ("clear", "masked", "missing", "late", "suspect")
    config = read_config(write_config(tmp_path, *models))
    audit = StubAudit({"missing": InputError("There is no model file 'missing'.")})
    alone, together = (run_gate(config, audit=audit, jobs=number) for number in (1, jobs))
    assert summary.build(together) == summary.build(alone)
    assert together.status == 4


def test_every_task_has_a_process_of_its_own() -> None:
    begun: list[int] = []
    results = dict(in_turn(lambda number: (number, os.getpid()), range(4), 2, begun.append))
    assert begun == [0, 1, 2, 3]
    assert [results[number][0] for number in range(4)] == [0, 1, 2, 3]
    assert len({process for _, process in results.values()} | {os.getpid()}) == 5


def test_an_error_of_a_task_reaches_the_caller() -> None:
    def fails(number: int) -> int:
        raise LookupError(number)

    with pytest.raises(LookupError, match="1"):
        list(in_turn(fails, [1, 2], 2, lambda _: None))


def test_a_process_that_vanishes_is_an_error() -> None:
    def ends(number: int) -> int:
        os._exit(0)

    with pytest.raises(RuntimeError, match="without a result"):
        list(in_turn(ends, [1], 2, lambda _: None))


@pytest.mark.heavy
def test_ctrl_c_ends_all_and_keeps_partial_reports(tmp_path: Path, standard_file: Path) -> None:
    file = tmp_path / "maskaudit.toml"
    entries = "".join(f'[[models]]\nname = "m{n}"\nmodel = "{standard_file.as_posix()}"\n' for n in range(2))
    file.write_text('budget = "thorough"\nsamples = 1000\nprecision = 0.01\n' + entries)
    command = [sys.executable, "-m", "maskaudit", "gate", "--jobs", "2", "--out", "out", "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 300
        folders = [tmp_path / "out" / name / ".journal" for name in ("m0", "m1")]
        while not all(any(folder.glob("*-pgd_*.entry")) for folder in folders):  # what both keep from then on
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err
    for name in ("m0", "m1"):
        assert (tmp_path / "out" / name / "audit.json").is_file(), err.decode()
