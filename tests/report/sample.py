"""Realistic reports for the tests: a masked, a clear, and an inconclusive audit with the least data possible."""

from __future__ import annotations

import base64
import math
import random
from typing import Any

from maskaudit.results import (
    AttackRow,
    AuditReport,
    Claim,
    Location,
    Mechanism,
    ProbeFinding,
    ProbeResult,
    Rate,
    Verdict,
)

CARLINI = "Carlini et al., On Evaluating Adversarial Robustness, 2019, arXiv:1902.06705, section 4.1"
CROCE = "Croce and Hein, Reliable evaluation of adversarial robustness, ICML 2020, arXiv:2003.01690"
SQUARE = "Andriushchenko et al., Square Attack, ECCV 2020, arXiv:1912.00049"
HASH = "9f2c6be1d0a74f3c8e55a1b7430f9d2e6c1b8a7f5e4d3c2b1a0f9e8d7c6b5a49"


def share(k: int, n: int) -> Rate:
    """k of n with a Wilson interval at 95 %, close enough to the exact one for a sample."""
    z, p = 1.96, k / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return Rate(p, max(0.0, min(low, p)), min(1.0, max(high, p)), n)


def masked() -> AuditReport:
    """A GRE(AT+CE) digits model: 71.5 % by the reference attack, nothing left by the best one."""
    return AuditReport(
        tool={"name": "maskaudit", "version": "0.1.0"},
        environment={"python": "3.12.4", "torch": "2.8.0", "platform": "Linux x86_64", "threads": 2, "device": "cpu"},
        target={
            "source": "maskaudit-out/gre_at_ce.safetensors",
            "format": "safetensors",
            "sha256": HASH,
            "parameters": 52_778,
            "name": "SmallConv",
            "arch": "maskaudit.zoo.nets:small_conv",
            "outputs": "logits",
            "random": False,
            "notes": ["The file brings its own factory and data source."],
        },
        threat={"norm": "Linf", "eps": 0.2, "bounds": [0.0, 1.0]},
        settings={
            "seed": 0,
            "budget": "standard",
            "samples": 200,
            "data": "digits",
            "alpha": 0.01,
            "defaults": ["data", "eps", "norm", "bounds"],
            "command": "maskaudit check maskaudit-out/gre_at_ce.safetensors --claim 0.70 --seed 0 --out gre",
        },
        verdict=Verdict(
            "masked",
            "Robust accuracy is overstated: the usual attack leaves 71.5% unbroken, the best attack found leaves 0.0%, "
            "and cross-entropy gradients that underflow to zero hid the difference.",
            (
                Mechanism(
                    "zero-gradients",
                    "Cross-entropy gradient underflows: logits have drifted to about −6.6e5",
                    "high",
                    (Location("fc2", "Linear", "maskaudit/zoo/nets.py", 41),),
                ),
            ),
            (
                "The loss-level rate is at least 65.7% (99% lower bound), far above the 10% that honest models show.",
                "The cross-entropy gradient is exactly zero on 72.4% of points.",
                "Margin-loss attacks with the same budget break every one of 196 points.",
            ),
        ),
        claim=Claim(0.70, "refuted"),
        accuracy={
            "clean": share(196, 200),
            "reference": share(143, 200),
            "strong_reference": share(0, 200),
            "best_known": share(0, 200),
            "certified": None,
        },
        masking={
            "gradient_level": vars(share(0, 196)),
            "loss_level": vars(share(143, 196)),
            "screen": {
                "fired": True,
                "reasons": ["zero cross-entropy gradient on more than 5% of points"],
                "indicators": {
                    "zero_ce_gradient": {"value": 0.724, "threshold": 0.05, "fired": True},
                    "directional_disagreement": {"value": 0.012, "threshold": 0.2, "fired": False},
                    "unbounded_survivors": {"value": 0.0, "threshold": 0.02, "fired": False},
                },
            },
            "rule": {"alpha": 0.01, "looks": 3, "slack": 0.05, "gross_slack": 0.12, "clear_limit": 0.1},
        },
        power={
            "passed": True,
            "method": "planted",
            "sentence": "The attacks found 47 of 48 planted adversarial examples.",
            **vars(share(47, 48)),
        },
        probes=_probes(),
        attacks=_attacks(),
        points=_points(),
        evidence={"file": "evidence.safetensors", "sha256": HASH[::-1], "count": 196},
        figures={
            "eps_curve": [
                {"eps": e, "reference": r, "strong": s, "best_known": b, "n": 200}
                for e, r, s, b in (
                    (0.0, 0.98, 0.98, 0.98),
                    (0.025, 0.83, 0.66, 0.655),
                    (0.05, 0.79, 0.41, 0.405),
                    (0.1, 0.745, 0.12, 0.12),
                    (0.2, 0.715, 0.0, 0.0),
                    (0.3, 0.7, 0.0, 0.0),
                )
            ],
            "surface": _surface(),
            "strips": [_strip(i) for i in range(6)],
        },
        notes=("Four of 200 points are classified wrongly without an attack and count as broken.",),
        timing={"total_seconds": 48.3},
    )


def clear() -> AuditReport:
    """A PGD-trained digits model on which nothing was found."""
    base = masked()
    passed = tuple(
        ProbeResult(p.rule, p.title, "pass", 0.01, p.unit, 0.0, 0.03, 196, p.threshold, sources=p.sources)
        if p.status == "finding"
        else p
        for p in base.probes
    )
    attacks = tuple(
        AttackRow(
            a.name, a.title, a.kind, a.role, a.family, (110 + (5 if a.role == "reference" else i)) / 200, 84 - i,
            196, 0, a.queries, a.forwards, a.backwards, a.seconds, a.status, a.reason, a.settings, a.sources,
            ((1, 40), (5, 70), (20, 82 - i), (40, 84 - i)),
            share(110 + (5 if a.role == "reference" else i), 200),
        )
        if a.status == "ran"
        else a
        for i, a in enumerate(base.attacks)
    )  # fmt: skip
    return AuditReport(
        tool=base.tool,
        environment=base.environment,
        target={**base.target, "source": "maskaudit-out/pgd_at.safetensors"},
        threat=base.threat,
        settings={**base.settings, "command": "maskaudit check maskaudit-out/pgd_at.safetensors"},
        verdict=Verdict(
            "clear",
            "No masking found by 7 probes and 8 attacks; 2 did not run.",
            reasons=("At most 2.3% of points are hidden (99% upper bound).", "The power check passed."),
        ),
        claim=Claim(None, "no_claim"),
        accuracy={
            "clean": share(196, 200),
            "reference": share(115, 200),
            "strong_reference": share(112, 200),
            "best_known": share(110, 200),
            "certified": share(62, 200),
        },
        masking={"gradient_level": vars(share(0, 196)), "loss_level": vars(share(1, 196)), "screen": {"fired": False}},
        power=base.power,
        probes=passed,
        attacks=attacks,
        points=base.points,
        evidence={"file": "evidence.safetensors", "sha256": HASH[::-1], "count": 86},
        figures={"eps_curve": base.figures["eps_curve"]},
        timing={"total_seconds": 39.0},
    )


def inconclusive() -> AuditReport:
    """The least that a report can hold."""
    return AuditReport(
        tool={}, environment={}, target={}, threat={}, settings={},
        verdict=Verdict("inconclusive", "Cannot say: only 3 of 10 points are classified correctly, 20 are needed."),
        claim=Claim(None, "no_claim"), accuracy={}, masking={}, power={}, probes=(), attacks=(), points={},
        evidence={}, figures={},
    )  # fmt: skip


def hostile() -> dict[str, Any]:
    """A masked report whose strings attack every format."""
    evil = (
        "<script>alert(1)</script> ](javascript:alert(1)) \x1b[31mred\x1b[0m \x1b]0;title\x07 | `code` "
        '"><img src=http://evil.example/x onerror=alert(1)> \u202egnp.exe ]]> $\\frac{ @team \ud800 \x00 {{ 7*7 }} -->'
    )

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()} | {evil: evil}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        keep = ("label", "status", "role", "clean", "adversarial", "difference")
        return evil if isinstance(value, str) and key not in keep else value

    document: dict[str, Any] = poison(masked().to_dict())
    layers = [{"name": evil, "norm": float(i), "zero_share": 0.5, "culprit": i == 0} for i in range(3)]
    document["figures"]["gradient_flow"] = layers
    repaired = next(row for row in document["attacks"] if row["role"] == "repaired")
    repaired |= {"status": "ran", "attempted": 196, "broken": 196, "robust_accuracy": 0.02}
    return document


def _points() -> dict[str, Any]:
    """143 points are broken by other losses only, 53 to the reference attack, 4 are wrong by themselves."""
    usual = ["pgd-ce", "apgd-ce", "apgd-margin", "apgd-dlr", "square", "transfer"]
    return {
        "index": list(range(200)),
        "label": [i % 10 for i in range(200)],
        "predicted": [(i + (i >= 196)) % 10 for i in range(200)],
        "correct": [i < 196 for i in range(200)],
        "broken_by": [usual if i < 53 else ["apgd-margin", "square"] if i < 196 else [] for i in range(200)],
    }


def _probes() -> tuple[ProbeResult, ...]:
    zero, gap = share(142, 196), share(143, 196)
    return (
        ProbeResult(
            "saturation", "Saturated activations", "pass", 0.031, "share of units", 0.02, 0.045, 196, 0.25,
            sources=(CARLINI,), seconds=0.8,
        ),
        ProbeResult(
            "zero-gradients", "Zero or non-finite input gradients", "finding", zero.value, "share of points",
            zero.low, zero.high, 196, 0.05,
            meaning="The cross-entropy gradient is exactly zero here in float32, so a gradient attack on this loss "
            "has no direction to follow. It stops at its start and reports the point as robust.",
            remedy="Attack a loss that does not underflow (logit margin, DLR, rescaled logits), and report the lowest "
            "robust accuracy.",
            sources=(CARLINI, CROCE),
            findings=(
                ProbeFinding("gradient of cross-entropy underflows", Location("fc2", "Linear", "net.py", 41)),
                ProbeFinding("mean logit is −6.6e5", Location("fc2", "Linear", None, None)),
            ),
            details={"non_finite": 0, "median_log10_norm": -41.2}, seconds=0.4,
        ),
        ProbeResult(
            "loss-decision-ratio", "Loss gradient against decision gradient", "finding", -38.1, "decades (median)",
            None, None, 196, -6.0,
            meaning="The gradient of the loss is 38 decades smaller than that of the decision: the decision has a "
            "slope, the loss does not pass it on.",
            remedy="Use margin-based attacks for the evaluation, and keep logits bounded in training.",
            sources=("Athalye et al., Obfuscated Gradients, ICML 2018, arXiv:1802.00420",), seconds=1.1,
        ),
        ProbeResult(
            "transfer-gap", "Transfer gap", "finding", gap.value, "share of points", gap.low, gap.high, 196, 0.1,
            meaning="Examples made on a surrogate break points that the reference attack leaves unbroken.",
            remedy="Read the best-known figure, not the reference figure.", sources=(SQUARE,), seconds=6.1,
        ),
        ProbeResult("dead-relu", "Dead ReLU units", "pass", 0.0, "share of units", 0.0, 0.01, 196, 0.5, seconds=0.3),
        ProbeResult(
            "curvature", "Curvature along low-gradient directions", "error", seconds=2.0,
            reason="The second derivative of MaxPool2d is not available in this torch build.",
        ),
        ProbeResult(
            "randomness", "Random answers", "not_applicable",
            reason="Two forward passes on the same points gave identical answers.",
        ),
        ProbeResult(
            "dead-clamp", "Units behind a clamp", "not_applicable", reason="The model contains no clamp.",
        ),
    )  # fmt: skip


FAMILIES: dict[str, Any] = {
    "pgd-ce": "cross_entropy", "apgd-ce": "cross_entropy", "apgd-margin": "other_loss", "apgd-dlr": "other_loss"
}  # fmt: skip


def _attacks() -> tuple[AttackRow, ...]:
    def row(name: str, title: str, kind: str, role: Any, unbroken: int, steps: int, **more: Any) -> AttackRow:
        broken = 196 - unbroken
        curve = tuple(
            (s, round(broken * (1 - 0.5 ** (8 * s / steps)) if s < steps else broken))
            for s in (1, 2, 5, 10, 20, 40, 100, 300, 1000, 5000)
            if s <= steps
        )
        defaults: dict[str, Any] = {
            "new": 0,
            "queries": steps * 196,
            "forwards": steps * 196,
            "backwards": steps * 196,
            "seconds": steps / 40,
            "settings": {"loss": name.partition("-")[2], "steps": steps, "restarts": 1},
            "sources": (CROCE,),
        }
        return AttackRow(
            name,
            title,
            kind,
            role,
            FAMILIES.get(name),
            max(unbroken, 0) / 200,
            broken,
            196,
            curve=curve,
            interval=share(max(unbroken, 0), 200),
            **{**defaults, **more},
        )

    return (
        row("pgd-ce", "PGD on cross-entropy, 40 steps", "gradient", "reference", 143, 40, new=53,
            sources=("Madry et al., ICLR 2018, arXiv:1706.06083",)),
        row("apgd-ce", "APGD on cross-entropy", "gradient", "strong", 139, 100, new=4),
        row("apgd-margin", "APGD on the logit margin", "gradient", "strong", 0, 100, new=139),
        row("apgd-dlr", "APGD on the DLR loss", "gradient", "strong", 2, 100),
        row("square", "Square attack", "score", "challenger", 9, 5000, backwards=0, settings={}, sources=(SQUARE,)),
        row("decision", "Steps towards the nearest other class", "decision", "challenger", 61, 1000, backwards=0),
        row("transfer", "Transfer from a leaky-ReLU surrogate", "transfer", "challenger", 47, 40),
        row("noise", "Random-sign noise", "random", "challenger", 171, 300, backwards=0, settings={"draws": 300}),
        AttackRow("repaired-ste", "Through a repaired model", "gradient", "repaired", None, None, 0, 0, 0, 0, 0, 0, 0.0,
                  "skipped", "The trace found no operation that needs a repair."),
        AttackRow("torchattacks-pgd", "PGD of torchattacks", "external", "second_opinion", None, None, 0, 0, 0, 0, 0, 0,
                  0.0,
                  "skipped", "torchattacks is not installed: pip install maskaudit[torchattacks]."),
    )  # fmt: skip


def _surface() -> dict[str, Any]:
    grid = [-1 + i / 10 for i in range(21)]
    margin = [[1.9 * v + 0.15 * u - 0.9 + 0.3 * math.sin(3 * u) for u in grid] for v in grid]
    loss = [[max(0.0, 40 * m) if m > 0.35 else 0.0 for m in row] for row in margin]
    return {
        "point": 17,
        "u_label": "gradient direction",
        "v_label": "direction of the APGD-margin example",
        "u": grid,
        "v": grid,
        "margin": margin,
        "loss": loss,
        "gradient_at": [1.0, 0.0],
        "challenger_at": [0.0, 1.0],
    }


def _strip(seed: int, side: int = 8, channels: int = 1) -> dict[str, Any]:
    rng = random.Random(seed)
    size = channels * side * side
    squares = [((i % side - 3.5) ** 2 + (i // side % side - 3.5) ** 2) / 7 for i in range(size)]
    clean = [int(255 * math.exp(-square)) for square in squares]
    change = [rng.choice((-51, 51)) for _ in range(size)]
    adversarial = [max(0, min(255, c + d)) for c, d in zip(clean, change, strict=True)]
    difference = [max(0, min(255, 128 + a - c)) for a, c in zip(adversarial, clean, strict=True)]
    return {
        "index": 10 + seed,
        "label": seed % 10,
        "predicted": (seed + 5) % 10,
        "attack": "apgd-margin",
        "distance": 0.2,
        "shape": [channels, side, side],
        "clean": base64.b64encode(bytes(clean)).decode(),
        "adversarial": base64.b64encode(bytes(adversarial)).decode(),
        "difference": base64.b64encode(bytes(difference)).decode(),
    }
