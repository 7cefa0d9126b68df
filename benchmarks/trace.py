"""What a trace costs: CPU seconds against one forward–backward pass over an audited batch of 256 points.

    OMP_NUM_THREADS=1 python benchmarks/trace.py [--rounds 5]

Healthy networks, and the same behind a quantiser, a ripple, an honest straight-through rounding, and a zigzag made of
plain ops, whose poor gradient nothing explains, so that a trace looks twice. The pass is that of an
attack: the gradient of cross-entropy with respect to the input. Passes are counted in points, as the ledger of an audit
does.
Writes `benchmarks/trace.md`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_networks import resnet18, resnet20
from benchmarks.records import commit, figures_of
from maskaudit.repairs.blame import traced
from maskaudit.target import Target
from maskaudit.zoo.masks.inputs import QuantisedInput, SineInput

HERE = Path(__file__).parent
#: Points of an audited batch, the default of `check`.
BATCH = 256
#: Below this many CPU seconds a pass is measured `MORE` times as often: timers and garbage collection disturb it more.
QUICK, MORE = 0.5, 10
#: Share of one forward–backward pass that a trace may cost.
GOAL = 0.25


class StraightThrough(nn.Module):
    """Rounds the input to 4 levels with the identity as gradient (Bengio et al. 2013)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + ((x * 3).round() / 3 - x).detach())


class Zigzag(nn.Module):
    """Folds the input into 16 teeth; no op of it is unusual."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("teeth", torch.arange(16.0))
        self.register_buffer("folds", torch.tensor([1.0, *[-2.0, 2.0] * 7, -2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((16 * x.unsqueeze(-1) - self.teeth).relu() @ self.folds)


def cnn(side: int) -> nn.Module:
    """Two convolutions and two dense layers for grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (side // 2) ** 2, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "CNN, digits 8 × 8": (lambda: cnn(8), (1, 8, 8)),
    "CNN, 28 × 28": (lambda: cnn(28), (1, 28, 28)),
    "ResNet-20, 3 × 32 × 32": (resnet20, (3, 32, 32)),
    "ResNet-18, 3 × 32 × 32": (resnet18, (3, 32, 32)),
}


@dataclass(frozen=True)
class Row:
    """Median CPU seconds of a pass and of a trace; passes of the trace in points; points it looked at."""

    name: str
    parameters: int
    passed: float
    traced: float
    forwards: int
    backwards: int
    points: int
    suspects: int


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows = []
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        network = build().eval()
        masked = {
            "quantised input": QuantisedInput(network, 4), "rippled input": SineInput(network),
            "straight-through input": StraightThrough(network), "zigzag input": Zigzag(network),
        }  # fmt: skip
        for title, model in ((name, network), *((f"{name}, {what}", m.eval()) for what, m in masked.items())):
            rows.append(measured(title, model, shape, rounds))
            print(rows[-1], flush=True)
    (HERE / "trace.md").write_text(table(rows, rounds), encoding="utf-8")


def measured(name: str, model: nn.Module, shape: tuple[int, ...], rounds: int) -> Row:
    """Pass and trace in turn, so that whatever else the machine does falls on both."""
    x = torch.rand(BATCH, *shape)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    passes, traces = [], []
    with Target(model) as target:
        found = traced(target, x, y)
        spent = target.ledger.copy()
        forward_backward(model, x, y)
        quick = seconds(lambda: forward_backward(model, x, y)) < QUICK
        for _ in range(MORE * rounds if quick else rounds):
            passes.append(seconds(lambda: forward_backward(model, x, y)))
            traces.append(seconds(lambda: traced(target, x, y)))
    return Row(name, sum(p.numel() for p in model.parameters()), statistics.median(passes), statistics.median(traces),
               spent.forwards, spent.backwards, found.points, len(found.culprits))  # fmt: skip


def forward_backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One step of an attack on a batch."""
    leaf = x.clone().requires_grad_(True)
    torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)


def seconds(work: Callable[[], object]) -> float:
    """CPU time of the process, which other work on the machine disturbs least."""
    start = time.process_time()
    work()
    return time.process_time() - start


def table(rows: list[Row], rounds: int) -> str:
    """The committed document."""
    lines = [
        "# What a trace costs",
        "",
        f"`OMP_NUM_THREADS=1 python benchmarks/trace.py --rounds {rounds}` on {platform.machine()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s); medians of {rounds} rounds of CPU time "
        f"({MORE * rounds} where a pass takes less than {QUICK} s), untrained networks. A pass is one forward and one "
        f"backward pass over a batch of {BATCH} points, as a step of an attack makes it. The goal is a ratio of at "
        f"most {GOAL}. {figures_of([commit()])}",
        "",
        "| model | parameters | pass, ms | trace, ms | ratio | goal | points forward | points backward | looks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ratio = r.traced / r.passed
        lines.append(
            f"| {r.name} | {r.parameters:,} | {r.passed * 1e3:.1f} | {r.traced * 1e3:.1f} | {ratio:.2f} "
            f"| {'met' if ratio <= GOAL else 'missed'} | {r.forwards} | {r.backwards} | {2 if r.points > 8 else 1} |"
        )
    lines += [
        "",
        "A trace records 8 points forward and backward, hooks every op on the way, and compares the gradient with "
        "differences at 32 or 48 inputs next to them; a gradient that is zero everywhere is compared with nothing. "
        "What moves with the input is looked at in a further pass only where no gradient shows it, and phases in "
        "one that ends with the last periodic op. Hooks and small passes cost milliseconds whatever the size of "
        "the network: where a whole pass takes few of them, the goal is out of reach (on the smallest network 8 "
        "points forward and backward alone take most of what is allowed). On networks of real size the passes "
        "decide. A trace is made once per audit; its usual reference attack alone makes 40 such passes over every "
        "batch. A model on which the first, cheap look leaves a doubt (a gradient that is poor without a reason, "
        "as behind the zigzag; random answers; a correlation too near to the limit) is compared at twice the "
        "points, and along more directions until the doubt is settled; random answers are recorded anew. Where a "
        "cut parallel to a live path may be to blame, its repair costs 8 more points forward and backward.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
