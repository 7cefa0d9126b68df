"""Audit the whole zoo with several seeds and write the table of verdicts against the truth.

    python benchmarks/verdict.py [--seeds 3] [--budget standard] [--models NAME …]

Writes `benchmarks/verdict-BUDGET.md`: sensitivity, specificity and the rates of `inconclusive` and
`suspect` with exact 99 % intervals, and one row per audit.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch

from maskaudit.jobs import audit_source
from maskaudit.settings import AuditSettings
from maskaudit.verdict.statistics import clopper_pearson
from maskaudit.zoo import ZOO

HERE = Path(__file__).parent


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", choices=("quick", "standard", "thorough"), default="standard")
    parser.add_argument("--models", nargs="*", default=list(ZOO))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        for seed in range(arguments.seeds):
            settings = AuditSettings(budget=arguments.budget, seed=seed)
            rows.append(row_of(name, seed, audit_source(f"zoo:{name}", settings).report.to_dict()))
            print(rows[-1]["name"], seed, rows[-1]["label"], f"{rows[-1]['seconds']} s", flush=True)
    path = HERE / f"verdict-{arguments.budget}.md"
    path.write_text(table(rows, arguments.budget, arguments.seeds), encoding="utf-8")
    print(f"written to {path}")


def row_of(name: str, seed: int, document: dict[str, Any]) -> dict[str, Any]:
    """The figures of one audit."""
    accuracy, masking = document["accuracy"], document["masking"]
    mechanisms = document["verdict"]["mechanisms"]
    return {
        "name": name,
        "seed": seed,
        "masked": ZOO[name].masked,
        "label": document["verdict"]["label"],
        "reference": accuracy["reference"]["value"],
        "best": accuracy["best_known"]["value"],
        "gradient": masking["gradient_level"]["value"],
        "loss": masking["loss_level"]["value"],
        "screen": masking["screen"]["fired"],
        "mechanism": mechanisms[0]["id"] if mechanisms else "",
        "points": document["settings"]["samples"],
        "forwards": document["timing"]["forwards"],
        "backwards": document["timing"]["backwards"],
        "seconds": document["timing"]["total_seconds"],
    }


def table(rows: list[dict[str, Any]], budget: str, seeds: int) -> str:
    """The committed document."""
    masked = [row for row in rows if row["masked"]]
    healthy = [row for row in rows if not row["masked"]]
    undecided = [row for row in healthy if row["label"] in ("inconclusive", "suspect")]
    summary = [
        ("masked models called `masked`", [r for r in masked if r["label"] == "masked"], masked),
        ("masked models called `clear`", [r for r in masked if r["label"] == "clear"], masked),
        ("healthy models called `masked`", [r for r in healthy if r["label"] == "masked"], healthy),
        ("healthy models called `clear`", [r for r in healthy if r["label"] == "clear"], healthy),
        ("healthy models `suspect` or `inconclusive`", undecided, healthy),
    ]
    lines = [
        f"# Verdicts on the zoo, budget {budget}",
        "",
        f"`python benchmarks/verdict.py --budget {budget} --seeds {seeds}` on {platform.machine()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s). The seed changes the points drawn and the "
        "attacks; the networks stay the same. Seconds depend on the machine, counts of passes do not.",
        "",
        "| | audits | share | 99 % interval |",
        "|---|---|---|---|",
    ]
    for title, hits, total in summary:
        if total:
            low, high = clopper_pearson(len(hits), len(total))
            lines.append(
                f"| {title} | {len(hits)} of {len(total)} | {len(hits) / len(total):.3f} | {low:.3f}–{high:.3f} |"
            )
    lines += [
        "",
        "| model | truth | seed | verdict | mechanism | reference | best known | hidden: gradient | hidden: loss "
        "| screen | points | forwards | backwards | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        truth = "masked" if r["masked"] else "healthy"
        lines.append(
            f"| {r['name']} | {truth} | {r['seed']} | {r['label']} | {r['mechanism']} | {r['reference']:.3f} "
            f"| {r['best']:.3f} | {r['gradient']:.3f} | {r['loss']:.3f} | {'fired' if r['screen'] else '–'} "
            f"| {r['points']} | {r['forwards']} | {r['backwards']} | {r['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
