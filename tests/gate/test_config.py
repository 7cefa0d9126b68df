"""The configuration: where it is found, what it may say, and one sentence for everything else."""

from __future__ import annotations

import shlex
from datetime import date
from pathlib import Path

import pytest

from maskaudit.cli import check
from maskaudit.errors import InputError, MaskauditError, UsageError
from maskaudit.gate.config import check_command, find_config, read_config

from .stub import write_config

FULL = """
data = "test.npz"
eps = "8/255"
seed = 3

[[models]]
name = "ours"
model = "net.pt"
arch = "net.py:make(width=2)"
norm = "L2"
eps = 0.5
bounds = [-1, 1]
mean = [0.5]
std = [0.25]
claim = "53/100"
budget = "quick"
samples = 40
surrogates = ["other.pt@net.py:make"]
ignore = ["square"]
attacks = ["torchattacks:FGSM"]
fail_on = "suspect"
trust_pickle = true

[[models]]
model = "zoo:standard"

[[baseline]]
rule = "zero-gradient"
module = "quant"
op = "round"
cause = "hard"
model = "ours"
reason = "see issue 12"
expires = 2027-01-31
"""


def test_every_key_arrives(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, extra=FULL))
    ours, second = config.entries
    request, settings = ours.request, ours.request.settings
    assert (ours.name, ours.folder, ours.fail_on) == ("ours", "ours", "suspect")
    assert (request.model, request.arch, request.data) == ("net.pt", "net.py:make(width=2)", "test.npz")
    assert (request.norm, request.eps, request.bounds) == ("L2", 0.5, (-1.0, 1.0))
    assert (request.trust_pickle, request.surrogates) == (True, ("other.pt@net.py:make",))
    assert (settings.mean, settings.std, settings.claim) == ((0.5,), (0.25,), 0.53)
    assert (settings.budget, settings.samples, settings.seed) == ("quick", 40, 3)
    assert (settings.ignore, settings.attacks) == (("square",), ("torchattacks:FGSM",))
    assert second.name == "standard"
    assert second.request.eps == pytest.approx(8 / 255)
    assert second.request.trust_pickle is False
    (baseline,) = config.baselines
    assert (baseline.rule, baseline.module, baseline.expires) == ("zero-gradient", "quant", date(2027, 1, 31))


def test_an_entry_can_be_repeated_with_check(tmp_path: Path) -> None:
    for entry in read_config(write_config(tmp_path, extra=FULL)).entries:
        words = shlex.split(check_command(entry))
        context = check.make_context("check", words[2:])
        assert context.params["model"] == entry.request.model
        assert context.params["eps"] == pytest.approx(entry.request.eps)
        assert context.params["bounds"] == entry.request.bounds
        assert context.params["trust_pickle"] is entry.request.trust_pickle
        assert context.params["claim"] == entry.request.settings.claim
        assert context.params["seed"] == 3


def test_the_nearest_file_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    outer = write_config(tmp_path, "zoo:standard", name="pyproject.toml")
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.ruff]\n")
    assert find_config(inner) == outer
    near = write_config(tmp_path / "a", "zoo:standard")
    assert find_config(inner) == near
    assert read_config(outer).entries[0].request.model == "zoo:standard"


def test_fail_on_of_the_command_line_wins(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, extra=FULL), fail_on="never")
    assert {entry.fail_on for entry in config.entries} == {"never"}


BASE = '[[baseline]]\nrule = "x"\nreason = "y"\nexpires = 2027-01-31\n'

WRONG = [
    ("", "lists no models"),
    ("models = 3", "must be a list of 0 to 300 entries"),
    ('epsilon = 0.1\n[[models]]\nmodel = "m"', "did you mean eps"),
    (
        '[[models]]\nmodel = "m"\nmodle = "m"',
        "models[1] of maskaudit.toml: modle is not a known field (did you",
    ),
    ("[[models]]\nclaim = 0.5", "models[1] of maskaudit.toml: model is missing"),
    ("[[models]]\nmodel = 3", "model must be a text of 1 to 1000 characters without control characters; found 3"),
    ('[[models]]\nmodel = ""', "must be a text"),
    ('[[models]]\nmodel = "m"\neps = true', "8/255"),
    ('[[models]]\nmodel = "m"\neps = "8/0"', "8/255"),
    ('[[models]]\nmodel = "m"\neps = 0', "eps must be a number above 0"),
    ('[[models]]\nmodel = "m"\neps = nan', "not finite"),
    ('[[models]]\nmodel = "m"\nclaim = 53', "claim must be a number from 0 to 1"),
    ('[[models]]\nmodel = "m"\nbounds = [1, 0]', "smallest first"),
    ('[[models]]\nmodel = "m"\nmean = 0.5', "mean must be a list"),
    ('[[models]]\nmodel = "m"\nbudget = "huge"', "one of quick, standard, thorough"),
    ('[[models]]\nmodel = "m"\nsamples = 0', "models[1] of maskaudit.toml: samples must be a whole number from 1"),
    ('[[models]]\nmodel = "m"\nsamples = 2.5', "whole number"),
    ('[[models]]\nmodel = "m"\nnorm = "L7"', "one of Linf, L2"),
    ('[[models]]\nmodel = "m"\nfail_on = "always"', "one of masked"),
    ('[[models]]\nmodel = "m"\nignore = ["nonsense"]', "nonsense"),
    ('[[models]]\nmodel = "m"\nattacks = ["nonsense"]', "torchattacks:"),
    ('[[models]]\nmodel = "m"\nsurrogates = [3]', "surrogates[0] must be a text"),
    ('[[models]]\nmodel = "m"\ntrust_pickle = "yes"', "true or false"),
    ('trust_pickle = true\n[[models]]\nmodel = "m"', "belongs to a single model"),
    ('claim = 0.5\n[[models]]\nmodel = "m"', "belongs to a single model"),
    ('[[models]]\nmodel = "m"\n[[models]]\nmodel = "a/m"', "a name of its own"),
    ('[[models]]\nmodel = "m"\n[[baseline]]\nrule = "x"\nexpires = 2027-01-31', "reason is missing"),
    ('[[models]]\nmodel = "m"\n[[baseline]]\nrule = "x"\nreason = "y"', "expires is missing"),
    ('[[models]]\nmodel = "m"\n' + BASE.replace("2027-01-31", '"soon"'), "date such as"),
    ('[[models]]\nmodel = "m"\n' + BASE + "line = 14", "line is not a known field"),
    ('[[models]]\nmodel = "m"\n' + BASE + 'model = "other"', "name of a model: m"),
    ("[[models", "not valid TOML"),
]


@pytest.mark.parametrize(("content", "says"), WRONG)
def test_what_is_wrong_is_one_sentence(content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(MaskauditError) as caught:
        read_config(write_config(tmp_path, extra=content))
    assert says in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(UsageError, match=r"\[tool.maskaudit\]"):
        read_config(tmp_path / "pyproject.toml")
    with pytest.raises(UsageError, match="--config"):
        find_config(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid TOML"):
        read_config(tmp_path / "binary.toml")
