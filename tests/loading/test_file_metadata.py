"""Whatever a model file says of itself is of the declared kind and range, or the file is refused in one sentence.

The table of fields is read from the declaration: a new field is tried with every hostile value without a further edit.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import maskaudit
from maskaudit import api
from maskaudit.cli import cli
from maskaudit.data import NAMED
from maskaudit.declared import (
    Anything,
    Checked,
    Choice,
    Flag,
    Items,
    Kind,
    Number,
    Optional,
    Record,
    Table,
    Text,
    Whole,
    walk,
)
from maskaudit.errors import InputError, UsageError
from maskaudit.loading import file_metadata, read_metadata, save_checkpoint
from maskaudit.networks.registry import build
from maskaudit.settings import AuditSettings
from maskaudit.sources import load_model

ARCH = "mlp(in_features=64, hidden=(3,))"
GOOD: dict[str, Any] = {
    "arch": ARCH,
    "data": "digits",
    "threat": {"norm": "Linf", "eps": 0.25, "bounds": [0, 1]},
    "outputs": "logits",
    "mean": [0.5],
    "std": [0.25],
    "certified": 0.125,
    "method": "standard",
    "training": {"alpha": 0.01},
}

#: JSON as it may be in a file: numbers that no float or int holds, texts that act elsewhere, deep and long values.
HOSTILE = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "one": "1",
    "minus one": "-1",
    "seven": "7",
    "half": "1.5",
    "number as text": '"0.9"',
    "tiny": "1e-320",
    "large": "1e300",
    "beyond float": "1e999",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "beyond int64": "18446744073709551616",
    "5000 digits": "1" * 5000,
    "4000 decimals": "0." + "1" * 4000,
    "empty text": '""',
    "code": "\"py:os:system(command='touch OWNED')\"",
    "subprocess": "\"py:subprocess:run(args=['touch', 'OWNED'], shell=False)\"",
    "hub": '"hf:someone/something"',
    "torchvision": '"torchvision:CIFAR10"',
    "path": '"/etc/passwd"',
    "file": "\"evil.py:make(command='touch OWNED')\"",
    "markup": '"<script>alert(1)</script>"',
    "control": '"\\u001b[2J\\u0007"',
    "newline": '"a\\nb"',
    "NUL": '"digits\\u0000"',
    "bidi": '"\\u202edigits"',
    "surrogate": '"\\ud800"',
    "long text": '"' + "x" * 300_000 + '"',
    "empty list": "[]",
    "list": "[1]",
    "falling pair": "[1, 0]",
    "equal pair": "[0, 0]",
    "texts": '["0", "1"]',
    "pair of lists": "[[0], [1]]",
    "three numbers": "[0, 0.5, 1]",
    "huge pair": "[-1e308, 1e308]",
    "long list": "[" + "1," * 200_000 + "1]",
    "deep": "[" * 900 + "]" * 900,
    "very deep": "[" * 100_000,
    "object": "{}",
    "object of objects": '{"norm": {"eps": {}}}',
    "named twice": '{"eps": 1, "eps": 2}',
    "prototype": '{"__class__": "os.system"}',
    "wide architecture": '"mlp(hidden=' + repr([1] * 200_000).replace(" ", "") + ')"',
    "deep architecture": '"mlp(hidden=' + repr([1] * 500).replace(" ", "") + ')"',
    "huge architecture": '"mlp(in_features=64, hidden=(999999, 999999, 999999))"',
    "absurd architecture": '"mlp(hidden=(99999999999999999999,))"',
    "nested call": '"' + "small_cnn(" * 150 + '"',
    "brackets": '"mlp(hidden=' + "(" * 1900 + '"',
    "dotted": '"' + "a." * 900 + 'a"',
    "many members": '"small_cnn(members=1000000)"',
    "many blocks": '"small_resnet(blocks=65)"',
    "huge images": '"small_cnn(size=(1000000, 1000000))"',
}


def write(path: Path, declared: str, arch: str = ARCH) -> str:
    """A network with the given JSON as what its file says of itself."""
    safetensors.torch.save_file(build(arch).state_dict(), path, metadata={"maskaudit": declared})
    return str(path)


def with_field(path: tuple[str | int, ...], value: str) -> str:
    """What a good file says, with one field as raw JSON."""
    declared = json.loads(json.dumps(GOOD))
    place = declared
    for step in path[:-1]:
        place = place.setdefault(step, {}) if isinstance(step, str) else place[step]
    place[path[-1]] = "VALUE"
    return json.dumps(declared).replace('"VALUE"', value)


def fits(kind: Kind[Any], value: Any) -> bool:
    """Whether a value is of its declared kind, judged by the parts of the declaration and not by its reader."""
    match kind:
        case Optional() | Checked():
            return fits(kind.of, value)
        case Whole():
            return type(value) is int and kind.low <= value <= kind.high
        case Number():
            return type(value) is float and kind.low <= value <= kind.high and math.isfinite(value)
        case Choice():
            return value in kind.choices
        case Flag():
            return type(value) is bool
        case Text():
            return type(value) is str and len(value) <= kind.longest and value.isprintable()
        case Items():
            return kind.least <= len(value) <= kind.most and all(fits(kind.of, item) for item in value)
        case Table():
            return len(value) <= kind.most
        case Record():
            return all(fits(kind.fields[name], item) for name, item in value.items())
        case Anything():
            return True
    raise AssertionError(f"Say here what {type(kind).__name__} promises.")


def _name(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


FIELDS = [path for path, _ in walk(file_metadata.declaration()) if path]


def test_the_declaration_holds_the_fields_that_reports_and_audits_use() -> None:
    names = {_name(path) for path in FIELDS}
    assert {"arch", "data", "threat.norm", "threat.eps", "threat.bounds", "mean", "std", "outputs"} <= names
    assert {"reject_class", "certified"} <= names


@pytest.mark.parametrize("path", FIELDS, ids=map(_name, FIELDS))
@pytest.mark.filterwarnings("error")
def test_hostile_values_are_refused_in_one_sentence_or_are_what_is_declared(
    path: tuple[str | int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('OWNED', 'w')\ndef make(command): ...\n")
    for name, value in HOSTILE.items():
        file = write(tmp_path / "m.safetensors", with_field(path, value))
        try:
            declared = load_model(file).metadata
        except InputError as error:
            text = str(error)
            assert text.startswith(("The metadata of ", file)), (name, text)
            assert text.isprintable(), (name, text)
            assert len(text) < 900, (name, text)
        else:
            assert fits(file_metadata.declaration(), declared), (name, declared)
    assert not os.path.exists("OWNED")


REFUSED = [
    ("data", "code"), ("data", "subprocess"), ("data", "hub"), ("data", "torchvision"), ("data", "path"),
    ("data", "file"), ("arch", "code"), ("arch", "file"), ("arch", "wide architecture"), ("arch", "deep architecture"),
    ("arch", "huge architecture"), ("arch", "many members"), ("certified", "seven"), ("certified", "minus one"),
    ("certified", "number as text"), ("certified", "list"), ("outputs", "markup"), ("reject_class", "half"),
    ("threat.bounds", "falling pair"), ("threat.bounds", "three numbers"), ("threat.bounds", "texts"),
    ("threat.eps", "number as text"), ("threat.eps", "beyond float"), ("threat.eps", "tiny"), ("threat.norm", "seven"),
    ("mean", "empty list"), ("std", "zero"), ("std", "long list"), ("method", "control"), ("threat", "list"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_what_could_act_is_refused(field: str, value: str, tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", with_field(tuple(field.split(".")), HOSTILE[value]))
    with pytest.raises(InputError, match=r"m\.safetensors"):
        load_model(file)


@pytest.mark.parametrize("declared", ["[]", "3", '"text"', "{", "", '{"data": "digits", "data": "digits"}', "\\ud800"])
def test_what_is_no_object_is_refused(declared: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^The metadata of .*m\.safetensors"):
        load_model(write(tmp_path / "m.safetensors", declared))


def test_every_command_refuses_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "m.safetensors", with_field(("data",), HOSTILE["code"]))
    good = write(tmp_path / "good.safetensors", json.dumps({"arch": ARCH, "data": "digits"}))
    (tmp_path / "maskaudit.toml").write_text(
        f'[tool.maskaudit]\nbudget = "quick"\n[[tool.maskaudit.models]]\nmodel = "{file}"\n'
    )
    for arguments in (["check", file], ["inspect", file], ["check", good, "--surrogate", file], ["gate"]):
        done = CliRunner().invoke(cli, arguments)
        declared = done.output + str(done.exception or "")
        assert getattr(done.exception, "exit_code", done.exit_code) == 2, (arguments, declared)
        assert "data must be one of digits, fashion-mnist, cifar-10, svhn" in declared, arguments
    with pytest.raises(InputError, match="data must be one of"):
        maskaudit.audit(file)
    assert not os.path.exists("OWNED")


def test_the_built_in_data_sets_are_those_that_a_file_may_name() -> None:
    kind = file_metadata.declaration().fields["data"]
    assert isinstance(kind, Optional)
    assert isinstance(kind.of, Choice)
    assert kind.of.choices == tuple(NAMED)


def test_every_value_that_is_taken_from_the_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", json.dumps(GOOD | {"reject_class": 9}))
    prepared = api.prepare(api.Request(file))
    settings, threat = prepared.settings, prepared.threat
    assert (threat.norm, threat.eps, threat.bounds, prepared.data.name) == ("Linf", 0.25, (0.0, 1.0), "digits")
    assert (settings.mean, settings.std, settings.certified, settings.reject_class) == ((0.5,), (0.25,), 0.125, 9)
    named = {name.removesuffix(" (from the model file)") for name in settings.defaults if "model file" in name}
    taken = {"data", "norm", "eps", "bounds", "outputs", "mean", "std", "reject_class", "certified", "arch"}
    assert named == taken
    (note,) = (note for note in prepared.loaded.notes if note.startswith(f"Taken from {file}"))
    assert all(re.search(rf"\b{name} ", note) for name in taken), note
    assert "std [0.25]" in note


def test_what_the_user_says_is_not_called_a_claim_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", json.dumps({"arch": ARCH, "certified": 0.5, "threat": {"eps": 0.5}}))
    settings = AuditSettings(certified=0.25)
    prepared = api.prepare(api.Request(file, arch=ARCH, data="digits", norm="L2", bounds=(0.0, 1.0), settings=settings))
    assert (prepared.settings.certified, prepared.settings.defaults) == (0.25, ("eps",))
    assert not any("Taken from" in note for note in prepared.loaded.notes)


def test_what_a_file_says_of_its_outputs_is_held_against_them(tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", json.dumps({"arch": ARCH, "outputs": "probabilities"}))
    with pytest.raises(InputError, match="returns probabilities, but its answers are logits"):
        api.prepare(api.Request(file))
    api.prepare(api.Request(file, settings=AuditSettings(outputs="logits")))


def test_python_takes_from_the_file_what_check_takes(tmp_path: Path) -> None:
    declared = {"arch": ARCH, "threat": {"norm": "L2", "eps": 0.75, "bounds": [-1, 1]}, "mean": [0.125]}
    file = write(tmp_path / "m.safetensors", json.dumps(declared))
    report = maskaudit.audit(file, settings=AuditSettings(budget="quick", samples=8, select=("noise",))).report
    assert report.threat == {"norm": "L2", "eps": 0.75, "bounds": [-1.0, 1.0]}
    assert report.settings["mean"] == [0.125]


def test_a_checkpoint_that_would_be_refused_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data must be one of digits"):
        save_checkpoint(tmp_path / "m", torch.nn.Linear(2, 2), {"data": "mine.npz"})
    assert not list(tmp_path.iterdir())


def test_fields_that_are_not_declared_are_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", json.dumps({"arch": ARCH, "surrogates": ["py:os:system"], "seed": None}))
    assert read_metadata(file) == {"arch": ARCH}
