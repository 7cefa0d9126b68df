"""Every peer on models whose answer can be worked out."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers import (
    PEERS,
    attack_failure,
    autoattack,
    binarization,
    gradient_alignment,
    obfuscation,
)
from benchmarks.peers.descent import Trace, descend, input_gradient, uniform_noise
from benchmarks.peers.interface import CountingModel, PeerTask, PeerUnavailableError
from maskaudit.threat import ThreatModel
from tests.benchmarks.toys import THREAT, Constant, Flipping, Halves, Rippled, Rounded, points, task


def test_passes_are_counted_in_points() -> None:
    model = CountingModel(Halves())
    x, y = points(6)
    input_gradient(model, x, y)
    with torch.no_grad():
        model(x)
    assert (model.forwards, model.backwards) == (12, 6)


def test_a_cut_graph_counts_no_backward_and_gives_a_zero_gradient() -> None:
    model = CountingModel(Constant())
    x, y = points(6)
    gradient = input_gradient(model, x, y)[2]
    assert model.backwards == 0
    assert not gradient.any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_noise_stays_in_the_ball_and_fills_it(norm: str) -> None:
    threat = ThreatModel(norm, 0.2)  # type: ignore[arg-type]
    x = torch.full((500, 4), 0.5)
    noisy = uniform_noise(x, threat, torch.Generator().manual_seed(0))
    assert bool(threat.admissible(noisy, x).all())
    lengths = threat.distance(noisy, x)
    # the share of the volume of a 4-ball, or 4-cube, within half the radius is 1/16
    assert 0.02 < float((lengths < 0.1).double().mean()) < 0.12


@pytest.mark.parametrize(("distance", "broken"), [(0.05, True), (0.15, False)])
def test_pgd_breaks_a_linear_model_exactly_within_its_reach(distance: float, broken: bool) -> None:
    given = task(Halves(), distance=distance)
    trace = descend(given.model, given.x, given.y, THREAT, seed=0)
    assert bool(trace.broken.all()) is broken
    assert bool(trace.broken.any()) is broken
    assert bool(THREAT.admissible(trace.last, given.x).all())


def test_alignment_is_one_on_a_linear_model_and_zero_without_gradient() -> None:
    assert gradient_alignment.alignment(task(Halves())) == pytest.approx(1.0, abs=1e-5)
    assert gradient_alignment.alignment(task(Rounded())) == 0.0
    assert abs(gradient_alignment.alignment(task(Rippled()))) < gradient_alignment.THRESHOLD


#: Peer, model, distance of the points from the boundary, and the indicators that must fire; no others may.
CASES = [
    ("attack-failure", Halves, 0.05, set()),
    ("attack-failure", Halves, 0.15, set()),
    ("attack-failure", Rounded, 0.08,
     {"I1 unavailable gradients", "I6 unconstrained attack failure"}),
    ("gradient-alignment", Halves, 0.05, set()),
    ("gradient-alignment", Rounded, 0.05, {"low alignment"}),
    ("gradient-alignment", Rippled, 0.05, {"low alignment"}),
    ("five-behaviours", Halves, 0.05, set()),
    ("five-behaviours", Halves, 0.15, set()),
    ("binarization", Halves, 0.05, set()),
    ("binarization", Rounded, 0.05, {"planted examples missed"}),
]  # fmt: skip


@pytest.mark.parametrize(("peer", "model", "distance", "fires"), CASES)
def test_indicators_fire_where_they_should(peer: str, model: type[nn.Module], distance: float, fires: set[str]) -> None:
    answer = PEERS[peer].run(task(model(), distance=distance))
    fired = {name for name, on in answer.indicators.items() if on}
    assert fires <= fired if fires else not fired


def test_black_box_and_a_missing_bound_give_a_rounded_model_away() -> None:
    indicators = obfuscation.run(task(Rounded(), distance=0.07)).indicators
    assert indicators["black box beats white box"]
    assert indicators["unbounded below 100 %"]


def test_success_that_does_not_grow_with_the_bound_fires() -> None:
    given = task(Constant())
    given = PeerTask(given.model, given.x, torch.zeros_like(given.y), given.threat, 0)
    assert obfuscation.run(given).indicators["larger bound, no more success"]


@pytest.mark.parametrize(("first", "second", "beaten"), [(20, 0, True), (3, 0, False), (20, 18, False)])
def test_one_attack_beats_another_only_beyond_chance(first: int, second: int, beaten: bool) -> None:
    rows = torch.arange(40)
    assert obfuscation.beats(rows < first, rows >= 40 - second) is beaten


def _trace(loss: list[float], wrong: list[bool]) -> Trace:
    x = torch.zeros(1, 2)
    return Trace(x, x, torch.tensor(loss)[:, None], torch.tensor(wrong)[:, None])


@pytest.mark.parametrize(
    ("loss", "wrong", "on"),
    [
        ([float(i) for i in range(41)], False, True),  # still rising
        ([min(float(i), 20.0) for i in range(41)], False, False),  # level since step 20
        ([0.0] * 41, False, False),  # nothing happens at all
        ([float(i) for i in range(41)], True, False),  # it succeeded
    ],
)
def test_incomplete_optimisation_is_a_loss_that_still_rises(loss: list[float], wrong: bool, on: bool) -> None:
    assert bool(attack_failure.incomplete(_trace(loss, [wrong] * 41))) is on


def test_a_random_model_is_unstable_and_a_smooth_one_is_not() -> None:
    for model, share in ((Flipping(), 0.9), (Halves(), 0.0)):
        given = task(model)
        assert float(attack_failure.unstable(given, given.x, given.y).double().mean()) >= share
    given = task(Halves())
    assert not attack_failure.unstable(given, given.x, given.y).any()


def test_the_readout_parts_the_planted_corner_from_the_inner_points() -> None:
    generator = torch.Generator().manual_seed(1)
    inner = torch.randn(200, 3, 4, generator=generator, dtype=torch.float64)
    planted = torch.full((3, 4), 6.0, dtype=torch.float64)
    planted[2] = 0.0  # in the middle of the inner points: no line parts it
    weights, offset, usable = binarization.readouts(planted, inner)
    assert usable.tolist() == [True, True, False]
    assert bool(((planted * weights).sum(1)[:2] > offset[:2]).all())
    assert bool((torch.einsum("smd,md->sm", inner, weights)[:, :2] < offset[:2]).all())


def test_features_are_what_the_last_linear_layer_reads() -> None:
    net = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2))
    x, _ = points(3)
    torch.testing.assert_close(binarization.Features(CountingModel(net))(x), net[:2](x))

    class NoLinear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2]

    torch.testing.assert_close(binarization.Features(CountingModel(NoLinear()))(x), x[:, :2])


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("", set()),
        ("Warning: there are 3 points with zero gradient! This might", {"zero gradients"}),
        ("Warning: Square Attack has decreased the robust accuracy of 2.00%.", {"Square lowers accuracy"}),
        ("Warning: it seems to be a dynamic defense! The evaluation", {"dynamic"}),
        ("Warning: it seems that more target classes (9) than possible (4) are used in APGD-T!", set()),
        ("the text says zero gradient without being a warning", set()),
    ],
)
def test_flags_are_read_from_warnings_only(text: str, raised: set[str]) -> None:
    assert {name for name, on in autoattack.read_flags(text).items() if on} == raised


@pytest.mark.parametrize("name", ["autoattack", "torchattacks-autoattack"])
def test_a_missing_package_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PeerUnavailableError, match="not installed"):
        PEERS[name].run(task(Halves()))


def test_autoattack_is_run_in_its_rand_version_for_a_random_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Attack:
        def __init__(self, model: nn.Module, **settings: object) -> None:
            asked.append(settings["version"])

        def run_standard_evaluation(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
            print("Warning: there are 1 points with zero gradient!")
            return x

    def check_randomized(*arguments: object, **named: object) -> None:
        print('Warning: it seems to be a randomized defense! Please use version="rand".')

    package, checks, utils = ModuleType("autoattack"), ModuleType("checks"), ModuleType("autoattack.other_utils")
    package.AutoAttack, package.checks = Attack, checks  # type: ignore[attr-defined]
    checks.check_randomized = check_randomized  # type: ignore[attr-defined]
    utils.Logger = lambda path: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autoattack", package)
    monkeypatch.setitem(sys.modules, "autoattack.other_utils", utils)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    plain, random = autoattack.run(task(Halves())), autoattack.run(task(Flipping(), random=True))
    assert asked == ["standard", "rand"]
    assert [name for name, on in plain.indicators.items() if on] == ["zero gradients"]
    assert [name for name, on in random.indicators.items() if on] == ["randomized", "zero gradients"]


@pytest.mark.parametrize(("classes", "fails"), [(2, True), (10, False)])
def test_torchattacks_fails_below_ten_classes_and_the_failure_is_not_hidden(classes: int, fails: bool) -> None:
    pytest.importorskip("torchattacks")
    given = task(Halves(), distance=0.15 if fails else 0.05)  # out of reach: the targeted attacks, which fail, run too
    readout = nn.Linear(8, classes)
    with torch.no_grad():
        readout.weight.zero_()
        readout.bias.fill_(-50.0)
        readout.weight[:2], readout.bias[:2] = given.model.model.readout.weight, given.model.model.readout.bias
    images = PeerTask(
        CountingModel(nn.Sequential(nn.Flatten(), readout)), given.x.view(-1, 1, 2, 4), given.y, given.threat, 0
    )
    if fails:
        with pytest.raises(IndexError):
            PEERS["torchattacks-autoattack"].run(images)
        return
    examples = PEERS["torchattacks-autoattack"].run(images).examples
    assert examples is not None
    assert bool((images.model(examples).argmax(dim=1) != images.y).all())
