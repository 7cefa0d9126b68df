"""Every attack keeps to what the features of a table may be, and finds what is there to be found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskaudit.api import audit
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable
from maskaudit.auditing.catalogue import catalogue
from maskaudit.auditing.engine.interface import Job
from maskaudit.auditing.evidence import read_evidence, verify_audit
from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS
from maskaudit.target import Target
from maskaudit.target.form import Form
from maskaudit.target.rescore import rescore
from maskaudit.threat import Features, Norm, ThreatModel

#: A whole number 0 … 20 (radius 2), two real features (one with half the radius), three categories, one frozen.
FEATURES = Features(
    low=(0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0), width=(20.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    scale=(1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0), step=(0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), groups=((3, 4, 5),),
)  # fmt: skip
THREAT = ThreatModel("Linf", 0.1, features=FEATURES)
ELLIPSOID = ThreatModel("L2", 0.15, features=FEATURES)
NORMS = pytest.mark.parametrize("threat", [THREAT, ELLIPSOID], ids=["Linf", "L2"])
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


def furthest(threat: ThreatModel) -> Iterator[Tensor]:
    """Changes of the first three features among which are those that a linear model minds most."""
    if threat.norm == "Linf":
        radius = FEATURES.radius(threat.eps, torch.zeros(1))
        for signs in itertools.product((-1.0, 1.0), repeat=3):
            yield torch.tensor(signs) * radius[:3]
        return
    for steps in range(-3, 4):
        left = max(0.0, threat.eps**2 - (0.05 * steps) ** 2) ** 0.5
        for angle in torch.linspace(0, 2 * torch.pi, 180):
            yield torch.tensor([0.05 * steps, 0.5 * left * angle.cos(), left * angle.sin()])


def breakable(x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Exactly which points can be broken (in L2 up to the angle): every category, every extreme of the others."""
    model = Linear()
    broken = torch.zeros(len(x), dtype=torch.bool)
    for change in furthest(threat):
        for category in range(3):
            moved = x.clone()
            moved[:, :3] = (x[:, :3] + change).clamp(0, 1)
            moved[:, GROUP] = torch.eye(3)[category]
            broken |= model(FEATURES.decode(moved)).argmax(1) != y
    return broken


def labelled(n: int) -> tuple[Tensor, Tensor]:
    x = drawn(n)
    return x, Linear()(FEATURES.decode(x)).argmax(1)


def job(spec: AttackSpec, target: Target, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    settings = dict(spec.settings)
    if spec.kind == "transfer":
        settings["surrogates"] = [target]
    if spec.kind == "decision":
        settings["pool"] = drawn(200, seed=5)
    if spec.kind == "universal":
        settings = {"perturbations": torch.randn(4, 7)}
    rng = PointRNG.create(0, spec.name, torch.arange(len(x)))
    return Job(spec, x, y, threat, rng, settings).run(target).examples


#: All but those that only a whole audit can run (`test_an_audit_through_repairs`), that leave the ball on purpose, that
#: are not for features (`test_bounds_are_not_for_features`), or that fail on so few coordinates (torchattacks' in L2).
CASES = [
    (spec, threat)
    for threat in (THREAT, ELLIPSOID)
    for spec in catalogue(BUDGETS["quick"], norm=threat.norm).attacks
    if spec.phase not in ("sanity", "repaired", "bounds")
    if (spec.name, threat.norm) != ("torchattacks-square", "L2")
]


@pytest.mark.parametrize(("spec", "threat"), CASES, ids=[f"{spec.name}-{threat.norm}" for spec, threat in CASES])
def test_every_attack_brings_what_the_features_may_be(spec: AttackSpec, threat: ThreatModel) -> None:
    if spec.role == "second_opinion":
        pytest.importorskip("torchattacks")
    x, y = labelled(24)
    model = Linear()
    with Target(model, form=Form(features=FEATURES)) as target:
        examples = job(spec, target, x, y, threat)
    assert not model.seen_odd, "attacks score what they will be judged by"
    assert bool(threat.admissible(examples, x).all())
    values = FEATURES.decode(examples)
    assert torch.equal(values[:, 0], values[:, 0].round())
    jump = (values[:, 0] - FEATURES.decode(x)[:, 0]).abs()
    assert float(jump.max()) <= (2 if threat is THREAT else 3)
    assert torch.equal(examples[:, GROUP].sort(dim=1).values, torch.tensor([[0.0, 0.0, 1.0]]).expand(24, 3))
    assert torch.equal(examples[:, FROZEN], x[:, FROZEN])
    units = torch.stack([jump / 20, (examples[:, 1] - x[:, 1]).abs() / 0.5, (examples[:, 2] - x[:, 2]).abs()])
    assert float(units.norm(torch.inf if threat is THREAT else 2.0, dim=0).max()) <= threat.eps + 2e-6


@NORMS
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-margin", "square", "decision", "noise"])
def test_attacks_find_what_can_be_broken(name: str, threat: ThreatModel) -> None:
    x, y = labelled(80)
    expected = breakable(x, y, threat)
    assert 20 < int(expected.sum()) < 70
    with Target(Linear(), form=Form(features=FEATURES)) as target:
        examples = job(next(spec for spec, _ in CASES if spec.name == name), target, x, y, threat)
        broken = rescore(target.raw, examples, x, y, threat=threat).broken
    assert not bool((broken & ~expected).any())
    assert int(broken.sum()) >= 0.9 * int(expected.sum())


@NORMS
def test_what_is_not_admissible(threat: ThreatModel) -> None:
    x = drawn(8)
    for column, value in ((FROZEN, 1 - x[:, FROZEN]), (0, x[:, 0] + 0.02), (1, x[:, 1] + 0.08), (3, x[:, 3] + 0.5)):
        moved = x.clone()
        moved[:, column] = value
        assert not bool(threat.admissible(moved, x).any())
    assert bool(threat.admissible(x, x).all())
    settled = threat.settle(torch.rand(8, 7), x)
    assert bool(threat.admissible(settled, x).all())


def test_an_ellipsoid_counts_all_changes_together() -> None:
    x = drawn(1).fill_(0.5)
    x[:, GROUP], x[:, FROZEN] = torch.tensor([1.0, 0.0, 0.0]), 1.0
    changes = {(0.1, 0.0, 0.0): True, (0.05, 0.05, 0.05): True, (0.05, 0.0, 0.14): True, (0.05, 0.0, 0.145): False,
               (0.1, 0.05, 0.1): False, (0.0, 0.074, 0.0): True, (0.0, 0.076, 0.0): False}  # fmt: skip
    for change, admitted in changes.items():
        moved = x.clone()
        moved[:, :3] += torch.tensor(change)
        moved[:, GROUP] = torch.tensor([0.0, 0.0, 1.0])
        assert bool(ELLIPSOID.admissible(moved, x)) == admitted, change


@NORMS
@pytest.mark.parametrize("scale", [1e-4, 1e-2])
def test_a_narrow_feature_survives_rounding(threat: ThreatModel, scale: float) -> None:
    features = Features((0.0, 0.0), (1.0, 1.0), (1.0, scale), (0.0, 0.0))
    threat = ThreatModel(threat.norm, 0.1, features=features)
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(1))
    assert bool(threat.admissible(threat.settle(torch.rand(64, 2), x), x).all())
    far = x.clone()
    far[:, 1] += 0.2 * scale + 2e-6
    assert not bool(threat.admissible(far, x).any())


def test_steepest_ascent_in_an_ellipsoid() -> None:
    gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    step = ELLIPSOID.eps * ELLIPSOID.step_direction(gradient)
    gain = (step * gradient).sum(dim=1)
    assert torch.allclose(gain, ELLIPSOID.eps * ELLIPSOID.dual_norm(gradient), rtol=1e-5)
    for other in torch.randn(50, 5, 7, generator=torch.Generator().manual_seed(3)):
        size = (other[:, :3] / torch.tensor(FEATURES.scale)[:3]).norm(dim=1, keepdim=True)
        other[:, :3] *= ELLIPSOID.eps / size
        other[:, 3:] = other[:, 3:].sign() * (torch.tensor(FEATURES.scale)[3:] > 0)
        assert bool(((other * gradient).sum(dim=1) <= gain + 1e-5).all())


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


@pytest.mark.heavy
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_audit_of_a_table(described: str, norm: Norm) -> None:
    x, y = labelled(120)
    points = FEATURES.decode(x), y
    found = audit(Linear(), points, features=described, norm=norm, eps=0.1, budget="quick", samples=64).report
    assert found.verdict.label == "clear"
    assert found.to_dict()["threat"]["features"]["groups"] == [[3, 4, 5]]
    assert any("attacks change no frozen feature" in note for note in found.notes)


class Coarse(Linear):
    """The same, its score rounded: no gradient is left."""

    def forward(self, values: Tensor) -> Tensor:
        return (40 * super().forward(values)).round() / 40


@pytest.mark.heavy
def test_an_audit_through_repairs(described: str) -> None:
    x, y = labelled(160)
    points = FEATURES.decode(x), y
    found = audit(Coarse(), points, features=described, norm="Linf", eps=0.1, budget="quick", samples=160)
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


def test_bounds_are_not_for_features() -> None:
    x, y = labelled(4)
    spec = next(spec for spec in catalogue(BUDGETS["quick"]).attacks if spec.phase == "bounds")
    with Target(Linear(), form=Form(features=FEATURES)) as target, pytest.raises(AttackUnavailable, match="plain"):
        job(spec, target, x, y, THREAT)


def test_features_are_shares() -> None:
    with pytest.raises(UsageError, match="bounds must be 0 and 1"):
        ThreatModel("L2", 0.1, (0.0, 255.0), FEATURES)
