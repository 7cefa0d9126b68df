"""What a verdict costs in two files of records: passes, CPU seconds and label of every model that both hold.

    python benchmarks/price.py BEFORE.jsonl AFTER.jsonl --out price.md

Records are those of `verdict.py`. Passes are forwards and backwards, in points; they do not depend on the machine.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import Record, RecordFile, figures_of, latest
from maskaudit.zoo import ZOO

Pair = tuple[Record, Record]


def main(arguments: list[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("price.md"))
    asked = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    asked.out.write_text(render(pairs(asked.before, asked.after), ["python", "benchmarks/price.py", *given]))


def pairs(before: Path, after: Path) -> list[Pair]:
    """Audits of the same model, seed and budget that came to an end in both, in the order of the zoo."""
    old, new = ({_key(r): r for r in latest(RecordFile(p).read()) if _finished(r)} for p in (before, after))
    return [(old[key], new[key]) for key in sorted(old.keys() & new.keys(), key=lambda k: (list(ZOO).index(k[0]), k))]


def _finished(record: Record) -> bool:
    return bool(record["kind"] == "audit" and record["status"] == "ran")


def _key(record: Record) -> tuple[str, int, str]:
    return record["model"], record["seed"], record["budget"]


def render(found: Sequence[Pair], command: Sequence[str]) -> str:
    """The document."""
    same = sum(old["weights"] == new["weights"] for old, new in found)
    lines = [
        "# What a verdict costs",
        "",
        f"`{shlex.join(command)}`: {len(found)} audits of models of the zoo, which has {len(ZOO)}. The weights are the "
        f"same before and after in {same} of them, in the others the network was trained anew by the same recipe. CPU "
        f"seconds depend on machine and load ({found[0][0]['machine']}; {found[0][1]['machine']}), passes do not. "
        f"Before: {figures_of(before.get('commit') for before, _ in found)} "
        f"After: {figures_of(after.get('commit') for _, after in found)}",
        "",
        "| models | number | right before | right after | passes before, median | after | share |",
        "|---" * 7 + "|",
    ]
    groups = {
        "all": found,
        "masked": [pair for pair in found if ZOO[pair[0]["model"]].masked],
        "not masked": [pair for pair in found if not ZOO[pair[0]["model"]].masked],
        "tune part": [pair for pair in found if ZOO[pair[0]["model"]].part == "tune"],
        "check part": [pair for pair in found if ZOO[pair[0]["model"]].part == "check"],
    }
    lines += [_summary(name, group) for name, group in groups.items() if group]
    lines += [
        "",
        "| model | part | truth | label before | after | points before | after | passes before | after | share | CPU s "
        "before | after |",
        "|---" * 12 + "|",
    ]
    return "\n".join([*lines, *map(_row, found)]) + "\n"


def _summary(name: str, group: Sequence[Pair]) -> str:
    old, new = (median(_passes(pair[side]) for pair in group) for side in (0, 1))
    right = [sum(_right(pair[side]) for pair in group) for side in (0, 1)]
    return f"| {name} | {len(group)} | {right[0]} | {right[1]} | {old:,.0f} | {new:,.0f} | {new / old:.2f} |"


def _row(pair: Pair) -> str:
    old, new = pair
    entry = ZOO[old["model"]]
    cells = [entry.name, entry.part, "masked" if entry.masked else "not masked"]
    cells += [_label(record) for record in pair] + [str(len(r["document"]["points"]["index"])) for r in pair]
    cells += [f"{_passes(record):,}" for record in pair] + [f"{_passes(new) / _passes(old):.2f}"]
    return "| " + " | ".join([*cells, *(f"{record['cpu_seconds']:.1f}" for record in pair)]) + " |"


def _passes(record: Record) -> int:
    return int(record["forwards"] + record["backwards"])


def _label(record: Record) -> str:
    return str(record["document"]["verdict"]["label"])


def _right(record: Record) -> bool:
    return _label(record) == ("masked" if ZOO[record["model"]].masked else "clear")


if __name__ == "__main__":
    main()
