"""Who settled a value of an audit: the user, the model file, or custom. The one place that decides and remembers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from maskaudit.loading import LoadedModel

T = TypeVar("T")


class Settler:
    """Takes what the user gave, else what the model brings, else what is customary.

    Attributes:
        defaults: names of values that the user did not choose; those of the model are marked.
        taken: values that the model brought and that are used, by name.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._source = loaded.source
        self._brought: Mapping[str, Any] = {**loaded.metadata, **loaded.metadata.get("threat", {})}
        self.defaults: list[str] = []
        self.taken: dict[str, Any] = {}

    def choose(self, name: str, given: T | None, custom: T) -> T:
        """The value of that name, of the customary kind."""
        value = self.take(name, given)
        if value is None:
            self.defaults.append(name)
            return custom
        return value

    def take(self, name: str, given: T | None) -> T | None:
        """The same without a customary value: None where neither user nor model name one."""
        if given is not None:
            return given
        found = self._brought.get(name)
        if found is None:
            return None
        self.defaults.append(f"{name} (from the model file)")
        self.taken[name] = found
        return tuple(found) if isinstance(found, list) else found  # type: ignore[return-value]  # checked by claims

    def leave(self, name: str) -> None:
        """Do as if the model had not named a value that does not fit the others."""
        self._brought = {key: value for key, value in self._brought.items() if key != name}

    def note(self) -> tuple[str, ...]:
        """One sentence for the report that names every value taken from the model; none where there is none."""
        if not self.taken:
            return ()
        words = ", ".join(f"{name} {_shown(value)}" for name, value in self.taken.items())
        return (f"Taken from {self._source}, since no option says otherwise: {words}.",)


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
