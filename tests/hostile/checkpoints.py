"""Hostile checkpoints: safetensors whose metadata or header lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from benchmarks.fuzzing import samples
from tests.hostile.case import MARKER, Case, Outcome

_NAN, _HUGE = float("nan"), 10**400

#: (what, changed metadata, outcome); `threat.x` stands for an entry of the threat model.
METADATA: tuple[tuple[str, dict[str, Any], Outcome], ...] = (
    ("data-runs-python", {"data": f"py:os:mkdir(path='{MARKER}')"}, "refused"),
    ("data-runs-command", {"data": f"py:subprocess:run(args=['touch', '{MARKER}'])"}, "refused"),
    ("data-runs-shell", {"data": f"py:os:system(command='touch {MARKER}')"}, "refused"),
    ("data-from-hub", {"data": "hf:nobody/nothing"}, "refused"),
    ("data-downloads", {"data": "torchvision:CIFAR10"}, "refused"),
    ("data-absolute-path", {"data": "/etc"}, "refused"),
    ("data-relative-path", {"data": "../../secret.npz"}, "refused"),
    ("data-device", {"data": "/dev/zero"}, "refused"),
    ("data-number", {"data": 7}, "refused"),
    ("data-nul", {"data": "digits\0.npz"}, "refused"),
    ("bounds-texts", {"threat.bounds": ["low", "high"]}, "refused"),
    ("bounds-reversed", {"threat.bounds": [1, 0]}, "refused"),
    ("bounds-infinite", {"threat.bounds": [0, float("inf")]}, "refused"),
    ("bounds-three", {"threat.bounds": [0, 1, 2]}, "refused"),
    ("bounds-nested", {"threat.bounds": [[0], [1]]}, "refused"),
    ("bounds-beyond-float", {"threat.bounds": [0, _HUGE]}, "refused"),
    ("eps-text", {"threat.eps": "wide"}, "refused"),
    ("eps-negative", {"threat.eps": -0.1}, "refused"),
    ("eps-nan", {"threat.eps": _NAN}, "refused"),
    ("eps-list", {"threat.eps": [0.2]}, "refused"),
    ("eps-beyond-float", {"threat.eps": _HUGE}, "refused"),
    ("eps-flag", {"threat.eps": True}, "refused"),
    ("norm-unknown", {"threat.norm": "L7"}, "refused"),
    ("norm-list", {"threat.norm": ["Linf"]}, "refused"),
    ("threat-text", {"threat": "Linf"}, "refused"),
    ("mean-text", {"mean": "0.5"}, "refused"),
    ("mean-of-texts", {"mean": ["a"]}, "refused"),
    ("mean-of-nulls", {"mean": [None]}, "refused"),
    ("mean-too-long", {"mean": [0.5] * 1000}, "refused"),
    ("mean-nan", {"mean": [_NAN]}, "refused"),
    ("std-zero", {"std": [0.0]}, "refused"),
    ("std-negative", {"std": [-1.0]}, "refused"),
    ("std-number", {"std": 0.25}, "either"),
    ("reject-class-text", {"reject_class": "3"}, "refused"),
    ("reject-class-fraction", {"reject_class": 1.5}, "refused"),
    ("reject-class-negative", {"reject_class": -1}, "refused"),
    ("reject-class-huge", {"reject_class": 10**30}, "refused"),
    ("reject-class-flag", {"reject_class": True}, "refused"),
    ("certified-above-one", {"certified": 7}, "refused"),
    ("certified-negative", {"certified": -1}, "refused"),
    ("certified-text", {"certified": "0.9"}, "refused"),
    ("certified-list", {"certified": [1]}, "refused"),
    ("certified-nan", {"certified": _NAN}, "refused"),
    ("outputs-markup", {"outputs": "<script>alert(1)</script>"}, "refused"),
    ("outputs-number", {"outputs": 5}, "refused"),
    ("outputs-null", {"outputs": None}, "either"),
    ("method-markup", {"method": "<img src=x onerror=alert(1)>\x1b[2J"}, "either"),
    ("method-list", {"method": [["a"]]}, "either"),
    ("arch-file", {"arch": "net.py:make"}, "refused"),
    ("arch-import", {"arch": f"os:mkdir(path='{MARKER}')"}, "refused"),
    ("arch-call-inside", {"arch": f"mlp(in_features=__import__('os').mkdir('{MARKER}'))"}, "refused"),
    ("arch-number", {"arch": 5}, "refused"),
    ("arch-list", {"arch": ["mlp"]}, "refused"),
    ("arch-brackets", {"arch": "(" * 3000}, "refused"),
    ("arch-expands", {"arch": "mlp(in_features=64, num_classes=10, hidden=[1]*200000)"}, "refused"),
    ("arch-many-layers", {"arch": f"mlp(in_features=64, num_classes=10, hidden=[{'1, ' * 3000}])"}, "refused"),
    ("arch-wide", {"arch": "small_cnn(width=999999)"}, "refused"),
    ("arch-deep", {"arch": "small_vit(depth=999999)"}, "refused"),
    ("arch-wrong-types", {"arch": "mlp(in_features=None, num_classes='10')"}, "refused"),
    ("arch-not-fitting", {"arch": "mlp(in_features=63, num_classes=10, hidden=[8])"}, "refused"),
)

#: Metadata that are no JSON, or JSON of a strange kind.
TEXTS: tuple[tuple[str, str, Outcome], ...] = (
    ("metadata-not-json", "{", "refused"),
    ("metadata-list", "[1]", "refused"),
    ("metadata-null", "null", "refused"),
    ("metadata-long-integer", '{"seed": ' + "9" * 5000 + "}", "refused"),
    ("metadata-nested", '{"arch": ' + "[" * 4000 + "]" * 4000 + "}", "refused"),
    ("metadata-byte-order-mark", "\ufeff{}", "refused"),
    (
        "metadata-repeated-key",
        json.dumps(samples.METADATA)[:-1] + f', "data": "py:os:mkdir(path=\'{MARKER}\')"}}',
        "refused",
    ),
    ("metadata-infinite-eps", json.dumps(samples.METADATA).replace("0.2,", "1e999,"), "refused"),
    ("metadata-surrogate", json.dumps({**samples.METADATA, "data": "\ud800"}), "refused"),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for what, changes, outcome in METADATA:
        yield Case("checkpoint", what, outcome, samples.checkpoint(_changed(changes)))
    for what, text, outcome in TEXTS:
        yield Case("checkpoint", what, outcome, samples.checkpoint(text))
    yield Case(
        "checkpoint",
        "arch-huge-list",
        "refused",
        committed=False,
        content=samples.checkpoint(
            {**samples.METADATA, "arch": f"mlp(in_features=64, num_classes=10, hidden=[{'1,' * 200_000}])"}
        ),
    )
    yield Case("checkpoint", "metadata-deep", "refused", samples.checkpoint("[" * 200_000), committed=False)
    yield from _headers()


def _changed(changes: dict[str, Any]) -> dict[str, Any]:
    metadata = json.loads(json.dumps(samples.METADATA))
    for key, value in changes.items():
        owner, _, name = key.rpartition(".")
        (metadata[owner] if owner else metadata)[name] = value
    return metadata


def _headers() -> Iterator[Case]:
    """Headers that lie about what follows."""
    plain = samples.weights()
    length = int.from_bytes(plain[:8], "little")
    header, body = json.loads(plain[8 : 8 + length]), plain[8 + length :]
    first = sorted(header)[0]

    def packed(header: Any, body: bytes = body) -> bytes:
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        return struct.pack("<Q", len(text)) + text + body

    def entry(**changes: Any) -> bytes:
        return packed({**header, first: {**header[first], **changes}})

    yield Case("weights", "header-length-beyond-file", "refused", struct.pack("<Q", 2**62) + plain[8:])
    yield Case("weights", "header-length-zero", "refused", struct.pack("<Q", 0) + plain[8:])
    yield Case("weights", "header-only-prefix", "refused", struct.pack("<Q", 2) + b"{")
    yield Case("weights", "header-cut", "refused", plain[: 8 + length // 2])
    yield Case("weights", "body-cut", "refused", plain[:-100])
    yield Case("weights", "body-too-long", "refused", plain + b"\0" * 100)
    yield Case("weights", "offsets-reversed", "refused", entry(data_offsets=[32, 0]))
    yield Case("weights", "offsets-beyond", "refused", entry(data_offsets=[0, 2**60]))
    yield Case("weights", "offsets-negative", "refused", entry(data_offsets=[-4, 28]))
    yield Case("weights", "offsets-overlap", "refused", entry(data_offsets=header[sorted(header)[1]]["data_offsets"]))
    yield Case("weights", "shape-overflows", "refused", entry(shape=[2**32, 2**32, 2**32]))
    yield Case("weights", "shape-negative", "refused", entry(shape=[-8]))
    yield Case("weights", "dtype-unknown", "refused", entry(dtype="F7"))
    yield Case("weights", "entry-list", "refused", packed({**header, first: [1]}))
    yield Case("weights", "name-escapes", "refused", packed({f"../{name}\0": value for name, value in header.items()}))
    yield Case("weights", "no-tensors", "refused", packed({}, b""))
    yield Case("weights", "metadata-not-text", "refused", packed({**header, "__metadata__": {"maskaudit": 5}}))
    yield Case("weights", "header-nested", "refused", packed('{"a":' * 2000 + "0" + "}" * 2000))
