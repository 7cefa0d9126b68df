"""Can the time left that a log names be trusted?

    OMP_NUM_THREADS=1 python benchmarks/eta.py [--models NAME …] [--budgets NAME …]

Audits models of the zoo with progress written to a log, as a job of CI does, and looks up the time left that the log
gave when a quarter, a half and three quarters of the time had passed. Until a white-box attack has run a log says
nothing. The aim: half of these lie within a third of what it then took.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import commit, figures_of

HERE = Path(__file__).resolve().parent
MODELS = ("standard", "pgd-at", "quantised", "logits-x1e4", "ibp", "pgd-at-x100")
BUDGETS = ("quick", "standard")
MOMENTS = (0.25, 0.5, 0.75)
#: How far an estimate may lie from the truth, as a share of it.
TOLERANCE = 1 / 3
LINE = re.compile(r"^\[ *([\d.]+) s\] .*?about ([\d.]+) (s|min|h) left\]$")
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Estimate:
    """The time left that a log gave at a moment, a share of the whole time, and the true one; in seconds."""

    moment: float
    seconds: float
    true: float

    @property
    def near(self) -> bool:
        """Whether it can be trusted."""
        return abs(self.seconds - self.true) <= TOLERANCE * self.true


def read(log: str, total: float) -> list[Estimate]:
    """The last estimates before each moment, where there is one."""
    lines = [(float(m[1]), float(m[2]) * SECONDS[m[3]]) for m in map(LINE.match, log.splitlines()) if m]
    found = []
    for moment in MOMENTS:
        before = [(at, left) for at, left in lines if at <= moment * total]
        if before:
            at, left = before[-1]
            found.append(Estimate(moment, max(0.0, left - (moment * total - at)), (1 - moment) * total))
    return found


def audited(model: str, budget: str) -> tuple[str, float]:
    """The log of an audit and its seconds by its own clock."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "maskaudit", "check", f"zoo:{model}", "--budget", budget, "--fail-on", "never"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    return done.stderr, time.monotonic() - started


def main() -> int:
    """Audit, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS), metavar="NAME")
    arguments = parser.parse_args()
    rows, trusted = [], []
    for budget in arguments.budgets:
        for model in arguments.models:
            log, total = audited(model, budget)
            estimates = read(log, total)
            trusted += [one.near for one in estimates]
            by_moment = {one.moment: f"{one.seconds:.0f} ({one.true:.0f})" for one in estimates}
            shown = " | ".join(by_moment.get(moment, "—") for moment in MOMENTS)
            rows.append(f"| {model} | {budget} | {total:.0f} | {shown} |")
            print(rows[-1], flush=True)
    print(f"{sum(trusted)} of {len(trusted)} within a third")
    head = ["# What a log says is left", "",
            "Seconds that a log gave (and that it then took) at 25, 50 and 75 % of the time; — where it gave none yet; "
            f"{sum(trusted)} of {len(trusted)} are within a third. `OMP_NUM_THREADS=1 python benchmarks/eta.py`. "
            f"{figures_of([commit()])}", "",
            "| model | budget | seconds | at 25 % | at 50 % | at 75 % |", "|---|---|---|---|---|---|"]  # fmt: skip
    (HERE / "eta.md").write_text("\n".join(head + rows) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
