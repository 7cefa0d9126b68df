"""How numbers and estimated times are written for people: few digits, and powers of ten instead of `e-08`."""

from __future__ import annotations

import math

#: Digits and the minus sign as exponents.
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Beyond this many seconds a duration is given in minutes, beyond as many minutes in hours.
_UNIT_LIMIT = 100


def number(value: float) -> str:
    """Three significant digits; from a thousandth to ten million as a decimal, else as `6 × 10⁻⁸`."""
    if value == int(value) and abs(value) < 1e15:
        return _signed(f"{int(value):,}")
    if 1e-3 <= abs(value) < 1e3:
        return _signed(f"{value:.3g}")
    if 1e3 <= abs(value) < 1e7:
        return _signed(f"{float(f'{value:.3g}'):,.0f}")
    return ("−" if value < 0 else "") + power(math.log10(abs(value)))


def power(decades: float) -> str:
    """Ten to the power of `decades`, however large or small that is: `0.25`, `6 × 10⁻⁸`, `6 × 10⁻⁵⁴⁰⁴⁷`."""
    if not math.isfinite(decades):
        return "0" if decades < 0 else "unlimited"
    if -3 <= decades < 7:
        return number(10**decades)
    exponent = math.floor(decades)
    front = f"{10 ** (decades - exponent):.2g}"
    if front == "10":
        front, exponent = "1", exponent + 1
    shown = f"10{str(exponent).translate(SUPERSCRIPT)}"
    return shown if front == "1" else f"{front} × {shown}"


def duration(seconds: float) -> str:
    """In words of two digits: `40 s`, `12 min`, `3.5 h`."""
    for unit in ("s", "min"):
        if seconds < _UNIT_LIMIT:
            return f"{seconds:.2g} {unit}" if seconds < 10 else f"{seconds:.0f} {unit}"
        seconds /= 60
    return f"{seconds:.3g} h"


def _signed(text: str) -> str:
    return text.replace("-", "−")
