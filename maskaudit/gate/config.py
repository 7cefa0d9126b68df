"""The gate's configuration: `[tool.maskaudit]` of pyproject.toml, or `maskaudit.toml` with the same keys.

    [tool.maskaudit]                 # defaults of every model
    data = "test.npz"
    eps = "8/255"

    [[tool.maskaudit.models]]
    model = "model.safetensors"
    claim = 0.53

    [[tool.maskaudit.baseline]]      # a known finding that is accepted for a while
    rule = "zero-gradient"
    reason = "quantised on purpose, see issue 12"
    expires = 2027-01-31

Everything is read and checked before anything is audited. Paths are relative to the file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskaudit.command.config_file import PYPROJECT, section
from maskaudit.declared import Anything, Checked, Day, Flag, Items, Kind, Record, Text, read
from maskaudit.declared.kinds import MAX_TEXT, shown
from maskaudit.errors import MaskauditError, UsageError
from maskaudit.gate.baselines import Baseline
from maskaudit.report.reading import Prose
from maskaudit.results import Norm
from maskaudit.settings import OPTIONS, AuditSettings, Request

CONFIG_FILE = "maskaudit.toml"

#: Most models and baselines of a configuration.
MAX_MODELS = 300
MAX_BASELINES = 10_000

_WORD = Text(shortest=1)

#: Options of an audit that may be given once for all models.
DEFAULTS: dict[str, Kind[Any]] = {key: one.kind for key, one in OPTIONS.items() if not one.one_model}

#: What a model may have: its name, and every option; `trust_pickle` executes a file's code, and so is given per model.
MODEL: dict[str, Kind[Any]] = {
    "name": Checked(Prose(MAX_TEXT), f"a text of 1 to {MAX_TEXT} characters", lambda name: bool(name.strip())),
    "model": _WORD,
    **{key: one.kind for key, one in OPTIONS.items()},
}

BASELINE: dict[str, Kind[Any]] = {
    "rule": _WORD,
    "module": _WORD,
    "op": _WORD,
    "cause": Text(2000, shortest=1),
    "model": _WORD,
    "reason": _WORD,
    "expires": Day(),
    "accept_masked": Flag(),
}

_EXAMPLE = '[[models]] with model = "model.safetensors" and claim = 0.53'


@dataclass(frozen=True)
class GateEntry:
    """One model of the configuration.

    Attributes:
        name: what it is called; folder: its sub-folder of `--out`.
        request: what is to be audited.
        options: the options as the configuration has them, by key.
    """

    name: str
    folder: str
    request: Request
    options: Mapping[str, Any]

    @property
    def fail_on(self) -> str:
        """The mildest verdict that fails the build."""
        return self.request.settings.fail_on


@dataclass(frozen=True)
class GateConfig:
    """A checked configuration; paths in it are relative to `file`'s folder."""

    file: Path
    entries: tuple[GateEntry, ...]
    baselines: tuple[Baseline, ...]


def find_config(start: Path) -> Path:
    """The nearest configuration from `start` upwards; in one folder maskaudit.toml goes before pyproject.toml.

    Raises:
        UsageError: when there is none.
        InputError: when a pyproject.toml on the way cannot be read.
    """
    for folder in (start, *start.parents):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
        project = folder / PYPROJECT
        if project.is_file() and section(project) is not None:
            return project
    raise UsageError(
        f"There is no {CONFIG_FILE} and no pyproject.toml with [tool.maskaudit] in {start} or above: "
        f"write a {CONFIG_FILE} with {_EXAMPLE}, or name a file with --config."
    )


def read_config(file: Path, *, fail_on: str | None = None) -> GateConfig:
    """Read and check a configuration.

    Args:
        file: maskaudit.toml, a pyproject.toml, or a file of any other name with the keys of either.
        fail_on: overrides the `fail_on` of every model.

    Raises:
        InputError: when the file cannot be read or is not TOML.
        UsageError: for unknown keys, values of the wrong type or out of range, or names that clash.
    """
    table = section(file)
    if table is None:
        raise UsageError(f"{file} has no section [tool.maskaudit]: add it, with [[tool.maskaudit.models]].")
    where = file.name
    lists = {
        key: read(Items(Anything(), most), table.get(key, []), f"{where}, [[{_prefix(file)}{key}]]", error=UsageError)
        for key, most in (("models", MAX_MODELS), ("baseline", MAX_BASELINES))
    }
    defaults = {key: value for key, value in table.items() if key not in lists and key != "check"}  # `check --config`
    for key in defaults:
        if key in OPTIONS and OPTIONS[key].one_model:
            raise UsageError(
                f"{key} at the top of {where} belongs to a single model: put it into [[{_prefix(file)}models]]."
            )
    common = read(Record(DEFAULTS), defaults, where, error=UsageError)
    if not lists["models"]:
        raise UsageError(f"{where} lists no models to check: add {_EXAMPLE.replace('[[', '[[' + _prefix(file))}.")
    entries = tuple(
        _entry(item, common, f"models[{number}] of {where}", fail_on, file.parent)
        for number, item in enumerate(lists["models"], start=1)
    )
    _check_names(entries, where)
    names = {entry.name for entry in entries}
    baselines = tuple(
        _baseline(item, number, f"baseline[{number}] of {where}", names)
        for number, item in enumerate(lists["baseline"], start=1)
    )
    return GateConfig(file, entries, baselines)


def check_command(entry: GateEntry) -> str:
    """The `maskaudit check` command that repeats one entry, run in the configuration's folder."""
    words = [word for key, one in OPTIONS.items() if key in entry.options for word in one.words(entry.options[key])]
    return shlex.join(["maskaudit", "check", entry.request.model, *words])


def checked_request(entry: GateEntry) -> Request:
    """What is audited for an entry, with the command that repeats it."""
    return replace(entry.request, settings=replace(entry.request.settings, command=check_command(entry)))


def _prefix(file: Path) -> str:
    return "tool.maskaudit." if file.name == PYPROJECT else ""


def _entry(item: Any, common: dict[str, Any], place: str, fail_on: str | None, folder: Path) -> GateEntry:
    own: dict[str, Any] = read(Record(MODEL, required=("model",)), item, place, error=UsageError)
    model, name = own.pop("model"), own.pop("name", "")
    options = {**common, **own} if fail_on is None else {**common, **own, "fail_on": fail_on}
    name = name or _default_name(model)
    try:
        plan = {"plan": str(folder / options["plan"])} if "plan" in options else {}
        request = Request.of(model, {**options, **plan}, where=place)
        _check_plan(request)
        _check_rules(request.settings, request.norm or "Linf")
    except MaskauditError as error:
        raise UsageError(f"In {place}: {error}") from error
    return GateEntry(name, re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model", request, options)


def _default_name(model: str) -> str:
    """`runs/net.safetensors` → `net`, `zoo:standard` → `standard`, `py:pkg.mod:make` → `make`."""
    return Path(model.rpartition(":")[2]).stem if ":" not in model else model.rpartition(":")[2]


def _check_rules(settings: AuditSettings, norm: Norm) -> None:
    """Unknown names in `select`, `ignore` and `attacks` are found before the audit starts."""
    if not (settings.select or settings.ignore or settings.attacks):
        return
    from maskaudit.attacks.second_opinion import external_attack  # these load torch
    from maskaudit.auditing.catalogue import catalogue, check_names

    extra = [external_attack(name) for name in settings.attacks]
    check_names((*settings.select, *settings.ignore), catalogue(settings.effort, norm), extra)


def _check_plan(request: Request) -> None:
    """What is wrong in a plan is found before the audit starts."""
    if isinstance(request.plan, str):
        from maskaudit.repairs.plan_file import read_plan  # loads torch

        read_plan(Path(request.plan))


def _check_names(entries: tuple[GateEntry, ...], where: str) -> None:
    """Names and folders tell models apart; summary files of the gate itself have the rest of the folder."""
    seen: dict[str, str] = {}
    for entry in entries:
        folder = entry.folder.lower()
        if folder in seen:
            raise UsageError(
                f"Two models of {where} are called {entry.name!r} and {seen[folder]!r}: give each a name of its own."
            )
        seen[folder] = entry.name


def _baseline(item: Any, number: int, place: str, names: set[str]) -> Baseline:
    given = read(Record(BASELINE, required=("rule", "reason", "expires")), item, place, error=UsageError)
    if "model" in given and given["model"] not in names:
        raise UsageError(
            f"model in {place} must be the name of a model: {', '.join(sorted(names))}; got {shown(given['model'])}."
        )
    return Baseline(number=number, **given)
