"""Does the accuracy of a whole test set cost less than official AutoAttack, and is it as low?

    PYTHONPATH=CLONE-OF-AUTO-ATTACK OMP_NUM_THREADS=1 python benchmarks/whole_set.py [--only NAME …]
    python benchmarks/whole_set.py --render

Audit (`--samples all`, the standard budget, verdict and probes included) and official AutoAttack (`standard`) get the
same points, one after the other on the same machine, each in one thread. Examples of both are scored by the code that
scores an audit's own. The networks on CIFAR-10 are those of `cifar.py`. Finished runs are lines of `whole_set.jsonl`,
the table is `whole-set.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn

from benchmarks.published import checked
from benchmarks.records import Record, RecordFile, commit, machine
from benchmarks.running import attacked
from maskaudit.data import load_data
from maskaudit.sources import load_model
from maskaudit.threat import ThreatModel

HERE = Path(__file__).resolve().parent
#: Network, its data, the radius and the numbers of points.
SUBJECTS: dict[str, tuple[str, str, float, tuple[int, ...]]] = {
    "fashion-standard": ("zoo:fashion-standard", "fashion-mnist", 0.1, (200, 1000)),
    "fashion-pgd-at": ("zoo:fashion-pgd-at", "fashion-mnist", 0.1, (200, 1000)),
    "cifar-standard": ("py:benchmarks.cifar_networks:standard", "cifar-10", 8 / 255, (200, 1000)),
    "cifar-robust": ("py:benchmarks.cifar_networks:robust", "cifar-10", 8 / 255, (200, 1000)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--points", nargs="*", type=int, metavar="N", help="only these numbers of points")
    parser.add_argument("--again", action="store_true", help="audit again what was audited")
    parser.add_argument("--render", action="store_true", help="write the table from the kept runs alone")
    parser.add_argument("--records", type=Path, default=HERE / "whole_set.jsonl")
    asked = parser.parse_args(arguments)
    file = RecordFile(asked.records)
    for name in () if asked.render else asked.only:
        for n in sorted(set(SUBJECTS[name][3]) & set(asked.points or SUBJECTS[name][3])):
            for kind, run in (("audit", audit), ("autoattack", autoattack)):
                known = any((r["kind"], r["model"], r["points"]) == (kind, name, n) for r in file.read())
                if not known or (asked.again and kind == "audit"):
                    record = {"kind": kind, "model": name, "points": n, "commit": commit(), "machine": machine()}
                    file.append(record | run(name, n))
    (HERE / "whole-set.md").write_text(render(file.read()), encoding="utf-8")


def audit(name: str, n: int) -> Record:
    """An audit of the first `n` points by the command line, in a process of its own."""
    spec, source, eps, _ = SUBJECTS[name]
    data = load_data(source)
    with tempfile.TemporaryDirectory() as folder:
        points = Path(folder) / "points.npz"
        np.savez(points, x=data.x[:n].numpy(), y=data.y[:n].numpy())
        line = [spec, "--data", str(points), "--bounds", "0,1", "--eps", str(eps), "--samples", "all"]
        document, cost = checked(line, Path(folder) / "out")
    of, timing = document["points"], document["timing"]
    robust = {i: int(c and not b) for i, c, b in zip(of["index"], of["correct"], of["broken_by"], strict=True)}
    return {
        "label": document["verdict"]["label"], "unbroken": [robust[i] for i in range(n)],
        "forwards": timing["forwards"], "backwards": timing["backwards"], **cost,
    }  # fmt: skip


def autoattack(name: str, n: int) -> Record:
    """Official AutoAttack on the first `n` points, here."""
    spec, source, eps, _ = SUBJECTS[name]
    torch.set_num_threads(1)
    data = load_data(source)
    model = load_model(spec).module
    assert isinstance(model, nn.Module)
    return attacked("autoattack", model, data.x[:n], data.y[:n], ThreatModel("Linf", eps, data.bounds), seed=0)


def render(records: Sequence[Record]) -> str:
    """The table."""
    newest = {(r["model"], r["points"], r["kind"]): r for r in records}
    commits, machines = (", ".join(sorted({r[field] for r in records})) for field in ("commit", "machine"))
    lines = [
        "# The accuracy of a whole test set, beside official AutoAttack", "",
        "`python benchmarks/whole_set.py`: `maskaudit check … --samples all` at the standard budget, verdict, probes "
        "and start of the program included, and AutoAttack `standard` on the same points, one thread each. Robust: "
        f"points whose answer is right and that nothing broke. Made at commit {commits} on {machines}.", "",
        "| network | points | verdict | robust, audit | AutoAttack | only the audit breaks | only AutoAttack "
        "| passes, audit | AutoAttack | CPU s, audit | AutoAttack | share |", "|---" * 12 + "|",
    ]  # fmt: skip
    for name, n, kind in newest:
        audit, peer = newest[name, n, kind], newest.get((name, n, "autoattack"))
        if kind == "audit" and peer is not None:
            lines.append(_row(name, n, audit, peer))
    return "\n".join(lines) + "\n"


def _row(name: str, n: int, audit: Record, peer: Record) -> str:
    ours, theirs = audit["unbroken"], peer["unbroken"]
    cells = [
        name, f"{n:,}", audit["label"], str(sum(ours)), str(sum(theirs)),
        str(sum(not a and b for a, b in zip(ours, theirs, strict=True))),
        str(sum(a and not b for a, b in zip(ours, theirs, strict=True))),
        *(f"{r['forwards'] + r['backwards']:,}" for r in (audit, peer)),
        *(f"{r['cpu_seconds']:.0f}" for r in (audit, peer)), f"{audit['cpu_seconds'] / peer['cpu_seconds']:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
