"""What a model file may say about itself: declared fields, checked before any of them is used.

Nothing that a file says can name code, a path, a download or a server. Fields that are not declared here
are left out; a declared field with any other value makes the file refused.
"""

from __future__ import annotations

import functools
from typing import Any, get_args

from maskaudit.declared import (
    Anything,
    Checked,
    Choice,
    Items,
    Kind,
    Number,
    Optional,
    Record,
    Table,
    Text,
    Whole,
    read,
)
from maskaudit.declared.kinds import shown
from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError, MaskauditError, printable
from maskaudit.settings import BUILT_IN_DATA, Outputs
from maskaudit.threat import Norm

#: Largest JSON that a model file may hold about itself, in bytes; ours take some hundred.
MAX_BYTES = 1 << 20
#: Longest architecture, in characters.
MAX_ARCH = 2000
#: Largest magnitude of a bound, a mean, a deviation or ε: inputs of classifiers lie far below.
MAX_VALUE = 1e6
#: Smallest ε and deviation: below it float32 inputs do not move, or leave its range.
MIN_VALUE = 1e-6
#: Most channels that a normalisation may have, and most outputs of a classifier.
MAX_CHANNELS = 4096
MAX_CLASSES = 1_000_000


@functools.cache
def declaration() -> Record:
    """The fields; null means a field that is not there."""
    value = Number(-MAX_VALUE, MAX_VALUE)
    size = Number(MIN_VALUE, MAX_VALUE)
    bounds = Checked(Items(value, 2, 2), "two numbers, smallest first, such as [0, 1]", lambda pair: pair[0] < pair[1])
    threat = Record(_nullable(norm=Choice(*get_args(Norm)), eps=size, bounds=bounds), ignore_unknown=True)
    fields = _nullable(
        arch=Text(MAX_ARCH, shortest=1),
        data=Choice(*BUILT_IN_DATA),
        threat=threat,
        outputs=Choice("auto", *get_args(Outputs)),
        mean=Items(value, MAX_CHANNELS, 1, single=True),
        std=Items(size, MAX_CHANNELS, 1, single=True),
        reject_class=Whole(0, MAX_CLASSES - 1),
        class_names=Items(Text(200), MAX_CLASSES),
        certified=Number(0, 1),
        method=Text(200),
        trained_on=Text(1000),
        epochs=Whole(0, 10**9),
        seed=Whole(0, 2**63 - 1),
        train_accuracy=Number(0, 1),
        training=Table(Anything(), 100),
    )
    return Record(fields, ignore_unknown=True)


def parse(content: object, source: str) -> dict[str, Any]:
    """The declared fields in the JSON text that a model file carries; see `check`."""
    where = f"The metadata of {printable(source)}"
    if not isinstance(content, str):
        raise InputError(f"{where} must be a text of JSON; found {shown(content)}.")
    return check(parse_json(content, where, most=MAX_BYTES), where)


def check(given: object, where: str, *, error: type[MaskauditError] = InputError) -> dict[str, Any]:
    """The declared fields among what a file says, as plain JSON values; what is null is left out.

    Raises:
        MaskauditError: of the class `error`, for a field of another type, size or range, or data that are not built in.
    """
    found = _declared(read(declaration(), given, where, error=error))
    return {**found, "threat": _declared(found["threat"])} if "threat" in found else found


def _declared(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if value is not None
    }


def _nullable(**kinds: Kind[Any]) -> dict[str, Kind[Any]]:
    return {name: Optional(kind) for name, kind in kinds.items()}
