"""Every front door gives the same report for the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from maskaudit import api, settings
from maskaudit.auditing.runner import Audit
from maskaudit.cli import cli
from maskaudit.command.zoo import audit_of_the_zoo
from maskaudit.data import load_data
from maskaudit.errors import MaskauditError, MaskedError
from maskaudit.gate.config import read_config
from maskaudit.gate.running import run_gate
from maskaudit.pytest_plugin import Auditor
from maskaudit.zoo import ZOO

pytestmark = pytest.mark.heavy

OPTIONS: dict[str, Any] = {
    "budget": "quick", "samples": 16, "select": ["square", "zero-gradient"], "seed": 3, "eps": 0.2,
}  # fmt: skip
WORDS = [word for key, value in OPTIONS.items() for word in settings.OPTIONS[key].words(value)]

SETTINGS = settings.AuditSettings(**{key: value for key, value in OPTIONS.items() if key != "eps"})

#: What tells how the model and its data were named.
NAMES = ("target", "notes")


def same(document: dict[str, Any]) -> dict[str, Any]:
    """A report without how model and data were named, and how long it took."""
    kept: dict[str, Any] = json.loads(json.dumps({key: part for key, part in document.items() if key not in NAMES}))
    for name in ("command", "defaults", "data", "split"):
        kept["settings"].pop(name)
    kept["evidence"].pop("sha256")
    for of_the_process in ("total_seconds", "peak_memory"):
        kept["timing"].pop(of_the_process)
    for row in (*kept["attacks"], *kept["probes"]):
        row.pop("seconds")
    return kept


@pytest.fixture(scope="module")
def checked(standard_file: Path) -> dict[str, Any]:
    """What `check FILE --json` prints."""
    result = CliRunner().invoke(cli, ["check", str(standard_file), *WORDS, "--json", "-q"])
    document = json.loads(result.stdout)
    assert document["points"]["correct"].count(True) > 12
    assert document["attacks"]
    return same(document)


def gated(file: Path, folder: Path) -> dict[str, Any]:
    values = "".join(f"{key} = {json.dumps(value)}\n" for key, value in OPTIONS.items())
    (folder / "maskaudit.toml").write_text(f'[[models]]\nmodel = "{file}"\n{values}')
    (outcome,) = run_gate(read_config(folder / "maskaudit.toml")).outcomes
    assert outcome.document is not None
    return outcome.document


class Doors:
    """The ways from Python, on the file, the name, the module and a callable."""

    def __init__(self, file: Path, net: nn.Module) -> None:
        digits = load_data("digits", split="test")

        def answer(x: Tensor) -> Tensor:
            scores: Tensor = net(x)
            return scores

        self.ways: dict[str, Callable[[], Audit]] = {
            "file": lambda: api.audit(str(file), **OPTIONS),
            "name": lambda: api.audit("zoo:standard", **OPTIONS),
            "module": lambda: api.audit(net, digits, **OPTIONS),
            "module and source": lambda: api.audit(net, "digits", **OPTIONS),
            "callable": lambda: api.audit(answer, digits, **OPTIONS),
            "zoo check": lambda: audit_of_the_zoo(ZOO["standard"], SETTINGS),
            "assertion": lambda: api.assert_not_masked(str(file), **OPTIONS, fail_on="never"),
            "fixture": lambda: Auditor().audit(str(file), **OPTIONS),
        }


def test_the_gate_gives_the_report_of_check(checked: dict[str, Any], standard_file: Path, tmp_path: Path) -> None:
    assert same(gated(standard_file, tmp_path)) == checked


@pytest.mark.filterwarnings("ignore::maskaudit.errors.InconclusiveAuditWarning")
@pytest.mark.parametrize(
    "way", ["file", "name", "module", "module and source", "callable", "zoo check", "assertion", "fixture"]
)
def test_python_gives_the_report_of_check(
    way: str, checked: dict[str, Any], standard_file: Path, net: nn.Module
) -> None:
    document = same(Doors(standard_file, net).ways[way]().report.to_dict())
    if way == "assertion":
        assert document["settings"].pop("fail_on") == "never"
        document["settings"]["fail_on"] = "masked"
    if way == "callable":  # it has no layers to watch
        document, expected = ({**one, "trace": {}, "plan": {}, "figures": {}} for one in (document, checked))
        assert document == expected
    else:
        assert document == checked


def test_the_action_gives_the_report_of_check(checked: dict[str, Any], standard_file: Path, tmp_path: Path) -> None:
    """The command that the script of the action builds from a configuration, run as it runs it."""
    values = "".join(f"{key} = {json.dumps(value)}\n" for key, value in OPTIONS.items())
    (tmp_path / "maskaudit.toml").write_text(f'[[models]]\nmodel = "{standard_file}"\nname = "net"\n{values}')
    out = tmp_path / "maskaudit-report"
    result = CliRunner().invoke(cli, ["gate", f"--config={tmp_path / 'maskaudit.toml'}", f"--out={out}"])
    (written,) = out.glob("*/audit.json")
    assert same(json.loads(written.read_text())) == checked, result.output


@pytest.mark.parametrize("door", [api.audit, Auditor().audit, api.assert_not_masked])
def test_python_says_what_is_wrong_and_takes_tensors(door: Callable[..., Audit], standard_file: Path) -> None:
    for wrong, sentence in (
        ({"eps": torch.tensor([0.1, 0.2])}, "eps"),
        ({"epss": 1}, "did you mean eps"),
        ({"budget": 3}, "budget"),
    ):
        with pytest.raises(MaskauditError, match=sentence):
            door(str(standard_file), **wrong)


def test_a_tensor_may_be_the_radius(standard_file: Path) -> None:
    few = {**OPTIONS, "samples": 2, "select": ["fgsm"], "eps": torch.tensor(0.25)}
    assert api.audit(str(standard_file), **few).report.threat["eps"] == 0.25


def test_a_refuted_claim_fails_everywhere(standard_file: Path) -> None:
    refuted = {**OPTIONS, "claim": 0.99}
    result = CliRunner().invoke(cli, ["check", str(standard_file), *WORDS, "--claim", "0.99", "-q"])
    assert result.exit_code == 1, result.output
    with pytest.raises(MaskedError, match="refuted"):
        api.assert_not_masked(str(standard_file), **refuted)
    with pytest.raises(pytest.fail.Exception, match="refuted"):
        Auditor().assert_not_masked(str(standard_file), **refuted)
