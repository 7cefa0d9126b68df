"""Every attack keeps to what the features of a table may be, and finds what is there to be found."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskaudit.api import audit
from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.catalogue import catalogue
from maskaudit.auditing.engine.interface import Job
from maskaudit.auditing.evidence import read_evidence, verify_audit
from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS
from maskaudit.target import Target
from maskaudit.target.form import Form
from maskaudit.target.rescore import rescore
from maskaudit.threat import Features, ThreatModel

#: A whole number 0 … 20 (radius 2), two real features (one with half the radius), three categories, one frozen.
FEATURES = Features(
    low=(0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0), width=(20.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    scale=(1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0), step=(0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), groups=((3, 4, 5),),
)  # fmt: skip
THREAT = ThreatModel("Linf", 0.1, features=FEATURES)
GROUP, FROZEN = [3, 4, 5], 6


def drawn(n: int, seed: int = 0) -> Tensor:
    """Points in values that the features may have, as shares of their ranges."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 7, generator=g)
    x[:, 0] = torch.randint(0, 21, (n,), generator=g) / 20
    x[:, GROUP] = nn.functional.one_hot(torch.randint(0, 3, (n,), generator=g), 3).float()
    x[:, FROZEN] = torch.randint(0, 2, (n,), generator=g).float()
    return x


class Linear(nn.Module):
    """Two classes by the sign of w·v + b for values v; it minds values that are no whole number or category."""

    weight = torch.tensor([0.15, 0.9, -0.6, 0.5, -0.4, 0.1, 3.0])

    def __init__(self, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict
        self.seen_odd = False

    def forward(self, values: Tensor) -> Tensor:
        codes = values[:, GROUP]
        odd = (values[:, 0] != values[:, 0].round()) | ~((codes == 0) | (codes == 1)).all(1) | (codes.sum(1) != 1)
        self.seen_odd |= bool(odd.any())
        score = values @ self.weight.to(values) - 2.6
        return torch.stack([-score, score], dim=1)


def breakable(x: Tensor, y: Tensor) -> Tensor:
    """Exactly which points can be broken: every category, every corner of the others."""
    model, radius = Linear(), FEATURES.radius(THREAT.eps, x)
    broken = torch.zeros(len(x), dtype=torch.bool)
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        for category in range(3):
            moved = x.clone()
            moved[:, :3] = (x[:, :3] + torch.tensor(signs) * radius[:3]).clamp(0, 1)
            moved[:, GROUP] = torch.eye(3)[category]
            broken |= model(FEATURES.decode(moved)).argmax(1) != y
    return broken


def labelled(n: int) -> tuple[Tensor, Tensor]:
    x = drawn(n)
    return x, Linear()(FEATURES.decode(x)).argmax(1)


def job(spec: AttackSpec, target: Target, x: Tensor, y: Tensor) -> Tensor:
    settings = dict(spec.settings)
    if spec.kind == "transfer":
        settings["surrogates"] = [target]
    if spec.kind == "decision":
        settings["pool"] = drawn(200, seed=5)
    if spec.kind == "universal":
        settings = {"perturbations": torch.randn(4, 7)}
    rng = PointRNG.create(0, spec.name, torch.arange(len(x)))
    return Job(spec, x, y, THREAT, rng, settings).run(target).examples


#: All but those that only a whole audit can run (`test_an_audit_through_repairs`), or that leave the ball on purpose.
SPECS = [spec for spec in catalogue(BUDGETS["quick"]).attacks if spec.phase not in ("sanity", "repaired")]


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_every_attack_brings_what_the_features_may_be(spec: AttackSpec) -> None:
    if spec.role == "second_opinion":
        pytest.importorskip("torchattacks")
    x, y = labelled(24)
    model = Linear()
    with Target(model, form=Form(features=FEATURES)) as target:
        examples = job(spec, target, x, y)
    assert not model.seen_odd, "attacks score what they will be judged by"
    assert bool(THREAT.admissible(examples, x).all())
    values = FEATURES.decode(examples)
    assert torch.equal(values[:, 0], values[:, 0].round())
    assert float((values[:, 0] - FEATURES.decode(x)[:, 0]).abs().max()) <= 2
    assert torch.equal(examples[:, GROUP].sort(dim=1).values, torch.tensor([[0.0, 0.0, 1.0]]).expand(24, 3))
    assert torch.equal(examples[:, FROZEN], x[:, FROZEN])
    assert float((examples[:, 1] - x[:, 1]).abs().max()) <= 0.05 + 1e-6


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-margin", "square", "decision", "noise"])
def test_attacks_find_what_can_be_broken(name: str) -> None:
    x, y = labelled(80)
    expected = breakable(x, y)
    assert 20 < int(expected.sum()) < 70
    with Target(Linear(), form=Form(features=FEATURES)) as target:
        examples = job(next(spec for spec in SPECS if spec.name == name), target, x, y)
        broken = rescore(target.raw, examples, x, y, threat=THREAT).broken
    assert not bool((broken & ~expected).any())
    assert int(broken.sum()) >= 0.9 * int(expected.sum())


def test_what_is_not_admissible() -> None:
    x = drawn(8)
    for column, value in ((FROZEN, 1 - x[:, FROZEN]), (0, x[:, 0] + 0.02), (1, x[:, 1] + 0.06), (3, x[:, 3] + 0.5)):
        moved = x.clone()
        moved[:, column] = value
        assert not bool(THREAT.admissible(moved, x).any())
    assert bool(THREAT.admissible(x, x).all())
    settled = THREAT.settle(torch.rand(8, 7), x)
    assert bool(THREAT.admissible(settled, x).all())


def test_the_gradient_passes_through_the_rounding() -> None:
    x = drawn(3).requires_grad_()
    FEATURES.decode(x, snap=True).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(x.grad, torch.tensor(FEATURES.width).expand(3, 7))  # type: ignore[arg-type]


@pytest.fixture
def described(tmp_path: Path) -> str:
    path = tmp_path / "features.toml"
    path.write_text(
        'feature = [{column = 0, kind = "integer", bounds = [0, 20], eps = 2}, {column = 1, bounds = [-1, 1]},'
        ' {columns = [3, 4, 5], kind = "categorical"}, {column = 6, kind = "frozen"}]'
    )
    return str(path)


def test_an_audit_of_a_table(described: str) -> None:
    x, y = labelled(120)
    found = audit(Linear(), (FEATURES.decode(x), y), features=described, eps=0.1, budget="quick", samples=64).report
    assert found.verdict.label == "clear"
    assert found.to_dict()["threat"]["features"]["groups"] == [[3, 4, 5]]
    assert any("attacks change no frozen feature" in note for note in found.notes)


class Coarse(Linear):
    """The same, its score rounded: no gradient is left."""

    def forward(self, values: Tensor) -> Tensor:
        return (40 * super().forward(values)).round() / 40


def test_an_audit_through_repairs(described: str) -> None:
    x, y = labelled(160)
    found = audit(Coarse(), (FEATURES.decode(x), y), features=described, eps=0.1, budget="quick", samples=160)
    document = found.report.to_dict()
    assert document["verdict"]["label"] == "masked"
    rows = {row["name"]: row for row in document["attacks"]}
    assert sum(row["broken"] for row in rows.values() if row["role"] == "repaired") > 0
    evidence = read_evidence(found.evidence, "evidence")
    clean = evidence.tensors["clean"][evidence.tensors["example_point"]]
    threat = ThreatModel.from_dict(evidence.metadata["threat"])
    assert threat.features is not None
    assert bool(threat.admissible(evidence.tensors["examples"], clean).all())
    checks = verify_audit(None, evidence, Coarse(), "")
    assert {check.name for check in checks if not check.holds} == {"model"}


def test_two_norms(described: str) -> None:
    x, y = labelled(40)
    with pytest.raises(UsageError, match="no common length, which L2 needs"):
        audit(Linear(), (FEATURES.decode(x), y), features=described, norm="L2", budget="quick")
