"""What white-box attacks find, and at what price, next to official AutoAttack on the same points.

AutoAttack gives an accuracy and nothing else; the part of an audit to compare it with is its white-box attacks.
What comes on top (search without gradients, repairs, probes, figures) carries the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.records import Record
from maskaudit.zoo.interface import ZooEntry

PEER = "autoattack"
#: A network that keeps this accuracy under AutoAttack counts as robust.
ROBUST = 0.3


@dataclass(frozen=True)
class Pair:
    """One audit and one run of AutoAttack.

    Attributes:
        white_box, best, theirs: unbroken points of the run after white-box attacks, after the whole audit, and after
            AutoAttack.
        points: of the run.
        white_box_passes, white_box_cpu: passes and CPU seconds of our white-box attacks, per point, over theirs.
        passes, cpu: those of the whole audit over theirs, also where it went on to more points.
    """

    model: str
    white_box: int
    best: int
    theirs: int
    points: int
    white_box_passes: float
    white_box_cpu: float
    passes: float
    cpu: float


def economy(audits: Sequence[Record], peers: Sequence[Record], entries: Mapping[str, ZooEntry]) -> list[str]:
    """The section, empty where AutoAttack did not run next to an audit that counted its attacks apart."""
    run = {(r["model"], r["seed"]): r for r in peers if r["peer"] == PEER and r["status"] == "ran" and r["unbroken"]}
    found: dict[str, list[Pair]] = {"robust": [], "other": [], "masked": []}
    for record in audits:
        other = run.get((record["model"], record["seed"]))
        if other is None or "own" not in record or other["indicators"].get("randomized"):
            continue
        pair = pair_of(record, other)
        kind = "masked" if entries[pair.model].masked else "robust" if pair.theirs >= ROBUST * pair.points else "other"
        found[kind].append(pair)
    if not any(found.values()):
        return []
    titles = {
        "robust": f"not masked, accuracy of at least {ROBUST} under AutoAttack",
        "other": "not masked, the others",
        "masked": "masked",
    }
    lines = [
        "### White-box attacks next to official AutoAttack",
        "",
        "Same points, deterministic models. Of an audit, the white-box attacks are what "
        "AutoAttack's accuracy is to be compared with; the rest carries the verdict. Passes are forwards and backwards "
        "in points; figures are ours over theirs, medians with the range: per point for the attacks, which an audit "
        "carries on to more points where its verdict asks for it, and in all for the audit.",
        "",
        "| models | number | white-box attacks leave no more unbroken | the audit leaves no more unbroken "
        "| passes, white-box | passes, whole audit | CPU, white-box | CPU, whole audit |",
        "|---" * 8 + "|",
    ]
    lines += [f"| {titles[kind]} | {_summary(pairs)} |" for kind, pairs in found.items() if pairs]
    lines += [
        "",
        "| robust model | points | AutoAttack | white-box | audit | passes, white-box | CPU, white-box |",
        "|---" * 7 + "|",
    ]
    return lines + [
        f"| {p.model} | {p.points} | {p.theirs} | {p.white_box} | {p.best} | {p.white_box_passes:.3f} "
        f"| {p.white_box_cpu:.3f} |"
        for p in found["robust"]
    ]


def pair_of(audit: Record, other: Record) -> Pair:
    """An audit and a run of AutoAttack, on the points that both met."""
    points, spent = audit["document"]["points"], audit["own"]
    rows = {index: row for row, index in enumerate(points["index"])}
    met = [(rows.get(index), left) for index, left in zip(other["index"], other["unbroken"], strict=True)]
    common = [(row, left) for row, left in met if row is not None]
    share, theirs = len(common) / len(rows), len(common) / len(met)
    passes, seconds = theirs * (other["forwards"] + other["backwards"]), theirs * other["cpu_seconds"]
    return Pair(
        model=audit["model"],
        white_box=sum(spent["unbroken"][row] for row, _ in common),
        best=sum(points["correct"][row] and not points["broken_by"][row] for row, _ in common),
        theirs=sum(left for _, left in common),
        points=len(common),
        white_box_passes=(spent["forwards"] + spent["backwards"]) / passes * share,
        white_box_cpu=spent["seconds"] / seconds * share,
        passes=(audit["forwards"] + audit["backwards"]) / passes,
        cpu=audit["cpu_seconds"] / seconds,
    )


def _summary(pairs: Sequence[Pair]) -> str:
    cells = [
        str(len(pairs)),
        str(sum(p.white_box <= p.theirs for p in pairs)),
        str(sum(p.best <= p.theirs for p in pairs)),
    ]
    for field in ("white_box_passes", "passes", "white_box_cpu", "cpu"):
        values = [getattr(p, field) for p in pairs]
        cells.append(f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})")
    return " | ".join(cells)
