"""`maskaudit inspect`: what a trace saw, as a dictionary and as text; no attack."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from maskaudit.repairs.propose import propose
from maskaudit.results import Location, plain
from maskaudit.target import Target
from maskaudit.trace.model import trace_model
from maskaudit.trace.records import Op, Trace

#: Rows of the gradient-flow table in the text form.
TABLE_ROWS = 12


def inspect_model(target: Target, x: Tensor, y: Tensor, *, eps: float | None = None) -> dict[str, Any]:
    """Trace a target on a few points and say what hides its gradient and what would be repaired.

    Args:
        target: the open target.
        x: inputs (N, …); y: labels (N,).
        eps: see `trace_model`.

    Returns:
        Plain types: `gradient`, `output_kind`, `culprits`, `repairs`, `flow` (worst op first), `cuts`,
        `functions`, `randomness`, `optimises`, `ops`, `points`, `kind`.
    """
    trace = trace_model(target, x, y, eps=eps)
    document: dict[str, Any] = trace.to_dict()
    blamed = {culprit.op for culprit in trace.culprits}
    rows = sorted((op for op in trace.ops if op.flow is not None), key=lambda op: _badness(op, blamed), reverse=True)
    result: dict[str, Any] = plain({
        "kind": trace.kind,
        "points": trace.points,
        "output_kind": trace.output_kind,
        "gradient": document["health"],
        "culprits": document["culprits"],
        "repairs": [repair.to_dict() for repair in propose(trace)],
        "flow": [_row(op, op.index in blamed) for op in rows],
        "cuts": document["cuts"],
        "functions": document["functions"],
        "randomness": document["randomness"],
        "optimises": document["optimises"],
        "ops": len(trace.ops),
        "sentence": _sentence(trace),
    })  # fmt: skip
    return result


def format_inspection(inspection: dict[str, Any]) -> str:
    """The inspection as text of at most 120 columns."""
    gradient = inspection["gradient"]
    scales = ", ".join(f"{value:.2f} at {step:.3g}" for step, value in gradient["agreement"])
    lines = [
        inspection["sentence"],
        "",
        f"Model: {inspection['kind']}, {inspection['ops']} ops, output: {inspection['output_kind']}, "
        f"{inspection['points']} points",
        f"Margin gradient: {'connected' if gradient['connected'] else 'NOT connected'}, exactly zero on "
        f"{gradient['zero_share']:.0%} of points (cross-entropy {gradient['ce_zero_share']:.0%})",
        f"Agreement with central differences: {scales}",
    ]
    lines += _section("Suspects", [
        f"{c['mechanism']} ({c['confidence']}) {_place(c['location'])}: {c['sentence']}" for c in inspection["culprits"]
    ])  # fmt: skip
    lines += _section("Would be repaired", [
        f"{_place(r['location'])}: {r['sentence']}" for r in inspection["repairs"]
    ])  # fmt: skip
    lines += _section("Cuts", [
        f"{_place(c['location'])}: {c['sentence']}" + (" (revived downstream)" if c["revived"] else "")
        for c in inspection["cuts"]
    ])  # fmt: skip
    lines += _section("Custom backward functions", [
        f"{f['name']} {_place(f['location'])}: {f['kind']}"
        + ("" if f["agreement"] is None else f" (agreement {f['agreement']:.2f})")
        for f in inspection["functions"]
    ])  # fmt: skip
    random = inspection["randomness"]
    if random is not None:
        lines += _section("Randomness", [
            f"{', '.join(random['sources']) or 'unknown source'} {_place(random['location'])}: "
            f"{random['flips']:.0%} of decisions flip, scores move by {random['logit_spread']:.3g}"
        ])  # fmt: skip
    lines += _section("Optimisation inside the forward pass", [_place(place) for place in inspection["optimises"]])
    return "\n".join(lines + _table(inspection["flow"])) + "\n"


def _sentence(trace: Trace) -> str:
    if trace.healthy:
        return f"Nothing hides the gradient of this model as far as {trace.points} points show."
    worst = trace.culprits[0]
    return f"Suspect: {worst.mechanism} {_place(vars(worst.location))}. {worst.sentence}"


def _badness(op: Op, blamed: set[int]) -> tuple[bool, float, float, float]:
    """Blamed ops first, then by share of points with zero or non-finite gradient, blocked units, attenuation."""
    flow = op.flow
    assert flow is not None
    attenuation = flow.norm_in / flow.norm_out if flow.norm_out > 0 else 0.0
    return op.index in blamed, flow.zero_share + flow.nonfinite_share, flow.blocked_share or 0.0, attenuation


def _row(op: Op, blamed: bool) -> dict[str, Any]:
    assert op.flow is not None
    return {"location": vars(op.location), "blamed": blamed, "index": op.index, **vars(op.flow)}


def _place(location: dict[str, Any] | Location) -> str:
    """`conv1.relu (net.py:14)`."""
    where = vars(location) if isinstance(location, Location) else location
    name = ".".join(part for part in (where["module"], where["op"]) if part) or "model"
    return f"in {name} ({os.path.basename(where['file'])}:{where['line']})" if where["file"] else f"in {name}"


def _section(title: str, items: list[str]) -> list[str]:
    return ["", f"{title}:", *(f"  {item}" for item in items)] if items else []


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "Gradient flow, worst op first:"]
    lines.append(f"  {'op':<44} {'norm in':>9} {'norm out':>9} {'zero':>5} {'blocked':>7} {'not finite':>10}")
    for row in rows[:TABLE_ROWS]:
        blocked = "–" if row["blocked_share"] is None else f"{row['blocked_share']:.0%}"
        name = _place(row["location"]).removeprefix("in ")[:44]
        lines.append(
            f"  {name:<44} {row['norm_in']:>9.2g} {row['norm_out']:>9.2g} {row['zero_share']:>5.0%} {blocked:>7} "
            f"{row['nonfinite_share']:>10.0%}"
        )
    if len(rows) > TABLE_ROWS:
        lines.append(f"  … and {len(rows) - TABLE_ROWS} more")
    return lines
