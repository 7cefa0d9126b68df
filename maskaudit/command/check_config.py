"""Options of `maskaudit check` from a TOML file: `[tool.maskaudit.check]` of pyproject.toml, `[check]` of any other.

    [check]
    data = "test.npz"
    eps = "8/255"
    claim = 0.53

Keys are those of the gate's configuration, with the outputs added. The command line wins. Paths are
relative to the file. `trust_pickle` executes a file's code, and is therefore said on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskaudit.command.keys import DEFAULTS, PYPROJECT, SHARE, WHOLE, WORDS, section
from maskaudit.declared import Flag, Kind, Record, Text, read
from maskaudit.errors import UsageError

#: Keys, and what they mean; see `maskaudit.command.keys` for those that the gate has too.
KEYS: dict[str, Kind[Any]] = {
    **DEFAULTS,
    "claim": SHARE,
    "workers": WHOLE,
    "ray": Text(shortest=1),
    "out": Text(shortest=1),
    "reports": WORDS,
    "quiet": Flag(),
}

#: Options whose parameter on the command line has another name than the key.
PARAMETERS = {"surrogates": "surrogate", "attacks": "attack", "reports": "outputs_to"}


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
    if isinstance(table, Mapping) and "trust_pickle" in table:
        raise UsageError(
            f"trust_pickle in {place} of {file.name} would execute code of whatever model is checked: "
            "give --trust-pickle on the command line."
        )
    said = read(Record(KEYS), table, f"{place} of {file.name}", error=UsageError)
    folder = file.resolve().parent
    for key, anchor in _ANCHORS.items():
        if key in said:
            value = said[key]
            said[key] = tuple(anchor(v, folder) for v in value) if isinstance(value, tuple) else anchor(value, folder)
    return {PARAMETERS.get(key, key): _worded(key, value) for key, value in said.items()}


def _worded(key: str, value: Any) -> Any:
    """Lists of numbers as the command line writes them; lists of texts as repeated options."""
    if isinstance(value, tuple) and KEYS[key] is not WORDS:
        return ",".join(map(repr, value))
    return list(value) if isinstance(value, tuple) else value


def _existing(text: str, folder: Path) -> str:
    """A file beside the configuration, if there is one; else the text as it is (a name such as digits or zoo:x)."""
    path, mark, rest = text.partition(".py:") if ".py:" in text else (text, "", "")
    found = folder / (path + (".py" if mark else ""))
    return f"{found}:{rest}" if mark and found.exists() else str(found) if not mark and found.exists() else text


def _surrogate(text: str, folder: Path) -> str:
    source, mark, spec = text.partition("@")
    return _existing(source, folder) + (f"@{_existing(spec, folder)}" if mark else "")


def _report(text: str, folder: Path) -> str:
    form, mark, path = text.partition("=")
    return f"{form}={folder / path}" if mark else text


#: How each kind of path finds its file.
_ANCHORS: dict[str, Callable[[str, Path], str]] = {
    "data": _existing,
    "arch": _existing,
    "surrogates": _surrogate,
    "out": lambda text, folder: str(folder / text),
    "reports": _report,
}
