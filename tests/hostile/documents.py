"""Hostile documents: reports, evidence, plans, configurations."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save

from benchmarks.fuzzing import samples
from benchmarks.fuzzing.hostile import filled, raw
from tests.hostile.case import MARKER, Case, Outcome
from tests.report import sample

#: Points of the reports here.
POINTS = 12
#: A place in a document where the next text is put as it is, whatever JSON says of it.
_INFINITE, _NAN, _LONG, _SURROGATE, _NUL, _NESTED = (
    raw(number) for number in (0, 2, 5, 9, 11, 12)
)  # 1e999, NaN, 5,000 digits, a lone surrogate, NUL, 900 brackets


def report() -> dict[str, Any]:
    """A report of few points."""
    document = sample.clear().to_dict()
    document["points"] = {key: value[:POINTS] for key, value in document["points"].items()}
    document["points"]["broken_by"] = [["pgd"] if row % 3 == 0 else [] for row in range(POINTS)]
    document["attacks"], document["probes"] = document["attacks"][:2], document["probes"][:2]
    document["evidence"] = {"file": "evidence.safetensors", "sha256": "0" * 64}
    return document


def evidence(tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> bytes:
    """An evidence file of two examples; `changes` to its metadata, `Ellipsis` leaves an entry out."""
    metadata = {
        "attacks": ["pgd"],
        "report_sha256": "0" * 64,
        "threat": {"norm": "Linf", "eps": 0.2, "bounds": [0.0, 1.0]},
        "mean": None,
        "std": None,
        "outputs": "logits",
        "reject_class": None,
        "random": False,
        "seed": 0,
        "device": "cpu",
        "sha256": "0" * 64,
    }
    metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not ...}
    usual = {
        "clean": torch.zeros(2, 1, 8, 8),
        "label": torch.tensor([0, 1]),
        "index": torch.tensor([0, 3]),
        "examples": torch.full((2, 1, 8, 8), 0.1),
        "example_point": torch.tensor([0, 1]),
        "example_attack": torch.tensor([0, 0]),
    }
    return save({**usual, **(tensors or {})}, metadata={"maskaudit_evidence": filled(json.dumps(metadata))})


def changed(document: Any, path: str, value: Any) -> bytes:
    """A document with one entry changed."""
    keys = [int(key) if key.isdigit() else key for key in path.split(".")]
    functools.reduce(lambda node, key: node[key], keys[:-1], document)[keys[-1]] = value
    return filled(json.dumps(document)).encode()


#: Changed entries of a report, that every command which reads one must survive.
ENTRIES: tuple[tuple[str, str, Any], ...] = (
    ("number-infinite", "accuracy.best_known.value", _INFINITE),
    ("number-nan", "accuracy.clean.low", _NAN),
    ("number-long", "settings.seed", _LONG),
    ("number-of-400-digits", "points.index.0", 10**400),
    ("text-surrogate", "verdict.sentence", _SURROGATE),
    ("text-nul", "evidence.file", _NUL),
    ("text-markup", "verdict.sentence", "<script>alert(1)</script><img src=x onerror=alert(2)>"),
    ("text-terminal", "target.source", "\x1b[2J\x1b]0;title\x07\r\nok"),
    ("text-template", "target.source", "{{ cycler.__init__.__globals__.os.mkdir('hostile-marker') }}"),
    ("text-long", "verdict.sentence", "a" * 9000),
    ("nested", "notes", _NESTED),
    ("claim-text", "claim", "0.9"),
    ("claim-null", "claim", None),
    ("claim-list", "claim", [0.9]),
    ("claim-value-text", "claim.claimed", "much"),
    ("verdict-list", "verdict", ["clear"]),
    ("verdict-label", "verdict.label", "excellent"),
    ("points-null", "points", None),
    ("points-lengths", "points.label", [1]),
    ("points-index-text", "points.index", "abc"),
    ("points-index-repeated", "points.index", [0] * POINTS),
    ("points-broken-numbers", "points.broken_by", [7] * POINTS),
    ("points-correct-text", "points.correct", ["no"] * POINTS),
    ("attacks-object", "attacks", {"a": 1}),
    ("attack-number", "attacks.0", 7),
    ("attack-series", "attacks.0.series", [["a", None], [1e308, 1e308], 5]),
    ("probes-null", "probes", None),
    ("probe-sources", "probes.0.sources", {"a": ["<b>"]}),
    ("accuracy-list", "accuracy", [1, 2]),
    ("accuracy-rate-text", "accuracy.clean", "all"),
    ("threat-null", "threat", None),
    ("threat-bounds", "threat.bounds", [_INFINITE, "x"]),
    ("evidence-number", "evidence", 7),
    ("evidence-escapes", "evidence.file", "../../../../etc/passwd"),
    ("figures-text", "figures", "none"),
    ("figures-curve", "figures.eps_curve", [{"eps": "x"}, 7, None]),
    ("schema-flag", "schema_version", True),
    ("schema-newer", "schema_version", 99),
    ("schema-fraction", "schema_version", 1.5),
    ("timing-text", "timing", "long"),
    ("tool-null", "tool", None),
)

PLAN: tuple[tuple[str, str, Any], ...] = (
    ("version-text", "plan_version", "1"),
    ("version-newer", "plan_version", 99),
    ("version-flag", "plan_version", True),
    ("stages-object", "stages", {}),
    ("stage-number", "stages.0", 7),
    ("steps-huge", "stages.0.steps", 10**12),
    ("steps-negative", "stages.0.steps", -1),
    ("steps-fraction", "stages.0.steps", 1.5),
    ("steps-long", "stages.0.steps", _LONG),
    ("step-nan", "stages.0.step", _NAN),
    ("step-infinite", "stages.0.step", _INFINITE),
    ("loss-unknown", "stages.0.loss", "eval"),
    ("loss-list", "stages.0.loss", ["ce"]),
    ("draws-huge", "stages.0.draws", 10**9),
    ("restarts-zero", "stages.0.restarts", 0),
    ("repairs-text", "stages.0.repairs", "all"),
    ("remedy-unknown", "stages.1.repairs.0.remedy", "os.system"),
    ("module-number", "stages.1.repairs.0.module", 7),
    ("scale-huge", "stages.1.repairs.0.scale", 10**400),
    ("nested", "stages", _NESTED),
)

#: Values of the gate's configuration and of the check's, as TOML; each makes its file wrong.
TOML: tuple[tuple[str, str], ...] = (
    ("integer-long", f"seed = {'9' * 5000}"),
    ("integer-hexadecimal", f"seed = 0x{'f' * 4000}"),
    ("eps-infinite", "eps = inf"),
    ("eps-nan", "eps = nan"),
    ("eps-divided-by-zero", 'eps = "1/0"'),
    ("eps-long-fraction", f'eps = "1{"0" * 400}/1"'),
    ("bounds-nested", "bounds = [[0], [1]]"),
    ("bounds-infinite", "bounds = [0, inf]"),
    ("mean-date", "mean = 1979-05-27"),
    ("samples-negative", "samples = -1"),
    ("batch-zero", "batch_size = 0"),
    ("budget-unknown", 'budget = "endless"'),
    ("key-unknown", "__class__ = 1"),
    ("key-dotted", "seed.a.b = 1"),
    ("nested-arrays", f"select = {'[' * 900}{']' * 900}"),
    ("keys-deep", f"{'.'.join('a' * 2000)} = 1"),
    ("control-characters", 'data = "a\\u0000b\\u001b[2J"'),
    ("trust", "trust_pickle = true"),
    ("rule-unknown", 'select = ["no such rule"]'),
    ("device-odd", 'device = "../../x"'),
    ("not-toml", "= = ="),
    ("not-utf8", "\udcff"),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for what, path, value in ENTRIES:
        content = changed(report(), path, value)
        refused = path.startswith("schema") or what in ("nested",)
        for reader in ("report", "compare", "verify"):
            outcome: Outcome = "refused" if refused and what != "nested" else "either"
            committed = reader == "report"  # the same bytes for the others
            yield Case(reader, what, outcome, content, committed=committed)
    for reader in ("report", "compare", "verify"):
        yield Case(reader, "not-json", "refused", b"{", committed=reader == "report")
        yield Case(reader, "not-utf8", "refused", b'{"a": "\xff"}', committed=reader == "report")
        yield Case(reader, "list", "refused", b"[]", committed=reader == "report")
        yield Case(reader, "deep", "refused", b"[" * 100_000, committed=False)
    many = report()
    many["attacks"] = many["attacks"][:1] * 100_000
    yield Case("report", "many-attacks", "refused", json.dumps(many).encode(), committed=False)
    yield from _evidence()
    for what, path, value in PLAN:
        yield Case("plan", what, "refused", changed(json.loads(samples.plan()), path, value))
    stages = json.loads(samples.plan())["stages"][:1] * 301
    yield Case(
        "plan", "many-stages", "refused", json.dumps({"plan_version": 1, "stages": stages}).encode(), committed=False
    )
    yield Case("plan", "large", "refused", b" " * 2**21, committed=False)
    for what, line in TOML:
        gate = f'{line}\n[[models]]\nmodel = "m.pt"\n'.encode("utf-8", "surrogateescape")
        yield Case("gate configuration", what, "either" if what in _GATE_ACCEPTS else "refused", gate)
        check = f"[check]\n{line}\n".encode("utf-8", "surrogateescape")
        yield Case("check options", what, "either" if what in _CHECK_ACCEPTS else "refused", check)
    for what, entry in (
        ("baseline-number", "baseline = 7"),
        ("baseline-date", f"[[baseline]]\n{_BASE}expires = 2027-13-45"),
        ("baseline-date-text", f'[[baseline]]\n{_BASE}expires = "soon"'),
        ("baseline-no-date", f"[[baseline]]\n{_BASE}"),
        ("baseline-flag-text", f'[[baseline]]\n{_BASE}expires = 2027-01-31\naccept_masked = "yes"'),
        ("baseline-model", f'[[baseline]]\n{_BASE}expires = 2027-01-31\nmodel = "other"'),
    ):
        yield Case("gate configuration", what, "refused", f'models = [{{model = "m.pt"}}]\n{entry}\n'.encode())


_BASE = 'rule = "zero-gradient"\nreason = "x"\n'
#: What is left to the audit itself: names of devices and data sources, and rules in the file of `check`.
_GATE_ACCEPTS = frozenset({"device-odd", "control-characters"})
_CHECK_ACCEPTS = frozenset(
    {
        "device-odd",
        "control-characters",
        "rule-unknown",
        "batch-zero",
        "samples-negative",
        "bounds-infinite",
        "eps-infinite",
        "eps-nan",
        "integer-hexadecimal",
    }
)


def _evidence() -> Iterator[Case]:
    metadata: tuple[tuple[str, dict[str, Any], Outcome], ...] = (
        ("reject-class-text", {"reject_class": "3"}, "refused"),
        ("reject-class-list", {"reject_class": [1]}, "refused"),
        ("reject-class-fraction", {"reject_class": 1.5}, "refused"),
        ("reject-class-beyond", {"reject_class": 10**9}, "refused"),
        ("seed-huge", {"seed": 10**30}, "refused"),
        ("seed-negative-huge", {"seed": -(10**30)}, "refused"),
        ("seed-infinite", {"seed": _INFINITE}, "refused"),
        ("seed-list", {"seed": [1]}, "refused"),
        ("threat-missing", {"threat": ...}, "refused"),
        ("threat-text", {"threat": "Linf"}, "refused"),
        ("eps-nan", {"threat": {"norm": "Linf", "eps": _NAN, "bounds": [0, 1]}}, "refused"),
        ("eps-negative", {"threat": {"norm": "Linf", "eps": -1, "bounds": [0, 1]}}, "refused"),
        ("norm-unknown", {"threat": {"norm": "L0", "eps": 1, "bounds": [0, 1]}}, "refused"),
        ("bounds-reversed", {"threat": {"norm": "Linf", "eps": 1, "bounds": [1, 0]}}, "refused"),
        ("mean-texts", {"mean": ["a"]}, "refused"),
        ("std-zero", {"std": [0]}, "refused"),
        ("std-nested", {"std": [[1]]}, "refused"),
        ("random-text", {"random": "no"}, "either"),
        ("device-odd", {"device": f"py:os:mkdir('{MARKER}')"}, "either"),
        ("attacks-number", {"attacks": 7}, "either"),
        ("outputs-markup", {"outputs": "<script>"}, "either"),
        ("digest-long", {"report_sha256": _LONG}, "either"),
    )
    for what, changes, outcome in metadata:
        yield Case("evidence", what, outcome, evidence(**changes))
    whole = torch.tensor([0, 1])
    tensors: tuple[tuple[str, dict[str, torch.Tensor]], ...] = (
        ("points-outside", {"example_point": torch.tensor([0, 99])}),
        ("points-negative", {"example_point": torch.tensor([-1, 0])}),
        ("labels-fractions", {"label": whole.float()}),
        ("labels-short", {"label": whole[:1]}),
        ("examples-other-shape", {"examples": torch.zeros(2, 1, 9, 9)}),
        ("clean-scalar", {"clean": torch.tensor(0.5)}),
        ("clean-other-shape", {"clean": torch.zeros(2, 3, 5), "examples": torch.zeros(2, 3, 5)}),
    )
    for what, held in tensors:
        yield Case("evidence", what, "refused", evidence(held))
    for what, held in (
        ("examples-nan", {"examples": torch.full((2, 1, 8, 8), float("nan"))}),
        ("labels-huge", {"label": torch.tensor([0, 2**62])}),
        ("index-huge", {"index": torch.tensor([0, 2**62])}),
        ("examples-whole", {"examples": torch.zeros(2, 1, 8, 8, dtype=torch.int64)}),
    ):
        yield Case("evidence", what, "either", evidence(held))
    plain = evidence()
    yield Case("evidence", "cut", "refused", plain[:-100])
    yield Case("evidence", "no-metadata", "refused", save({"clean": torch.zeros(2)}))
