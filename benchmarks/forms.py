"""Would another form of the same network make a pass cheaper?

    python benchmarks/forms.py [--networks NAME …] [--models NAME …] [--threads N …] [--rounds 5] [--device cpu|cuda]

An attack may search on any form of the model, as long as what it finds is scored again by the model itself in
float32. The price: each form is measured against plain eager float32 in turn, on one batch: the forward pass, the pass
that also brings the input's gradient, the seconds until the first passes are done (a compiler's work), after how many
passes those are won back, and the share of points on which both forms decide alike. The strength: robust networks of
the zoo are searched on each form that needs no compiler, and what is found is scored by the network itself.

Writes `benchmarks/forms-DEVICE.md`.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_agreement import machine
from benchmarks.engine_networks import NETWORKS
from benchmarks.records import commit, figures_of
from benchmarks.trace import forward_backward
from maskaudit import api
from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.square import square
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.rescore import rescore

HERE = Path(__file__).resolve().parent
#: Points of a batch by size of network: what `check` takes by default, and what a large network affords here.
BATCH = {"small-cnn": 256, "strided-cnn": 256}
LARGE_BATCH = 64

Form = Callable[[nn.Module], nn.Module]


class Bfloat16(nn.Module):
    """The network with weights and activations in bfloat16; inputs and scores stay float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16()).float()


def channels_last(network: nn.Module) -> nn.Module:
    """Weights in channels-last order; the first convolution then carries its input over."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compiled(network: nn.Module) -> nn.Module:
    """What torch.compile makes of the network for inputs of one size."""
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]


FORMS: dict[str, Form] = {
    "eager float32": lambda network: network,
    "channels-last": channels_last,
    "bfloat16": Bfloat16,
    "compiled": compiled,
    "compiled, channels-last": lambda network: compiled(channels_last(network)),
    "compiled, bfloat16": lambda network: compiled(Bfloat16(network)),
}


#: Searches of the second table: name → attack and its settings.
SEARCHES: dict[str, tuple[Callable[..., Attempt], dict[str, Any]]] = {
    "Auto-PGD, cross-entropy, 50 steps": (apgd, {"loss": "ce", "steps": 50}),
    "Auto-PGD, margin, 50 steps": (apgd, {"loss": "margin", "steps": 50}),
    "Square, 500 queries": (square, {"queries": 500}),
}
#: Points that they search on.
POINTS = 400


@dataclass(frozen=True)
class Row:
    """Seconds of one form on one network: of its first pass, of a forward pass, and of one with the gradient."""

    network: str
    points: int
    threads: int
    form: str
    first: float
    forward: float
    gradient: float
    alike: float


@dataclass(frozen=True)
class Strength:
    """What one search on one form of a network of the zoo comes to.

    Attributes:
        points: correctly classified ones; left: those that are unbroken when the network itself scores what was found.
        refuted: points that the form saw broken and the network does not.
        seconds: of the search.
    """

    model: str
    search: str
    form: str
    points: int
    left: int
    refuted: int
    seconds: float


def main() -> int:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=["small-cnn", "resnet18"])
    parser.add_argument("--models", nargs="*", default=["pgd-at", "fashion-pgd-at", "resnet-pgd-at"], metavar="NAME")
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:  # what a compiler kept from an earlier run would hide its price
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        return report(arguments)


def report(arguments: argparse.Namespace) -> int:
    """Measure what was asked for and write the table."""
    rows: list[Row] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.networks:
            rows += measured(name, threads, arguments.rounds, arguments.device)
            print(*rows[-len(FORMS) :], sep="\n", flush=True)
    torch.set_num_threads(arguments.threads[0])
    strengths = [row for name in arguments.models for row in searched(name)]
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    text = table(rows, strengths, command, machine(arguments.device))
    (HERE / f"forms-{arguments.device}.md").write_text(text, encoding="utf-8")
    return 0


def measured(name: str, threads: int, rounds: int, device: str) -> list[Row]:
    """Every form of a network, in turn within each round, so that a busy machine slows all alike."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    plain = build().eval().requires_grad_(False).to(device)
    x = torch.rand(BATCH.get(name, LARGE_BATCH), *shape, device=device)
    with torch.no_grad():
        y = plain(x).argmax(dim=1)
    forms, first, alike = {}, {}, {}
    for form, make in FORMS.items():
        torch.compiler.reset()
        model = make(copy.deepcopy(plain))
        first[form] = seconds(lambda: (forward(model, x), forward_backward(model, x, y)), device)  # noqa: B023
        with torch.no_grad():
            alike[form] = float((model(x).argmax(dim=1) == y).double().mean())
        forms[form] = model
    times: dict[str, tuple[list[float], list[float]]] = {form: ([], []) for form in forms}
    for _ in range(rounds):
        for form, model in forms.items():
            times[form][0].append(seconds(lambda: forward(model, x), device))  # noqa: B023
            times[form][1].append(seconds(lambda: forward_backward(model, x, y), device))  # noqa: B023
    return [
        Row(name, len(x), threads, form, first[form], *(statistics.median(t) for t in times[form]), alike[form])
        for form in forms
    ]


def searched(name: str) -> list[Strength]:
    """Every search on every form that needs no compiler, on the first test points of the model's data."""
    prepared = api.prepare(api.Request(f"zoo:{name}"))
    plain = prepared.loaded.module.eval()
    index, x, y = prepared.data.sample(POINTS, 0)
    with torch.no_grad():
        correct = plain(x).argmax(dim=1) == y
    x, y, rng = x[correct], y[correct], PointRNG.create(0, "forms", index[correct])
    rows = []
    for search, (attack, settings) in SEARCHES.items():
        for form in ("eager float32", "channels-last", "bfloat16"):
            with Target(FORMS[form](copy.deepcopy(plain)), bounds=prepared.threat.bounds) as target:
                started = time.perf_counter()
                attempt = attack(target, x, y, threat=prepared.threat, rng=rng, **settings)
                taken = time.perf_counter() - started
            with Target(plain, bounds=prepared.threat.bounds) as judge:
                broken = rescore(judge.raw, attempt.examples, x, y, threat=prepared.threat).broken
            seen = attempt.first_success >= 0
            rows.append(Strength(name, search, form, len(x), int((~broken).sum()), int((seen & ~broken).sum()), taken))
            print(rows[-1], flush=True)
    return rows


def forward(model: nn.Module, x: Tensor) -> None:
    """One forward pass without a graph."""
    with torch.no_grad():
        model(x)


def seconds(work: Callable[[], object], device: str) -> float:
    """Time by the clock; the forms of one network are measured in turn."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def table(rows: list[Row], strengths: list[Strength], command: str, device: str) -> str:
    """The committed document."""
    lines = [
        "# Other forms of a pass",
        "",
        f"`{command}` on {device}. Medians, as ratios over eager float32 measured in turn on the same untrained "
        "network and batch; below 1 is cheaper. *First*: a pass of each kind, with what a compiler does before; *pays "
        f"after*: passes with a gradient until that is won back. {figures_of([commit()])}",
        "",
        "| network | points | threads | form | forward | with gradient | first, s | pays after | decides alike |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        base = next(r for r in rows if (r.network, r.threads) == (row.network, row.threads))
        saved = base.gradient - row.gradient
        pays = "" if row is base else f"{max(0.0, row.first - base.first) / saved:,.0f}" if saved > 0 else "never"
        lines.append(
            f"| {row.network} | {row.points} | {row.threads} | {row.form} | {row.forward / base.forward:.2f} "
            f"| {row.gradient / base.gradient:.2f} | {row.first:.1f} | {pays} | {row.alike:.3f} |"
        )
    lines += [
        "",
        "What a search on another form comes to; points left and refuted after the network itself has scored what was "
        "found, seconds over those on eager float32.",
        "",
        "| network | search | form | points | left unbroken | seen broken, refuted | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in strengths:
        own = next(s for s in strengths if (s.model, s.search) == (found.model, found.search))
        lines.append(
            f"| {found.model} | {found.search} | {found.form} | {found.points} | {found.left} | {found.refuted} "
            f"| {found.seconds / own.seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
