"""Exceptions whose message is a sentence for the person at the keyboard.

Every message says what was expected, what was found and what to do next. The
command line turns the class into an exit status; the library just raises.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

#: Likeness from which on a known name is offered in place of one that is not known (difflib's ratio).
NEAR = 0.6


class MaskauditError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the process status of the command line."""

    exit_code = 2


class UsageError(MaskauditError):
    """Wrong option or value (exit status 2)."""


class InputError(MaskauditError):
    """A model, data or report file that is missing, unreadable, refused or does not fit (exit status 2)."""


class UntrustedInputError(InputError):
    """A file that would execute code when opened, given without the flag that allows it (exit status 2)."""


class ModelError(MaskauditError):
    """The audited model itself failed: it raised, or returned something that is not class scores (exit status 4)."""

    exit_code = 4


class MaskedError(AssertionError):
    """What `assert_not_masked` asserts does not hold: masking is proven, or a claim refuted."""


class InconclusiveAuditWarning(UserWarning):
    """An audit could not decide, and `fail_on` does not make that a failure."""


class GradientError(ModelError):
    """The audited model answers, but gives no gradient: its pass raises where one is asked for.

    To an attacker this is a missing gradient, and to an audit a finding: `Target` counts such gradients as zero.
    """


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Say `what` of every error but our own: damaged bytes and foreign code make almost anything raise."""
    try:
        yield
    except MaskauditError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {describe_error(error)}.") from error


def describe_error(error: BaseException, limit: int = 200) -> str:
    """Type and first line of an exception, printable and shortened, without a full stop."""
    text = f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")
    return printable(text, limit).rstrip(".")


def first_line(error: BaseException) -> str:
    """First line of an exception's message; empty where there is none."""
    return (message(error).strip().splitlines() or [""])[0]


def message(error: BaseException) -> str:
    """What an exception says; nothing where its class, which may be foreign, fails to say it."""
    try:
        return str(error)
    except Exception:
        return ""


def meant(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """` (did you mean …?)` with the known names nearest to one that is not known; empty where none is near.

    Nearest of all is one that the name begins with (`eps` of `epsilon`).
    """
    by_plain = {_plain(one): one for one in known}
    begun = [one for one in by_plain if len(one) > 2 and _plain(name).startswith(one)]
    near = [*begun, *difflib.get_close_matches(_plain(name), by_plain, n=most, cutoff=NEAR)]
    within = [one for one in by_plain if _plain(name) and _plain(name) in one.split()] if not near else []
    found = [by_plain[one] for one in dict.fromkeys([*near, *within])][:most]
    return f" (did you mean {' or '.join(printable(one, 80) for one in found)}?)" if found else ""


def _plain(name: str) -> str:
    """A name without what people forget or mistake: case, and signs between words."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def printable(text: str, limit: int = 200) -> str:
    """Text from an untrusted file without control characters, shortened to `limit` characters."""
    clean = without_controls(text, "\N{REPLACEMENT CHARACTER}")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def without_controls(text: str, instead: str = " ") -> str:
    """Text from files and models without control characters, which could steer a terminal."""
    return "".join(character if character.isprintable() else instead for character in text)
