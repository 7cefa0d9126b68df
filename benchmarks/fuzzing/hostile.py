"""Values that readers must survive, shared by all structure-aware mutations."""

from __future__ import annotations

import re
from random import Random
from typing import Any

#: Whole numbers at which sizes, signs and types turn over.
NUMBERS: tuple[int, ...] = (
    0, 1, -1, 2, 3, 4, 7, 16, 127, 128, 255, 256, 999, 4096, 65_535, 65_536, 10**6, 2**31 - 1, 2**31, -(2**31), 2**32,
    5 * 10**7, 10**12, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30,
)  # fmt: skip
FLOATS: tuple[float, ...] = (0.0, -0.0, 0.5, 1.5, -1.5, 1e-320, 1e-30, 1e30, 1e308, -1e308, 0.30000000000000004)
#: What a file may try to have run, fetched, opened or shown. Each would leave a mark or be seen by the audit hook.
TEXTS: tuple[str, ...] = (
    "", " ", "x", "0", "-1", "8/255", "1/0", "nan", "inf", "1e999", "True", "null", "digits", "fashion-mnist", "Linf",
    "L2", "linf", "logits", "probabilities", "py:os:system(command='touch fuzz-marker')", "py:os:mkdir(path='marker')",
    "os:mkdir", "net.py:make", "subprocess:run", "hf:nobody/nothing", "torchvision:CIFAR10", "zoo:nothing",
    "http://127.0.0.1:9/x", "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "..", "/", "/dev/zero", "\0",
    "a\0b", "<script>alert(1)</script>", "{{ 7 * 7 }}", "${HOME}", "$(touch marker)", "%s%n", "\x1b[2J\x1b]0;x\x07",
    "\r\nSet: x", "\u202eabc", "\ud800", "é" * 40, "a" * 1000, "x" * 100_000, "." * 3000, "a.b" * 1000,
    "mlp(hidden=[8])", "mlp(in_features=64, num_classes=10, hidden=[1]*9)", "mlp(in_features=64, num_classes=10)",
    f"mlp(in_features=64, num_classes=10, hidden=[{'1, ' * 3000}])", "small_cnn(width=1000000)", "small_cnn(width=-1)",
    "small_cnn(width=2.5)", "small_cnn(size=(1, 1, 1))", "small_vit(depth=100000)", "(" * 300, "a" + "[0]" * 300,
    "__import__('os').mkdir('marker')", "mlp(in_features=__import__('os').mkdir('marker'))", "mlp(**{'a': 1})",
)  # fmt: skip
#: JSON tokens that `json.dumps` does not write.
RAW: tuple[str, ...] = (
    "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "9" * 5000, "-" + "9" * 400, "1e-9999", "0." + "1" * 5000,
    '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', "[" * 900 + "]" * 900, "[" * 60_000, '{"a":' * 900 + "0" + "}" * 900,
    '{"a": 1, "a": 2}', "tru", "'x'", "0x10", "01", "1.", "// x", "\ufeff{}", "",
)  # fmt: skip

_PLACE = re.compile(r'"\\ue000(\d+)\\ue000"')


def value(rng: Random, words: tuple[str, ...] = ()) -> Any:
    """One hostile JSON value; `words` are names that mean something to the reader at hand."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind == 3:
        return rng.choice(FLOATS)
    if kind == 4:
        return rng.choice(
            ([], {}, [1], [0, 1], [1, 0], [None], [[]], {"a": 1}, ["a"], [0.5] * 3, [0] * 5000, [[0]] * 99)
        )
    if kind == 5:
        return raw(rng.randrange(len(RAW)))
    if kind == 6 and words:
        return rng.choice(words)
    return rng.choice(TEXTS)


def raw(number: int) -> str:
    """A text that `filled` replaces by the token `RAW[number]`."""
    return f"\ue000{number}\ue000"


def filled(text: str, tokens: tuple[str, ...] = RAW) -> str:
    """Dumped JSON (escaped to ASCII) with the tokens that no dump writes."""
    return _PLACE.sub(lambda match: tokens[int(match[1]) % len(tokens)], text)
