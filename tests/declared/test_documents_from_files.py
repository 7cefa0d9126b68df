"""What files say, field by field: every declared field of every document against hostile values.

A value that its declaration refuses makes one sentence that names the field; one that it takes makes no other error.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load
from torch import Tensor

from maskaudit.auditing import evidence_file as evidence
from maskaudit.command import config_file, verify
from maskaudit.command.check_config import KEYS, read_check_options
from maskaudit.command.compare import compare_files, text
from maskaudit.declared import (
    Checked,
    Choice,
    Day,
    Either,
    Flag,
    Items,
    Kind,
    Number,
    Optional,
    Record,
    Refused,
    Table,
    Whole,
    kinds,
    parsing,
)
from maskaudit.errors import InputError, MaskauditError
from maskaudit.gate import config
from maskaudit.repairs import plan_file
from maskaudit.report import FORMATS, reading, render
from maskaudit.results import EVIDENCE_FILE
from maskaudit.settings.kinds import MAX_LIST

from ..auditing.test_evidence import SHA, audit, network

#: Values that no field expects all of, besides those that lie just outside each kind (see `outside`).
HOSTILE: list[Any] = [None, True, 10**40, 0.5, "", "\x1b[2J\u202e", [], [None], {}, {"a": [[]]}]
#: Text that is no value of JSON that we take; `?` stands for the field.
LEXICAL = {
    "infinite": "1e999", "digits": "9" * 4000, "constant": "NaN", "half a pair": '"\\ud800"', "NUL": '"\\u0000"',
    "nested": "[" * 900 + "]" * 900, "names twice": '{"a": 1, "a": 2}', "never closed": "[" * 100_000,
}  # fmt: skip
Path_ = tuple[str | int, ...]
Field = tuple[Path_, Kind[Any]]


def sound(kind: Kind[Any], number: int = 0) -> Any:
    """A value that a declaration takes, with every field and one member in each list."""
    if isinstance(kind, Record):
        return {name: sound(inner) for name, inner in kind.fields.items()}
    if isinstance(kind, Checked):
        return next(value for value in (sound(kind.of), "quick") if kind.holds(value))
    if isinstance(kind, (Optional, Either)):
        return sound(kind.of if isinstance(kind, Optional) else kind.first)
    if isinstance(kind, Items):
        return [sound(kind.of, n) for n in range(max(1, kind.least))]
    if isinstance(kind, Table):
        return {"name": sound(kind.of)}
    if isinstance(kind, Whole):
        return max(kind.low, 0) + number
    if isinstance(kind, Number):
        return min(kind.high, max(kind.low, 0) + 1 + number)
    if isinstance(kind, Choice):
        return kind.choices[0]
    return True if isinstance(kind, Flag) else date(2030, 1, 31) if isinstance(kind, Day) else "x"


def fields(kind: Kind[Any], path: Path_ = (), known: set[tuple[str, ...]] | None = None) -> Iterator[Field]:
    """Every kind of a declaration with its place in the value that `sound` makes; records that recur, once."""
    known = set() if known is None else known
    if path:
        yield path, kind
    if isinstance(kind, Record) and tuple(kind.fields) not in known:
        known.add(tuple(kind.fields))
        for name, inner in kind.fields.items():
            yield from fields(inner, (*path, name), known)
    elif isinstance(kind, (Optional, Checked)):
        yield from list(fields(kind.of, path, known))[1 if path else 0 :]
    elif isinstance(kind, (Items, Table)):
        yield from fields(kind.of, (*path, 0 if isinstance(kind, Items) else "name"), known)


def outside(kind: Kind[Any]) -> list[Any]:
    """Values one step beyond what a kind takes."""
    while isinstance(kind, (Optional, Checked)):
        kind = kind.of
    if isinstance(kind, (Number, Whole)):
        return [kind.low - 1, kind.high + 1] if kind.high < 1e300 else []
    if isinstance(kind, Items):
        return [[sound(kind.of)] * (kind.most + 1)] if kind.most <= 1000 else []
    return ["x" * (kind.longest + 1)] if hasattr(kind, "longest") else ["other"]


def edited(document: Any, path: Path_, value: Any) -> Any:
    """The document with another value at one place; the rest is shared."""
    if not path:
        return value
    result = copy.copy(document)
    inner = document[path[0]] if len(path) > 1 else None
    result[path[0]] = edited(inner, path[1:], value)
    return result


def toml(value: Any) -> str:
    """A value as TOML writes it: as JSON does, but for objects and dates."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "nothing" if value is None else str(value) if isinstance(value, date) else json.dumps(value)


Reader = Callable[[Path, str], None]


def read_a_report(folder: Path, content: str) -> None:
    render(reading.parse_report(content, str(folder / "audit.json")), "text")


@functools.cache
def proof() -> dict[str, Tensor]:
    """The tensors of an audit's evidence."""
    return load(audit().evidence)


def read_the_evidence(folder: Path, content: str) -> None:
    (folder / EVIDENCE_FILE).write_bytes(evidence.save_tensors(proof(), {"maskaudit_evidence": content}))
    verify.verify_files(folder / EVIDENCE_FILE, "model")


def read_a_plan(folder: Path, content: str) -> None:
    (folder / "plan.json").write_text(content)
    plan_file.read_plan(folder / "plan.json")


def read_a_configuration(folder: Path, content: str) -> None:
    (folder / "maskaudit.toml").write_text(content)
    config.read_config(folder / "maskaudit.toml")


def read_options(folder: Path, content: str) -> None:
    (folder / "maskaudit.toml").write_text(content)
    read_check_options(folder / "maskaudit.toml")


def gate(table: str) -> Callable[[Any], str]:
    """How a table of the gate's configuration is written; the other one is sound."""

    def write(document: Any) -> str:
        tables = {"models": {"model": "zoo:standard"}, table: document}
        return "".join(
            f"[[{name}]]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in t.items()) for name, t in tables.items()
        )

    return write


def section(document: Any) -> str:
    return "[check]\n" + "".join(f"{name} = {toml(value)}\n" for name, value in document.items())


_NAMES = {"select": ["square"], "ignore": ["noise"], "attacks": ["torchattacks:PGD"]}
_MODEL, _BASELINE, _KEYS = Record(config.MODEL), Record(config.BASELINE), Record(KEYS)
#: Without the cluster, which excludes workers, and the plan, which is a file.
_MODEL_DOCUMENT = {key: value for key, value in {**sound(_MODEL), **_NAMES}.items() if key not in ("ray", "plan")}
_SCORING: dict[str, Any] = {**sound(evidence.SCORING), "sha256": SHA, "attacks": ["a"] * 5, "reject_class": None}
_SCORING |= {"mean": [0.0, 0.0], "std": [1.0, 1.0], "threat": {"norm": "Linf", "eps": 0.1, "bounds": [0.0, 1.0]}}

#: Declaration, a sound document, how it is written, and how it is read.
DOCUMENTS: dict[str, tuple[Kind[Any], Any, Callable[[Any], str], Reader]] = {
    "report": (reading.REPORT, sound(reading.REPORT), json.dumps, read_a_report),
    "evidence": (evidence.SCORING, _SCORING, json.dumps, read_the_evidence),
    "plan": (plan_file.PLAN, sound(plan_file.PLAN), json.dumps, read_a_plan),
    "gate's model": (_MODEL, _MODEL_DOCUMENT, gate("models"), read_a_configuration),
    "gate's baseline": (_BASELINE, {**sound(_BASELINE), "model": "standard"}, gate("baseline"), read_a_configuration),
    "check options": (_KEYS, {**sound(_KEYS), **_NAMES}, section, read_options),
}
EACH = pytest.mark.parametrize("name", DOCUMENTS)


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "load_model", lambda *_, **__: SimpleNamespace(module=network(), sha256=SHA))


def one_sentence(error: MaskauditError) -> str:
    sentence = str(error)
    assert error.exit_code == 2
    assert sentence.isprintable()
    assert len(sentence) < 1500
    return sentence


@EACH
def test_the_sound_document_is_read(name: str, tmp_path: Path) -> None:
    _, document, write, reader = DOCUMENTS[name]
    reader(tmp_path, write(document))


def test_whatever_the_declaration_takes_renders_and_compares(tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(DOCUMENTS["report"][1]))
    for form in FORMATS:
        assert render(reading.read_report(file), form)
    assert text(compare_files(file, file))


@EACH
def test_every_field_refuses_what_it_does_not_expect(name: str, tmp_path: Path) -> None:
    kind, document, write, reader = DOCUMENTS[name]
    refused = 0
    for path, field in fields(kind):
        if path[:2] == ("threat", "features") and len(path) > 2:
            continue  # a table of its own, which the tests of features walk
        for value in (*HOSTILE, *outside(field)):
            try:
                field.read(value)
                taken = True
            except Refused:
                taken = False
            try:
                reader(tmp_path, write(edited(document, path, value)))
                assert taken, (path, value)
            except MaskauditError as error:
                shown = one_sentence(error)
                step = next(step for step in reversed(path) if isinstance(step, str))
                assert taken or step in shown.replace("schema version", "schema_version") or "not valid" in shown, (
                    path,
                    value,
                )
                refused += not taken
    assert refused > 5 * sum(1 for _ in fields(kind)), "most values are none that a field expects"


@EACH
@pytest.mark.parametrize("lexical", LEXICAL.values(), ids=LEXICAL)
def test_numbers_texts_and_depths_that_no_document_holds(name: str, lexical: str, tmp_path: Path) -> None:
    _, document, write, reader = DOCUMENTS[name]
    content = write(edited(document, (next(reversed(document)),), "HERE")).replace('"HERE"', lexical)
    with pytest.raises(InputError) as caught:
        reader(tmp_path, content)
    one_sentence(caught.value)


@EACH
def test_unknown_names_do_nothing_or_are_refused(name: str, tmp_path: Path) -> None:
    kind, document, write, reader = DOCUMENTS[name]
    assert isinstance(kind, Record)
    content = write({**document, "new": 1})
    if kind.ignore_unknown:
        reader(tmp_path, content)
    else:
        with pytest.raises(MaskauditError, match="new is not a known field"):
            reader(tmp_path, content)


# --- limits as formats.md states them ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "most", "reader"),
    [
        ("audit.json", reading.MAX_BYTES, lambda path: compare_files(path, path)),
        ("plan.json", plan_file.MAX_BYTES, plan_file.read_plan),
        ("maskaudit.toml", config_file.MAX_BYTES, config.read_config),
        ("evidence.safetensors", evidence.MAX_BYTES, lambda path: verify.verify_files(path, "model")),
    ],
)
def test_a_file_beyond_the_limit_is_not_read(
    file: str, most: int, reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / file
    with path.open("wb") as stream:
        stream.truncate(most + 1)  # takes no room on the disk
    with pytest.raises(InputError, match=rf"{file} is larger than {most >> 20} MiB"):
        reader(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("attacks",), [{}] * (reading.MAX_TABLE + 1)),
        (("probes",), [{}] * (reading.MAX_TABLE + 1)),
        (("probes",), [{"findings": [{}] * 1000}] * 11),
        (("points",), {"index": [1] * (reading.MAX_POINTS + 1)}),
        (("points", "label"), [1, 2]),
        (("settings", "new"), [0] * reading.MAX_FREE),
        (("probes", 0, "details"), {"a": [0] * reading.MAX_FREE}),
        (("notes",), ["x"] * (reading.MAX_ROWS + 1)),
        (("notes", 0), "x" * (reading.MAX_PROSE + 1)),
    ],
)
def test_a_report_beyond_the_limits_is_refused(path: Path_, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at most|of one length|a list of 0 to") as caught:
        read_a_report(tmp_path, json.dumps(edited(DOCUMENTS["report"][1], path, value)))
    one_sentence(caught.value)


def test_evidence_with_a_header_beyond_the_limit_is_refused() -> None:
    header = json.dumps({"__metadata__": {"maskaudit_evidence": " " * evidence.MAX_HEADER}}).encode()
    with pytest.raises(InputError, match="is damaged"):
        evidence.read_evidence(len(header).to_bytes(8, "little") + header, "evidence.safetensors")


def test_a_refusal_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output 2 means a refusal, but the model has 2 outputs"):
        read_the_evidence(tmp_path, json.dumps({**_SCORING, "reject_class": 2}))


@pytest.mark.parametrize(("table", "most"), [("models", config.MAX_MODELS), ("baseline", config.MAX_BASELINES)])
def test_a_configuration_of_too_many_tables_is_refused(table: str, most: int, tmp_path: Path) -> None:
    content = f"[[{table}]]\n" * (most + 1)
    with pytest.raises(MaskauditError, match=f"must be a list of 0 to {most} entries"):
        read_a_configuration(tmp_path, content if table == "models" else '[[models]]\nmodel = "m"\n' + content)


def test_the_limits_are_those_that_the_documentation_states() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    limits = page.partition("## Limits")[2]
    for row in (
        f"nesting | {parsing.MAX_DEPTH} |",
        f"values | {parsing.MAX_VALUES:,}, checked",
        f"of a name | {kinds.MAX_NUMBER}, {kinds.MAX_TEXT:,} characters |",
        f"`audit.json` | size | {reading.MAX_BYTES >> 20} MiB |",
        f"curve | {reading.MAX_POINTS:,} |",
        f"probes | {reading.MAX_TABLE} each |",
        f"findings of all probes | {reading.MAX_ALL_FINDINGS:,} |",
        f"other list | {reading.MAX_ROWS:,}; layers of the gradient flow {10 * reading.MAX_ROWS:,} |",
        f"base64 | {reading.MAX_PROSE:,}; {reading.MAX_PIXELS >> 20} Mi characters |",
        f"not declared | {reading.MAX_FREE:,} per object |",
        f"held in memory | {evidence.MAX_BYTES >> 30} GiB |",
        f"header with metadata | {evidence.MAX_HEADER >> 20} MiB |",
        f"dimensions of an input | {evidence.MAX_DIMENSIONS} |",
        f"names of attacks | {evidence.MAX_ATTACKS:,} |",
        f"`plan.json` | size | {plan_file.MAX_BYTES >> 20} MiB |",
        f"in all | {plan_file.MAX_STAGES}; {plan_file.MAX_REPAIRS}; {plan_file.MAX_PLACES} |",
        f"steps of a stage | {plan_file.MAX_STEPS:,} |",
        f"draws | {plan_file.MAX_COST:,} |",
        f"(TOML) | size | {config_file.MAX_BYTES >> 20} MiB |",
        f"baselines | {config.MAX_MODELS:,}; {config.MAX_BASELINES:,} |",
        f"other list | {MAX_LIST:,} |",
    ):
        assert row in limits, row
