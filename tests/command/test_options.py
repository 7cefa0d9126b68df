"""One table of options: each is on the command line, in TOML, in the gate, in Python and in the documentation."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import maskaudit
from maskaudit import api
from maskaudit.cli import check, cli
from maskaudit.command.check_config import KEYS
from maskaudit.declared import Choice
from maskaudit.errors import InputError, MaskauditError, UsageError
from maskaudit.gate.config import DEFAULTS, MODEL, read_config
from maskaudit.pytest_plugin import Auditor
from maskaudit.settings import OPTIONS, AuditSettings, Request

ROOT = Path(__file__).parents[2]
PLAN = '{"plan_version": 1, "stages": [{"loss": "margin", "steps": 3}]}'

#: For each option: a value as the command line, and as TOML and Python have it.
VALUES: dict[str, tuple[list[str], Any]] = {
    "arch": (["net.py:make(width=2)"], "net.py:make(width=2)"),
    "weights": (["state_dict/ema"], "state_dict/ema"),
    "data": (["points.npz"], "points.npz"),
    "target": (["outcome"], "outcome"),
    "features": (["/features.toml"], "/features.toml"),
    "threshold": (["0.5"], 0.5),
    "output_key": (["logits"], "logits"),
    "layout": (["flat"], "flat"),
    "swap_channels": ([], True),
    "first_label": (["1"], 1),
    "black_box": ([], True),
    "queries": (["500"], 500),
    "rate": (["20"], 20),
    "norm": (["L2"], "L2"),
    "eps": (["8/255"], "8/255"),
    "bounds": (["-1,1"], [-1, 1]),
    "trust_pickle": ([], True),
    "surrogates": (["zoo:standard", "a.pt@net.py:make"], ["zoo:standard", "a.pt@net.py:make"]),
    "outputs": (["logits"], "logits"),
    "mean": (["0.5,0.25"], [0.5, 0.25]),
    "std": (["1,2"], [1, 2]),
    "reject_class": (["3"], 3),
    "device": (["cuda:1"], "cuda:1"),
    "claim": (["53/100"], 0.53),
    "certified": (["0.2"], 0.2),
    "budget": (["quick"], "quick"),
    "samples": (["40"], 40),
    "precision": (["0.03"], 0.03),
    "seed": (["7"], 7),
    "batch_size": (["9"], 9),
    "call_timeout": (["2.5"], 2.5),
    "workers": (["2"], 2),
    "ray": (["auto"], "auto"),
    "memory": (["4GB"], "4GB"),
    "select": (["square", "noise"], ["square", "noise"]),
    "ignore": (["noise"], ["noise"]),
    "attacks": (["torchattacks:PGD"], ["torchattacks:PGD"]),
    "branches": (["b1", "mixed.b5"], ["b1", "mixed.b5"]),
    "certify": ([], True),
    "stratify": ([], True),
    "plan": (["PLAN"], "PLAN"),
    "fail_on": (["suspect"], "suspect"),
}
EACH = pytest.mark.parametrize("key", OPTIONS)


class Stop(Exception):
    """Ends a command where the audit would start."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach the audit."""
    seen: list[Request] = []

    def prepare(request: Request, **_: Any) -> Any:
        seen.append(request)
        raise Stop

    monkeypatch.setattr(api, "prepare", prepare)
    return seen


def toml(key: str, value: Any) -> str:
    return f"{key} = {json.dumps(value)}\n"


@EACH
def test_every_option_is_in_every_place(key: str) -> None:
    one = OPTIONS[key]
    shown = CliRunner().invoke(cli, ["check", "--help"]).output
    assert f"{one.flag} " in shown
    assert (key in KEYS) is not one.trusts
    assert key in MODEL
    assert (key in DEFAULTS) is not one.one_model
    for function in (maskaudit.audit, maskaudit.assert_not_masked):
        assert key in inspect.signature(function).parameters
    assert f"`{one.flag}" in (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for page in ("gate.md", "python-api.md"):
        assert f"| `{key}` |" in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_check_has_no_options_of_an_audit_beside_the_table() -> None:
    elsewhere = {"model", "as_json", "outputs_to", "out", "resume", "config", "quiet"}
    assert {str(parameter.name) for parameter in check.params} - elsewhere == set(OPTIONS)


@EACH
def test_every_front_door_asks_for_the_same(key: str, tmp_path: Path, asked: list[Request]) -> None:
    words, value = VALUES[key]
    (tmp_path / "plan.json").write_text(PLAN)
    words = [word.replace("PLAN", str(tmp_path / "plan.json")) for word in words]
    value = str(tmp_path / "plan.json") if key == "plan" else value
    one = OPTIONS[key]
    arguments = [part for word in words for part in (one.flag, word)] or [one.flag]
    config = tmp_path / "maskaudit.toml"
    config.write_text(
        f'[[models]]\nmodel = "m.pt"\n{toml(key, value)}[check]\n{"" if one.trusts else toml(key, value)}'
    )

    for command in (["check", "m.pt", *arguments], ["check", "m.pt", "--config", str(config)])[: 2 - one.trusts]:
        assert isinstance(CliRunner().invoke(cli, command).exception, Stop)
    for door in (api.audit, api.assert_not_masked, Auditor().audit, Auditor().assert_not_masked):
        with pytest.raises(Stop):
            door("m.pt", **{key: value})
    (entry,) = read_config(config).entries
    requests = [*asked, entry.request]
    assert len(requests) == 7 - one.trusts
    plain = [replace(one, settings=replace(one.settings, command="")) for one in requests]
    assert all(request == plain[0] for request in plain)
    assert plain[0] != Request("m.pt")


#: For each kind of option: what none of them takes.
WRONG = ["norm", "eps", "mean", "bounds", "samples", "claim", "budget", "fail_on", "call_timeout", "seed"]


@pytest.mark.parametrize("key", WRONG)
def test_every_front_door_refuses_with_the_same_sentence(key: str, tmp_path: Path, asked: list[Request]) -> None:
    value: Any = ["x"] if key == "mean" else ["1", "0"] if key == "bounds" else "x"
    config = tmp_path / "maskaudit.toml"
    config.write_text(f'[[models]]\nmodel = "m.pt"\n{toml(key, value)}[check]\n{toml(key, value)}')
    word = ",".join(value) if isinstance(value, list) else value
    sentences = []
    for command in (["check", "m.pt", OPTIONS[key].flag, word], ["check", "m.pt", "--config", str(config)]):
        error = CliRunner().invoke(cli, command).exception
        assert isinstance(error, UsageError)
        sentences.append(str(error))
    for call in (
        lambda: api.audit("m.pt", **{key: value}),
        lambda: Auditor().assert_not_masked("m.pt", **{key: value}),
        lambda: read_config(config),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        sentences.append(str(caught.value))
    assert not asked
    assert len({sentence.partition(" must be ")[2] for sentence in sentences}) == 1, sentences
    assert all("; found " in sentence and key.replace("_", "-") in sentence.replace("_", "-") for sentence in sentences)


def test_arrays_count_as_numbers(asked: list[Request]) -> None:
    for eps in (torch.tensor(0.25), np.float32(0.25), 0.25, "1/4"):
        with pytest.raises(Stop):
            api.audit("m.pt", eps=eps, mean=np.array([0.5, 0.5]), samples=np.int64(3))
        assert (asked[-1].eps, asked[-1].settings.mean, asked[-1].settings.samples) == (0.25, (0.5, 0.5), 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: api.audit("m.pt", budgt="quick"), "budgt is not a known field (did you mean budget?)"),
        (lambda: api.audit("m.pt", eps=torch.ones(2)), "eps must be a number above 0"),
        (lambda: api.audit("m.pt", eps=object()), "found a object"),
        (lambda: api.audit("m.pt", seed=True), "seed must be a whole number"),
        (lambda: api.audit("m.pt", plan=3), "plan must be a text"),
        (lambda: api.audit(3), "a module, a callable or a source; found a int"),
        (lambda: api.audit(torch.nn.Flatten(), 3), "a pair of inputs and labels; found a int"),
        (lambda: api.audit(torch.nn.Flatten(), (torch.rand(2, 3), "ab")), "must be tensors or arrays"),
        (lambda: AuditSettings(workers=2, ray="auto"), "not both"),
        (lambda: AuditSettings(budget="huge"), "one of quick, standard, thorough"),  # type: ignore[arg-type]
    ],
)
def test_what_python_is_told(call: Any, says: str) -> None:
    with pytest.raises((UsageError, InputError)) as caught:
        call()
    assert says in str(caught.value)
    assert isinstance(caught.value, MaskauditError)
    assert "\n" not in str(caught.value)


def test_choices_are_shown_on_the_command_line() -> None:
    for key, one in OPTIONS.items():
        if isinstance(one.kind, Choice):
            (parameter,) = (p for p in check.params if p.name == key)
            assert isinstance(parameter, click.Option)
            assert parameter.metavar == f"[{'|'.join(one.kind.choices)}]"
