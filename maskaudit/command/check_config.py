"""Options of `maskaudit check` from a TOML file: `[tool.maskaudit.check]` of pyproject.toml, `[check]` of any other.

    [check]
    data = "test.npz"
    eps = "8/255"
    claim = 0.53

Keys are those of the gate's configuration, with the outputs added. The command line wins. Paths are
relative to the file. `trust_pickle` executes a file's code, and is therefore left to the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskaudit.command.config_file import PYPROJECT, section
from maskaudit.declared import Flag, Kind, Record, Text, read
from maskaudit.errors import UsageError
from maskaudit.files import is_file, is_folder
from maskaudit.settings import OPTIONS, WORDS

#: Keys, and what they mean: the options of an audit, and where its result goes.
KEYS: dict[str, Kind[Any]] = {
    **{key: one.kind for key, one in OPTIONS.items() if not one.trusts},
    "out": Text(shortest=1),
    "reports": WORDS,
    "quiet": Flag(),
}


def read_check_options(file: Path) -> dict[str, Any]:
    """Defaults for the parameters of the command, as the command line would give them.

    Raises:
        InputError: when the file cannot be read or is not TOML.
        UsageError: when it has no such section, for an unknown key, or a value of the wrong type.
    """
    place = "[tool.maskaudit.check]" if file.name == PYPROJECT else "[check]"
    table = (section(file) or {}).get("check")
    if table is None:
        raise UsageError(f"{file} has no section {place}: add it, with the options of `maskaudit check` as keys.")
    for key, one in OPTIONS.items():
        if one.trusts and isinstance(table, Mapping) and key in table:
            raise UsageError(
                f"{key} in {place} of {file.name} would execute code of whatever model is checked: "
                f"give {one.flag} on the command line."
            )
    given = read(Record(KEYS), table, f"{place} of {file.name}", error=UsageError)
    folder = file.resolve().parent
    for key, anchor in _ANCHORS.items():
        if key in given:
            value = given[key]
            given[key] = tuple(anchor(v, folder) for v in value) if isinstance(value, tuple) else anchor(value, folder)
    if "reports" in given:
        given["outputs_to"] = given.pop("reports")
    return given


def _existing(text: str, folder: Path) -> str:
    """A file next to the configuration, if there is one; else the text as it is (a name such as digits or zoo:x)."""
    path, mark, rest = text.partition(".py:") if ".py:" in text else (text, "", "")
    found = folder / (path + (".py" if mark else ""))
    if not (is_file(found) or is_folder(found)):
        return text
    return f"{found}:{rest}" if mark else str(found)


def _surrogate(text: str, folder: Path) -> str:
    source, mark, spec = text.partition("@")
    return _existing(source, folder) + (f"@{_existing(spec, folder)}" if mark else "")


def _report(text: str, folder: Path) -> str:
    form, mark, path = text.partition("=")
    return f"{form}={folder / path}" if mark else text


_PATHS: dict[str, Callable[[str, Path], str]] = {
    "file": lambda text, folder: str(folder / text),
    "source": _existing,
    "surrogate": _surrogate,
}
#: How each path finds its file.
_ANCHORS: dict[str, Callable[[str, Path], str]] = {
    **{key: _PATHS[one.path] for key, one in OPTIONS.items() if one.path},
    "out": _PATHS["file"],
    "reports": _report,
}
