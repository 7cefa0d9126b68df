"""The GitHub Action and the pre-commit hook: their own commands, run as they are."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
BASH = shutil.which("bash")

needs_bash = pytest.mark.skipif(BASH is None, reason="there is no bash on this machine")

#: Stands in for an audit: notes its arguments, writes a report as the real program would, ends with $FAKE_STATUS.
FAKE = """#!/bin/sh
printf '%s\\n' "$@" > arguments.txt
for argument in "$@"; do
  case $argument in --out=*) out=${argument#--out=} ;; esac
done
if [ -n "${FAKE_REPORT:-}" ]; then
  mkdir -p "$out"
  if [ "$1" = gate ]; then file=summary.json; else file=audit.json; fi
  printf '%s' "$FAKE_REPORT" > "$out/$file"
fi
exit "${FAKE_STATUS:-0}"
"""

REAL = f"""#!/bin/sh
exec "{sys.executable}" -m maskaudit.cli "$@"
"""


@dataclass(frozen=True)
class Step:
    """A step of the composite action: its name, and its script."""

    name: str
    script: str


def steps() -> list[Step]:
    """The steps as written: everything below `run: |`, less its indentation."""
    found = []
    for block in ACTION.read_text(encoding="utf-8").partition("\n  steps:\n")[2].split("\n    - name: "):
        name, _, body = block.removeprefix("    - name: ").partition("\n")
        script = body.partition("      run: |\n")[2]
        found.append(Step(name, textwrap.dedent(script)))
    return found


def hook() -> dict[str, str]:
    """The single hook, a flat mapping."""
    lines = HOOKS.read_text(encoding="utf-8").splitlines()
    return dict(line.removeprefix("- ").strip().split(": ", 1) for line in lines if line.strip())


@dataclass(frozen=True)
class Ran:
    status: int
    outputs: dict[str, str]
    arguments: list[str]
    stdout: str


Runner = Callable[..., Ran]


@pytest.fixture
def audit_step(tmp_path: Path) -> Runner:
    """Runs the action's audit step as GitHub does, with the given inputs, on a stand-in or the real program."""

    def run(program: str = FAKE, status: int = 0, report: Any = None, **inputs: str) -> Ran:
        binaries = tmp_path / "bin"
        binaries.mkdir(exist_ok=True)
        for name, content in (("maskaudit", program), ("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')):
            (binaries / name).write_text(content)
            (binaries / name).chmod(0o755)
        (script := tmp_path / "step.sh").write_text(steps()[1].script)
        (output := tmp_path / "output.txt").write_text("")
        names = ("config", "model", "arch", "data", "eps", "claim", "budget", "cache", "jobs", "fail-on", "out")
        given = {f"INPUT_{name.upper().replace('-', '_')}": inputs.get(name.replace("-", "_"), "") for name in names}
        done = subprocess.run(
            [str(BASH), "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={
                **os.environ, **given, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                "GITHUB_OUTPUT": str(output), "GITHUB_ACTIONS": "true", "OMP_NUM_THREADS": "1",
                "GITHUB_STEP_SUMMARY": str(tmp_path / "steps.md"), "FAKE_STATUS": str(status),
                "FAKE_REPORT": "" if report is None else json.dumps(report),
            },
        )  # fmt: skip
        assert "syntax error" not in done.stderr, done.stderr
        arguments = tmp_path / "arguments.txt"
        return Ran(
            done.returncode,
            dict(line.split("=", 1) for line in output.read_text().splitlines()),
            arguments.read_text().splitlines() if arguments.exists() else [],
            done.stdout + done.stderr,
        )

    return run


@needs_bash
def test_a_gate_with_everything_at_its_default(audit_step: Runner) -> None:
    ran = audit_step(report={"verdict": "clear"})
    assert ran.arguments == ["gate", "--out=maskaudit-report"]
    assert (ran.status, ran.outputs) == (0, {"verdict": "clear", "status": "0"})


@needs_bash
def test_a_gate_with_every_input(audit_step: Runner) -> None:
    ran = audit_step(
        status=1, report={"verdict": "masked"}, config="ci/gate.toml", fail_on="suspect", out="a folder",
        cache="of finished audits", jobs="2",
    )  # fmt: skip
    assert ran.arguments == [
        "gate", "--config=ci/gate.toml", "--cache=of finished audits", "--jobs=2", "--fail-on=suspect",
        "--out=a folder",
    ]  # fmt: skip
    assert (ran.status, ran.outputs) == (1, {"verdict": "masked", "status": "1"})


@needs_bash
def test_a_single_model_with_every_input(audit_step: Runner) -> None:
    ran = audit_step(
        status=3, report={"verdict": {"label": "inconclusive"}}, model="--net.pt", arch="net.py:build",
        data="test.npz", eps="8/255", claim="0.5", budget="quick", fail_on="never", out="out",
    )  # fmt: skip
    assert ran.arguments == [
        "check", "--arch=net.py:build", "--data=test.npz", "--eps=8/255", "--claim=0.5", "--budget=quick",
        "--fail-on=never", "--out=out", "--", "--net.pt",
    ]  # fmt: skip
    assert (ran.status, ran.outputs) == (3, {"verdict": "inconclusive", "status": "3"})


@needs_bash
def test_the_outputs_are_set_where_nothing_was_audited(audit_step: Runner, tmp_path: Path) -> None:
    old = tmp_path / "maskaudit-report" / "summary.json"
    old.parent.mkdir()
    old.write_text('{"verdict": "clear"}')
    ran = audit_step(status=2)
    assert (ran.status, ran.outputs) == (2, {"verdict": "", "status": "2"}), "an old report is not taken for a new one"


@needs_bash
def test_no_input_and_no_report_becomes_code_or_another_output(audit_step: Runner, tmp_path: Path) -> None:
    evil = '$(touch owned); `touch owned` "; touch owned #'
    ran = audit_step(report={"verdict": "clear\nstatus=0"}, status=1, model=evil, out="out")
    assert ran.arguments[-1] == evil
    assert ran.outputs == {"verdict": "", "status": "1"}
    assert not (tmp_path / "owned").exists()


@needs_bash
@pytest.mark.parametrize(
    "inputs", [{"model": "m", "config": "c"}, *({name: "0.5"} for name in ("arch", "data", "eps", "claim", "budget"))]
)
def test_inputs_that_contradict_each_other(inputs: dict[str, str], audit_step: Runner) -> None:
    ran = audit_step(**inputs)
    assert (ran.status, ran.outputs, ran.arguments) == (2, {"status": "2"}, [])
    assert ran.stdout.startswith("::error::")


@pytest.mark.heavy
@needs_bash
def test_the_step_with_the_real_program(audit_step: Runner, tmp_path: Path) -> None:
    (tmp_path / "maskaudit.toml").write_text('[[models]]\nmodel = "missing.pt"\n')
    ran = audit_step(REAL)
    assert (ran.status, ran.outputs) == (2, {"verdict": "", "status": "2"}), ran.stdout
    assert "::error file=" in ran.stdout
    assert "NOT AUDITED" in (tmp_path / "steps.md").read_text()
    assert (tmp_path / "maskaudit-report" / "junit.xml").is_file()


@needs_bash
def test_a_missing_configuration_is_an_annotation(audit_step: Runner) -> None:
    ran = audit_step(REAL)
    assert (ran.status, ran.outputs) == (2, {"verdict": "", "status": "2"}), ran.stdout
    assert "::error::There is no maskaudit.toml" in ran.stdout


@needs_bash
@pytest.mark.parametrize(
    ("version", "cuda", "installed"),
    [(None, None, True), ("2.5.1+cpu", None, True), ("2.6.0+cpu", None, False), ("2.13.0", "13.0", False),
     ("2.5.1+cu124", "12.4", False)],
)  # fmt: skip
def test_the_install_step_installs_the_action_itself_and_torch_for_the_cpu(
    version: str | None, cuda: str | None, installed: bool, tmp_path: Path
) -> None:
    install, audit = steps()
    assert (install.name, audit.name) == ("Install maskaudit", "Audit")
    (tmp_path / "python").write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\necho "$@" >> "{tmp_path}/calls"\n'
    )
    (tmp_path / "python").chmod(0o755)
    fake = f"import types\n__version__ = {version!r}\nversion = types.SimpleNamespace(cuda={cuda!r})\n"
    (tmp_path / "torch.py").write_text("raise ImportError\n" if version is None else fake)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [str(BASH), "-eo", "pipefail", "-c", install.script], cwd=tmp_path,
        env={"PATH": path, "PYTHONPATH": str(tmp_path), "MASKAUDIT_SOURCE": "/the action"}, check=True, timeout=300,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(call.startswith("-m pip install") for call in calls)
    assert calls[-1].endswith(" /the action[onnx]")
    assert [call.endswith("torch>=2.6 --index-url https://download.pytorch.org/whl/cpu") for call in calls[:-1]] == (
        [True] if installed else []
    )
    assert "MASKAUDIT_SOURCE: ${{ github.action_path }}" in ACTION.read_text(encoding="utf-8")


def test_inputs_reach_the_script_as_variables_only() -> None:
    text = ACTION.read_text(encoding="utf-8")
    declared = set(re.findall(r"(?m)^  ([a-z-]+):\n    description: ", text.partition("\noutputs:")[0]))
    assert declared == {"config", "model", "arch", "data", "eps", "claim", "budget", "cache", "jobs", "fail-on", "out"}
    assert set(re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", text)) == declared
    for step in steps():
        assert "${{" not in step.script


def test_the_action_is_valid() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    assert action["runs"]["using"] == "composite"
    assert all(step["shell"] == "bash" for step in action["runs"]["steps"])
    assert [step["run"] for step in action["runs"]["steps"]] == [step.script for step in steps()]
    assert set(action["outputs"]) == {"verdict", "status"}
    (parsed,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    assert {key: str(value) for key, value in parsed.items()} == {
        key: {"true": "True", "false": "False"}.get(value, value) for key, value in hook().items()
    }


def test_the_hook() -> None:
    found = hook()
    assert (found["id"], found["language"], found["pass_filenames"]) == ("maskaudit-gate", "python", "false")


@pytest.mark.heavy
def test_the_command_of_the_hook(tmp_path: Path) -> None:
    program, *arguments = shlex.split(hook()["entry"])
    assert program == "maskaudit", "the console script that pip installs"
    (tmp_path / "nets.py").write_text(
        "import torch\nclass Constant(torch.nn.Module):\n"
        "    def forward(self, x): return torch.eye(11)[10].expand(len(x), 11) + 0 * x.sum()\n"
    )
    (tmp_path / "pyproject.toml").write_text('[[tool.maskaudit.models]]\nmodel = "py:nets:Constant"\nsamples = 20\n')
    done = subprocess.run(
        [sys.executable, "-m", "maskaudit.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 3, done.stderr
    assert "INCONCLUSIVE" in done.stdout
    assert done.stderr == ""
