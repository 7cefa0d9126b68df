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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskaudit.api import Request
from maskaudit.attacks.second_opinion import external_attack
from maskaudit.auditing.catalogue import catalogue, check_names
from maskaudit.command.keys import DEFAULTS, PYPROJECT, SHARE, WORD, section
from maskaudit.declared import Anything, Checked, Day, Flag, Items, Kind, Record, Text, read
from maskaudit.declared.kinds import MAX_TEXT, shown
from maskaudit.errors import MaskauditError, UsageError
from maskaudit.gate.baselines import Baseline
from maskaudit.report.reading import Prose
from maskaudit.settings import AuditSettings
from maskaudit.threat import ThreatModel

CONFIG_FILE = "maskaudit.toml"

#: Most models and baselines of a configuration.
MAX_MODELS = 300
MAX_BASELINES = 10_000
#: What belongs to one model only; `trust_pickle` executes a file's code and is therefore said per model.
MODEL: dict[str, Kind[Any]] = {
    "name": Checked(Prose(MAX_TEXT), f"a text of 1 to {MAX_TEXT} characters", lambda name: bool(name.strip())),
    "model": WORD,
    "claim": SHARE,
    "certified": SHARE,
    "trust_pickle": Flag(),
    **DEFAULTS,
}

BASELINE: dict[str, Kind[Any]] = {
    "rule": WORD,
    "module": WORD,
    "op": WORD,
    "cause": Text(2000, shortest=1),
    "model": WORD,
    "reason": WORD,
    "expires": Day(),
    "accept_masked": Flag(),
}

#: Keys of a model that go into `AuditSettings` under the same name.
_SETTINGS = (
    "budget", "samples", "seed", "claim", "certified", "outputs", "mean", "std", "reject_class", "device", "batch_size",
    "call_timeout", "select", "ignore", "fail_on",
)  # fmt: skip

_EXAMPLE = '[[models]] with model = "model.safetensors" and claim = 0.53'


@dataclass(frozen=True)
class Entry:
    """One model of the configuration: its name, its sub-folder of `--out`, and what is to be audited."""

    name: str
    folder: str
    request: Request

    @property
    def fail_on(self) -> str:
        """What fails the build."""
        return self.request.settings.fail_on


@dataclass(frozen=True)
class GateConfig:
    """A checked configuration; paths in it are relative to `file`'s folder."""

    file: Path
    entries: tuple[Entry, ...]
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
    if "trust_pickle" in defaults or "claim" in defaults:
        key = "trust_pickle" if "trust_pickle" in defaults else "claim"
        raise UsageError(
            f"{key} at the top of {where} belongs to a single model: put it into [[{_prefix(file)}models]]."
        )
    common = read(Record(DEFAULTS), defaults, where, error=UsageError)
    if not lists["models"]:
        raise UsageError(f"{where} lists no models to check: add {_EXAMPLE.replace('[[', '[[' + _prefix(file))}.")
    entries = tuple(
        _entry(item, common, f"models[{number}] of {where}", fail_on)
        for number, item in enumerate(lists["models"], start=1)
    )
    _check_names(entries, where)
    names = {entry.name for entry in entries}
    baselines = tuple(
        _baseline(item, number, f"baseline[{number}] of {where}", names)
        for number, item in enumerate(lists["baseline"], start=1)
    )
    return GateConfig(file, entries, baselines)


def check_command(entry: Entry) -> str:
    """The `maskaudit check` command that repeats one entry, run in the configuration's folder."""
    request, settings = entry.request, entry.request.settings
    words = ["maskaudit", "check", request.model]
    options: tuple[tuple[str, Any], ...] = (
        ("arch", request.arch), ("data", request.data), ("norm", request.norm), ("eps", request.eps),
        ("bounds", request.bounds), ("mean", settings.mean), ("std", settings.std), ("claim", settings.claim),
        ("reject-class", settings.reject_class), ("samples", settings.samples), ("batch-size", settings.batch_size),
        ("call-timeout", settings.call_timeout),
    )  # fmt: skip
    for name, value in options:
        if value is not None:
            words += [f"--{name}", ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)]
    for name, said in (
        ("outputs", settings.outputs), ("budget", settings.budget), ("seed", settings.seed),
        ("device", settings.device), ("fail-on", settings.fail_on),
    ):  # fmt: skip
        if said != getattr(AuditSettings, name.replace("-", "_")):
            words += [f"--{name}", str(said)]
    for name, several in (
        ("surrogate", request.surrogates), ("select", settings.select), ("ignore", settings.ignore),
        ("attack", settings.extra_attacks),
    ):  # fmt: skip
        for item in several:
            words += [f"--{name}", item]
    return shlex.join([*words, "--trust-pickle"] if request.trust_pickle else words)


def _prefix(file: Path) -> str:
    return "tool.maskaudit." if file.name == PYPROJECT else ""


def _entry(item: Any, common: dict[str, Any], place: str, fail_on: str | None) -> Entry:
    own: dict[str, Any] = read(Record(MODEL, required=("model",)), item, place, error=UsageError)
    said = {**common, **own}
    if fail_on is not None:
        said["fail_on"] = fail_on
    name = said.get("name") or _default_name(said["model"])
    try:
        settings = AuditSettings(
            **{key: said[key] for key in _SETTINGS if key in said},
            extra_attacks=said.get("attacks", ()),
            arch=said.get("arch", ""),
        )
        ThreatModel(said.get("norm", "Linf"), said.get("eps", 0.1), said.get("bounds", (0.0, 1.0)))
        _check_rules(settings, said.get("norm", "Linf"))
    except MaskauditError as error:
        raise UsageError(f"In {place}: {error}") from error
    request = Request(
        said["model"], said.get("arch"), said.get("data"), said.get("norm"), said.get("eps"), said.get("bounds"),
        said.get("trust_pickle", False), said.get("surrogates", ()), settings,
    )  # fmt: skip
    return Entry(name, re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model", request)


def _default_name(model: str) -> str:
    """`runs/net.safetensors` → `net`, `zoo:standard` → `standard`, `py:pkg.mod:make` → `make`."""
    return Path(model.rpartition(":")[2]).stem if ":" not in model else model.rpartition(":")[2]


def _check_rules(settings: AuditSettings, norm: Any) -> None:
    """Unknown names in `select`, `ignore` and `attacks` are found before the audit starts."""
    extra = [external_attack(name) for name in settings.extra_attacks]
    check_names((*settings.select, *settings.ignore), catalogue(settings.effort, norm), extra)


def _check_names(entries: tuple[Entry, ...], where: str) -> None:
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
    said = read(Record(BASELINE, required=("rule", "reason", "expires")), item, place, error=UsageError)
    if "model" in said and said["model"] not in names:
        raise UsageError(
            f"model in {place} must be the name of a model: {', '.join(sorted(names))}; got {shown(said['model'])}."
        )
    return Baseline(number=number, **said)
