"""The torchattacks adapter: same answers as the package, none of its side effects."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit.attacks.second_opinion import external_attack
from maskaudit.attacks.torchattacks_adapter import ExternalAttackError, attack_names, available, run_torchattacks
from maskaudit.auditing.catalogue import catalogue, chosen
from maskaudit.errors import ModelError, UsageError
from maskaudit.settings import BUDGETS, AuditSettings
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.attacks.subjects import (
    L2,
    LINF,
    Noisy,
    Subjects,
    Wrapped,
    binary,
    flattened,
    one_hot,
    point_rng,
    survivors,
)

torchattacks = pytest.importorskip("torchattacks")

N = 40


def _left(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, name: str, **settings: object) -> float:
    attempt = run_torchattacks(Target(model), x, y, threat=threat, rng=point_rng(len(x)), name=name, **settings)
    return float(survivors(model, attempt.examples, x, y, threat).float().mean())


def test_available_names_the_version() -> None:
    assert available() == (True, f"torchattacks {torchattacks.__version__}")
    assert {"PGD", "PGDL2", "Square", "APGDT", "FAB"} <= set(attack_names())
    assert "LGV" not in attack_names()


def test_what_one_attack_needs_is_loaded_when_it_is_asked_for() -> None:
    program = """
import sys
from maskaudit.attacks.torchattacks_adapter import attack_names, available
assert available()[0] and "TIFGSM" in attack_names()
assert "scipy.stats._stats_py" not in sys.modules
import scipy.stats
from scipy import stats
assert stats is scipy.stats and stats.norm.cdf(0) == 0.5
assert "scipy.stats._stats_py" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_same_result_as_the_package_alone(subjects: Subjects) -> None:
    x, y = subjects.x[:N], subjects.y[:N]
    attempt = run_torchattacks(
        Target(subjects.robust), x, y, threat=LINF, rng=point_rng(N), name="PGD", steps=10, random_start=False
    )
    direct = torchattacks.PGD(subjects.robust, eps=0.2, alpha=0.05, steps=10, random_start=False)(x, y)
    torch.testing.assert_close(attempt.examples, direct)


@pytest.mark.parametrize("name", ["PGD", "FGSM", "BIM", "MIFGSM", "APGD", "APGDT", "FAB", "Square", "EOTPGD"])
@pytest.mark.parametrize("shape", ["images", "vectors", "two classes"])
def test_linf_attacks_run_on_every_shape(subjects: Subjects, name: str, shape: str) -> None:
    x, y = subjects.x[:N], subjects.y[:N]
    model: nn.Module = subjects.standard
    if shape != "images":
        x, model = x.flatten(1), flattened(model)
    if shape == "two classes":
        y, model = (y >= 5).long(), binary(model)
    settings = {"n_queries": 300} if name == "Square" else {} if name == "FGSM" else {"steps": 10}
    assert _left(model, x, y, LINF, name, **settings) <= 0.25


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PGDL2", {"alpha": 0.25, "steps": 40, "random_start": False}),
        ("Square", {"norm": "L2", "n_queries": 500}),
        ("APGD", {"norm": "L2", "steps": 40}),
    ],
)
def test_l2_attacks_break_what_the_package_breaks(subjects: Subjects, name: str, settings: dict[str, Any]) -> None:
    x, y, rng = subjects.x[:N], subjects.y[:N], point_rng(N)
    attempt = run_torchattacks(Target(subjects.standard), x, y, threat=L2, rng=rng, name=name, **settings)
    seed = {} if name == "PGDL2" else {"seed": rng.key % 2**31}
    direct = getattr(torchattacks, name)(subjects.standard, eps=L2.eps, **settings, **seed)(x, y)
    left = [survivors(subjects.standard, examples, x, y, L2) for examples in (attempt.examples, direct)]
    assert int((~left[1]).sum()) > 0
    assert torch.equal(left[0], left[1])


def test_bounds_are_mapped(subjects: Subjects) -> None:
    """The same model on pixels in [−1, 1] (ε doubled) is broken on the same points."""
    x, y = subjects.x[:N], subjects.y[:N]
    shifted = Wrapped(subjects.robust, before=lambda x: (x + 1) / 2)
    wide = ThreatModel("Linf", 0.4, (-1.0, 1.0))
    rng = point_rng(N)
    plain = run_torchattacks(Target(subjects.robust), x, y, threat=LINF, rng=rng, name="PGD", random_start=False)
    target = Target(shifted, bounds=wide.bounds)
    mapped = run_torchattacks(target, 2 * x - 1, y, threat=wide, rng=rng, name="PGD", random_start=False)
    assert wide.admissible(mapped.examples, 2 * x - 1).all()
    assert int((plain.first_success != mapped.first_success).sum()) <= 1


def test_nothing_is_left_behind(subjects: Subjects) -> None:
    class Moody(nn.Module):
        """Training mode, a dropout of its own, parameters with a gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.base = subjects.standard
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.base(x))

    model = Moody().train()
    name, parameter = list(model.named_parameters())[-1]
    parameter.grad = given = torch.ones_like(parameter)
    modes = [module.training for module in model.modules()]
    weights = [parameter.clone() for parameter in model.parameters()]
    states = (torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy(), random.getstate())
    for attack in ("APGD", "Square", "VNIFGSM"):
        run_torchattacks(Target(model), subjects.x[:8], subjects.y[:8], threat=LINF, rng=point_rng(8), name=attack)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    gradients = {key: held.grad for key, held in model.named_parameters() if held.grad is not None}
    assert list(gradients) == [name]
    assert torch.equal(gradients[name], given)
    parameter.grad = None
    subjects.standard.eval()
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state(legacy=False)["state"]["key"]).all()
    assert states[2] == random.getstate()


def test_plain_callables_hard_outputs_and_counts(subjects: Subjects) -> None:
    x, y = subjects.x[:20], subjects.y[:20]
    target = Target(lambda images: subjects.standard(images), batch_size=7)
    attempt = run_torchattacks(target, x, y, threat=LINF, rng=point_rng(20), name="PGD", steps=5)
    assert torch.equal(attempt.first_success > 0, ~survivors(subjects.standard, attempt.examples, x, y, LINF))
    assert target.ledger.forwards == int(attempt.queries.sum())
    assert target.ledger.backwards == 5 * 20
    hard = run_torchattacks(
        Target(one_hot(subjects.standard)), x, y, threat=LINF, rng=point_rng(20), name="PGD", random_start=False
    )
    assert torch.equal(hard.examples, x)


def test_same_seed_same_examples(subjects: Subjects) -> None:
    x, y = subjects.x[:20], subjects.y[:20]
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        attempt = run_torchattacks(
            Target(subjects.robust), x, y, threat=LINF, rng=point_rng(20), name="Square", n_queries=50
        )
        runs.append(attempt.examples)
    assert torch.equal(runs[0], runs[1])


def test_random_models_are_averaged(subjects: Subjects) -> None:
    target = Target(Noisy(subjects.standard, 0.1), draws=3)
    with target:
        attempt = run_torchattacks(
            target, subjects.x[:5], subjects.y[:5], threat=LINF, rng=point_rng(5), name="PGD", steps=4
        )
    assert (attempt.queries == 5).all()
    assert target.ledger.forwards == 5 * 5 * 3


def test_wrong_use_is_explained(subjects: Subjects) -> None:
    def run(threat: ThreatModel, name: str, **settings: object) -> None:
        run_torchattacks(
            Target(subjects.standard), subjects.x[:2], subjects.y[:2], threat=threat, rng=point_rng(2), name=name,
            **settings,
        )  # fmt: skip

    with pytest.raises(UsageError, match=r"no attack 'NoSuch'; available: .*PGD"):
        run(LINF, "NoSuch")
    with pytest.raises(UsageError, match="has no setting bogus; it has eps, alpha"):
        run(LINF, "PGD", bogus=1)
    with pytest.raises(UsageError, match="works in Linf"):
        run(L2, "PGD")
    with pytest.raises(UsageError, match="works in L2"):
        run(LINF, "PGDL2")


def test_an_attack_that_crashes_is_named(subjects: Subjects) -> None:
    with pytest.raises(ExternalAttackError, match="torchattacks:TIFGSM failed"):  # wants three channels
        _left(subjects.standard, subjects.x[:4], subjects.y[:4], LINF, "TIFGSM")


def test_a_failing_model_stays_a_model_error(subjects: Subjects) -> None:
    def model(x: Tensor) -> Tensor:
        raise RuntimeError("out of order")

    with pytest.raises(ModelError, match="out of order"):
        run_torchattacks(Target(model), subjects.x[:2], subjects.y[:2], threat=LINF, rng=point_rng(2), name="PGD")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, subjects: Subjects) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "torchattacks", raising=False)
    found, how = available()
    assert not found
    assert "maskaudit[torchattacks]" in how
    with pytest.raises(UsageError, match="not installed"):
        attack_names()


def test_what_a_model_prints_is_not_kept() -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def model(inputs: Tensor) -> Tensor:
        print("word " * 200_000)
        return inputs.flatten(1)[:, :10] * 10

    y = x.flatten(1)[:, :10].argmax(1)
    tracemalloc.start()
    try:
        run_torchattacks(Target(model), x, y, threat=LINF, rng=point_rng(len(x)), name="PGD", steps=20)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000, "20 calls print a million characters each"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "role", "family"),
    [("PGD", "strong", "cross_entropy"), ("FGSM", "strong", "cross_entropy"), ("CW", "strong", "other_loss"),
     ("Square", "challenger", None)],
)  # fmt: skip
def test_an_added_attack_counts_for_the_family_of_its_loss(name: str, role: str, family: str | None) -> None:
    spec = external_attack(f"torchattacks:{name}")
    assert (spec.role, spec.family) == (role, family)


def test_cross_entropy_gets_a_second_chance_on_what_an_added_attack_breaks() -> None:
    settings = AuditSettings(budget="quick", attacks=("torchattacks:CW",))
    names = [spec.name for spec in chosen(catalogue(BUDGETS["quick"]), settings)]
    assert names.index("torchattacks:CW") < names.index("apgd-ce-restarts")
