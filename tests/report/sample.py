"""Realistic reports for the tests: a masked, a clear, and an inconclusive audit with the least data possible."""

from __future__ import annotations

import base64
import math
import random
from dataclasses import replace
from typing import Any

from maskaudit.results import (
    AttackRow,
    AuditReport,
    Claim,
    Family,
    Location,
    Mechanism,
    Part,
    ProbeFinding,
    ProbeResult,
    Rate,
    Role,
    Verdict,
)

ATHALYE = "Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3"
CARLINI = "Carlini et al. 2019, On evaluating adversarial robustness, section 5"
CROCE = (
    "Croce & Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse "
    "parameter-free attacks"
)
MADRY = "Madry et al. 2018, Towards deep learning models resistant to adversarial attacks"
SQUARE = "Andriushchenko et al. 2020, Square Attack"
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
            "Robustness is overstated: 71.5% of the points withstand the usual attack, at most 0.0% withstand every "
            "attack that was tried. The likely cause is the operation Linear (nets.py:41): the logits are so large "
            "that cross-entropy has gone flat in float32.",
            (
                Mechanism(
                    "logit-scale",
                    "The logits are so large that cross-entropy has gone flat in float32",
                    "high",
                    (Location("fc2", "Linear", "maskaudit/zoo/nets.py", 41),),
                ),
            ),
            (
                "Loss level: 143 of 196 points withstand all 2 attacks on cross-entropy that ran and are broken by "
                "white-box attacks on another loss.",
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
                "reasons": ["zero-gradient", "unbounded-attack"],
                "indicators": {
                    "zero-gradient": {"value": 142 / 196, "threshold": 0.05, "fired": True},
                    "unbounded-attack": {"value": 142 / 196, "threshold": 0.02, "fired": True},
                },
            },
            "rule": {"alpha": 0.01, "looks": 3, "slack": 0.05, "gross_slack": 0.12, "clear_limit": 0.1},
        },
        power={
            "passed": True,
            "method": "planted",
            "sentence": "The gradient-free search found 47 of 48 examples planted inside the ball, so it had the power "
            "to find masking.",
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
            "strips": [strip(i) for i in range(6)],
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
    attacks = tuple(_withstood(row, i) if row.status == "ran" else row for i, row in enumerate(base.attacks))
    return AuditReport(
        tool=base.tool,
        environment=base.environment,
        target={**base.target, "source": "maskaudit-out/pgd_at.safetensors"},
        threat=base.threat,
        settings={**base.settings, "command": "maskaudit check maskaudit-out/pgd_at.safetensors"},
        verdict=Verdict(
            "clear",
            "No masking found by 6 probes and 9 attacks; 4 did not run; 55.0% of the points withstand every attack "
            "that was tried.",
            reasons=(
                "At most 2.3% of the points are hidden by gradients or loss: a bound that holds at all looks together.",
                str(base.power["sentence"]),
            ),
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


def _withstood(row: AttackRow, place: int) -> AttackRow:
    """What an attack does to a robust model: it leaves a little more the later it comes; without a ball it leaves none.

    Args:
        row: the same attack on the masked model.
        place: of the attack in the order in which they ran.
    """
    if row.role == "sanity":
        return replace(row, robust_accuracy=0.0, broken=196, curve=((1, 120), (20, 190), (40, 196)),
                       interval=share(0, 200))  # fmt: skip
    left = 110 + (5 if row.role == "reference" else place)
    curve = ((1, 40), (5, 70), (20, 82 - place), (40, 84 - place))
    return replace(row, robust_accuracy=left / 200, broken=84 - place, new=0, curve=curve, interval=share(left, 200))


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
    usual = ["pgd", "apgd-ce", "apgd-margin", "apgd-dlr", "square", "transfer"]
    return {
        "index": list(range(200)),
        "label": [i % 10 for i in range(200)],
        "predicted": [(i + (i >= 196)) % 10 for i in range(200)],
        "correct": [i < 196 for i in range(200)],
        "broken_by": [usual if i < 53 else ["apgd-margin", "square"] if i < 196 else [] for i in range(200)],
    }


def _probes() -> tuple[ProbeResult, ...]:
    lost = share(142, 196)
    return (
        ProbeResult(
            "randomness", "Randomness: the model's answers differ between evaluations of the same input", "pass", 0.0,
            "share of points", 0.0, 0.02, 196, seconds=0.2,
        ),
        ProbeResult(
            "zero-gradient", "Zero gradient: points where the input gradient is exactly zero or not finite", "finding",
            lost.value, "share of points", lost.low, lost.high, 196, 0.05,
            meaning="An attack that follows this gradient does not move from these points, so their survival says "
            "nothing about robustness.",
            remedy="Attack another loss (margin, DLR, rescaled logits), and add attacks that use no gradient.",
            sources=(ATHALYE, CARLINI),
            findings=(
                ProbeFinding("Cross-entropy has no usable gradient on 142 of 196 points.",
                             Location("fc2", "Linear", "net.py", 41)),
                ProbeFinding("The logit margin has no usable gradient on 3 of 196 points.",
                             Location("fc2", "Linear", None, None)),
            ),
            details={"connected": True, "failure": "", "zero": 142, "not_finite": 0, "zero_margin_share": 3 / 196},
            seconds=0.4,
        ),
        ProbeResult(
            "loss-decision-gradient-ratio",
            "Loss-decision gradient ratio: how much smaller the loss gradient is than the decision's", "finding", -38.1,
            "log10 (median over points)", None, None, 193, math.log10(2.0**-24),
            meaning="The usual loss has gone flat though the decision has not: an attack on cross-entropy follows "
            "rounding noise, or nothing, on most points.",
            remedy="Attack the margin, the difference-of-logits ratio, or cross-entropy of logits divided by a "
            "temperature, in addition to plain cross-entropy.",
            sources=("Carlini & Wagner 2017, Towards evaluating the robustness of neural networks, section IV",),
            seconds=1.1,
        ),
        ProbeResult(
            "saturation", "Saturation: activations in the flat region of a bounded function", "pass", 0.031,
            "share of the worst layer's activations", None, None, 196, 0.5, sources=(ATHALYE,), seconds=0.8,
        ),
        ProbeResult("dead-relu", "Dead ReLU: units that are positive on no audited point", "pass", 0.0,
                    "share of the worst layer's units", None, None, 64, 0.9, seconds=0.3),
        ProbeResult(
            "low-gradient-curvature", "Low-gradient curvature: what a step orthogonal to the gradient would gain",
            "error", seconds=2.0, reason="RuntimeError: the second derivative of max_pool2d is not in this build",
        ),
        ProbeResult(
            "unbounded-attack", "Unbounded attack: points that withstand it although every input is allowed", "finding",
            lost.value, "share of points", lost.low, lost.high, 196, 0.02,
            meaning="With no limit on the perturbation, any point can be turned into one of another class, so a "
            "working attack must reach 100 %.",
            remedy="Find the cause with the other probes, then repair the gradient or change the loss.",
            sources=(CARLINI,), seconds=6.1,
            findings=(ProbeFinding("142 of 196 points withstand an attack with the whole range of an input."),),
        ),
        ProbeResult(
            "one-step-beats-iterative",
            "One step beats iterative: points that FGSM breaks and the reference PGD does not", "not_applicable",
            reason="The attack 'fgsm' did not run on these points.",
        ),
    )  # fmt: skip


#: The part of the search that an attack belongs to, and the loss that it follows, where it does.
PARTS: dict[str, tuple[Part, Family | None]] = {
    "unbounded": ("", "cross_entropy"), "pgd": ("reference", "cross_entropy"),
    "apgd-ce": ("cross_entropy", "cross_entropy"), "apgd-margin": ("other_loss", "other_loss"),
    "apgd-dlr": ("other_loss", "other_loss"), "square": ("gradient_free", None), "decision": ("gradient_free", None),
}  # fmt: skip


def _attacks() -> tuple[AttackRow, ...]:
    def row(name: str, title: str, kind: str, role: Role, unbroken: int, steps: int, **more: Any) -> AttackRow:
        broken = 196 - unbroken
        curve = tuple(
            (s, round(broken * (1 - 0.5 ** (8 * s / steps)) if s < steps else broken))
            for s in (1, 2, 5, 10, 20, 40, 50, 120, 300, 1000, 1500)
            if s <= steps
        )
        defaults: dict[str, Any] = {
            "new": 0,
            "queries": steps * 196,
            "forwards": steps * 196,
            "backwards": steps * 196 if kind == "gradient" else 0,
            "seconds": steps / 40,
        }
        part, family = PARTS.get(name, ("", None))
        return AttackRow(
            name,
            title,
            kind,
            role,
            family,
            max(unbroken, 0) / 200,
            broken,
            196,
            curve=curve,
            interval=share(max(unbroken, 0), 200),
            part=part,
            decisive=True,
            **{**defaults, **more},
        )

    def skipped(name: str, title: str, kind: str, role: Role, reason: str) -> AttackRow:
        return AttackRow(name, title, kind, role, None, None, 0, 0, 0, 0, 0, 0, 0.0, "skipped", reason)

    return (
        row("unbounded", "PGD on cross-entropy with an unbounded ball", "gradient", "sanity", 142, 40,
            settings={"loss": "ce", "steps": 40, "relative_step": 0.05},
            sources=("Athalye et al. 2018, section 3.1",)),
        row("pgd", "PGD on cross-entropy, 40 steps, random start", "gradient", "reference", 143, 40, new=53,
            settings={"loss": "ce", "steps": 40}, sources=(MADRY,)),
        row("apgd-ce", "Auto-PGD on cross-entropy", "gradient", "strong", 143, 50,
            settings={"loss": "ce", "steps": 50}, sources=(CROCE,)),
        row("apgd-margin", "Auto-PGD on the logit margin", "gradient", "strong", 0, 50, new=143,
            settings={"loss": "margin", "steps": 50}, sources=(CROCE,)),
        row("apgd-dlr", "Auto-PGD on the difference-of-logits ratio", "gradient", "strong", 2, 50,
            settings={"loss": "dlr", "steps": 50}, sources=(CROCE,)),
        skipped("repaired", "Planned attack through the repaired gradient", "repaired", "repaired",
                "every point had been broken"),
        row("noise", "Random noise of full size", "random", "challenger", 171, 300, settings={"draws": 300}),
        row("transfer", "Transfer from a surrogate trained on the model's answers", "transfer", "challenger", 47, 120,
            settings={"queries": 120},
            sources=("Papernot et al. 2017, Practical black-box attacks against machine learning",)),
        row("square", "Square attack", "score", "challenger", 9, 1500, settings={"queries": 1500}, sources=(SQUARE,)),
        row("decision", "Decision-based search from the nearest point of another class", "decision", "challenger", 61,
            1000, settings={"queries": 1000}, sources=("Chen & Gu 2020, RayS",)),
        skipped("torchattacks-pgd", "PGD of torchattacks", "gradient", "second_opinion",
                "torchattacks is not installed; install it with: pip install 'maskaudit[torchattacks]'"),
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


def strip(seed: int, side: int = 8, channels: int = 1) -> dict[str, Any]:
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
