"""Small audits that differ in what they find and how they end, each made once in a process."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.auditing.evidence import Check, read_evidence, verify_audit
from maskaudit.data import load_data
from maskaudit.loading import LoadedModel
from maskaudit.settings import AuditSettings
from maskaudit.threat import Norm
from maskaudit.zoo import ZOO

from .branch_models import Inception, trained

#: Attacks and probes of an audit on request.
FEW = ("noise", "square", "zero-gradient")
#: What takes most of an audit of a robust network.
SLOW = ("decision", "finite-differences", "square-near", "transfer", "apgd-near")


@dataclass(frozen=True)
class Example:
    """An audit: its document as a file holds it, its evidence, and the model as a reviewer opens it."""

    document: dict[str, Any]
    evidence: bytes
    loaded: LoadedModel


class Failing(nn.Module):
    """A network that raises from some pass on."""

    def __init__(self, net: nn.Module, passes: int) -> None:
        super().__init__()
        self.net, self.left = net, [passes]

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise RuntimeError("out of order")
        scores: Tensor = self.net(x)
        return scores


def of_the_zoo(name: str, samples: int, *, ball: tuple[Norm, float] | None = None, **options: Any) -> Example:
    """An audit of a zoo model in its own ball or another, on its own data."""
    entry = ZOO[name]
    settings = AuditSettings(**{"budget": "quick", "samples": samples, **options})
    norm, eps = ball or (entry.norm, entry.eps)
    request = api.Request(f"zoo:{name}", data=entry.data, norm=norm, eps=eps, settings=settings)
    audit = api.run(api.prepare(request))
    return Example(json.loads(audit.report.to_json()), audit.evidence, api.load(f"zoo:{name}"))


def broken_off(passes: int) -> Example:
    """An audit of a model that fails in the midst of it."""
    net = api.load("zoo:quantised").module
    audit = api.audit(Failing(net, passes), load_data("digits", split="test"), budget="quick", samples=24)
    assert audit.failure is not None
    return Example(json.loads(audit.report.to_json()), audit.evidence, api.in_memory(Failing(net, 10**9)))


def with_bounds_and_a_branch() -> Example:
    """An audit of a network of branches that is bounded, and searched through one branch alone."""
    network = trained(Inception(), 60)
    audit = api.audit(
        network, load_data("digits", split="test"), eps=0.02, budget="quick", samples=24, certify=True,
        branches=("b5", "pool"), ignore=SLOW,
    )  # fmt: skip
    return Example(json.loads(audit.report.to_json()), audit.evidence, api.in_memory(network))


def of_a_table() -> Example:
    """An audit of a small network on a table whose columns have units of their own."""
    numbers = torch.Generator().manual_seed(0)
    age, dose = torch.randint(18, 91, (200,), generator=numbers).float(), 400 * torch.rand(200, generator=numbers)
    weights = torch.tensor([[-1 / 20, 1 / 80], [1 / 20, -1 / 80]])

    def network(x: Tensor) -> Tensor:
        return (x - torch.tensor([54.0, 200.0])) @ weights.T

    columns = {"feature": [{"column": 0, "kind": "integer", "bounds": [18, 90], "eps": 3},
                           {"column": 1, "bounds": [0, 400]}]}  # fmt: skip
    with TemporaryDirectory() as folder:
        (file := Path(folder) / "features.json").write_text(json.dumps(columns))
        x = torch.stack([age, dose], 1)
        audit = api.audit(
            network, (x, network(x).argmax(1)), features=str(file), eps=0.05, budget="quick", samples=32, ignore=SLOW
        )
    return Example(json.loads(audit.report.to_json()), audit.evidence, api.in_memory(network))


def of_a_callable(*, black_box: bool = False) -> Example:
    """An audit of a function that hides its module and gives labels only."""
    net = api.load("zoo:hard-labels").module

    def answer(x: Tensor) -> Tensor:
        scores: Tensor = net(x).detach()
        return scores

    data = load_data("digits", split="test")
    audit = api.audit(answer, data, budget="quick", samples=24, black_box=black_box)
    return Example(json.loads(audit.report.to_json()), audit.evidence, api.in_memory(answer))


MAKERS: dict[str, Callable[[], Example]] = {
    "masked at gradient level": lambda: of_the_zoo("quantised", 32, claim=0.9),
    "masked at loss level": lambda: of_the_zoo("logits-x1e4", 40),
    "clear": lambda: of_the_zoo("standard", 96),
    "robust, with a certificate": lambda: of_the_zoo("pgd-at", 10, certified=0.2, claim=0.2, ignore=SLOW),
    "random": lambda: of_the_zoo("dropout-on", 10, ignore=SLOW),
    "broken off": lambda: broken_off(400),
    "a callable with hard labels": of_a_callable,
    "a black box": lambda: of_a_callable(black_box=True),
    "bounds and branches": with_bounds_and_a_branch,
    "a table": of_a_table,
    "few parts on request": lambda: of_the_zoo("logits-x1e4", 30, select=FEW),
    "L2": lambda: of_the_zoo("standard", 20, ball=("L2", 0.8)),
}


@functools.cache
def example(name: str) -> Example:
    """One of `MAKERS`."""
    return MAKERS[name]()


def checks(one: Example) -> dict[str, Check]:
    """What `verify` finds, by name."""
    found = verify_audit(one.document, read_evidence(one.evidence, "evidence"), one.loaded.module, one.loaded.sha256)
    return {check.name: check for check in found}


def failed(one: Example) -> dict[str, str]:
    """What does not hold, with its reason."""
    return {name: check.detail for name, check in checks(one).items() if not check.holds}
