"""On an accelerator no step of an attack waits for it, and nothing is carried to and fro.

The meta device stands in for one: its tensors have shapes and no values, so code that asks for a value, or mixes
its tensors with others, fails at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskaudit.attacks import resident
from maskaudit.attacks import square as square_module
from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.decision import attack as decision
from maskaudit.attacks.decision import decision_based, sign_flips
from maskaudit.attacks.finite_differences import finite_differences
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import pgd
from maskaudit.attacks.square import square
from maskaudit.attacks.transfer import transfer
from maskaudit.attacks.universal import universal
from maskaudit.auditing.engine.interface import Job
from maskaudit.rng import PointRNG
from maskaudit.target import EndOfPass, Target
from maskaudit.target.scores import Unchecked
from maskaudit.threat import Norm, ThreatModel

META = torch.device("meta")
#: Passes until the attack is ended: five steps or more of every attack.
PASSES = 20
#: Steps whose random numbers are drawn at once, so that this happens while we watch.
BLOCK = 4
ENDLESS = 10_000


class EnoughSeen(EndOfPass):
    """Ends an attack that has shown what it does."""


class Watched(nn.Module):
    """A network on the meta device that ends the attack after `PASSES` passes and tells when steps begin."""

    def __init__(self, shape: tuple[int, ...], begin: Callable[[], None]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 4)).to(META)
        self.begin, self.passes = begin, 0

    def forward(self, x: Tensor) -> Tensor:
        assert x.device == META, "the model was given points from elsewhere"
        self.passes += 1
        if self.passes == 3:
            self.begin()
        if self.passes > PASSES:
            raise EnoughSeen
        return self.body(x)


class CarriedOps(TorchDispatchMode):
    """Notes operations that carry a tensor to or from the device once steps have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.watching, self.seen, self.steps = False, [], 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.watching:
            self.steps += 1
            given = [a for a in args if isinstance(a, Tensor) and (a.dim() or a.device == META)]
            if isinstance(out, Tensor) and any(a.device != out.device for a in given):
                self.seen.append(str(func))
        return out


class BuiltFromValues(TorchFunctionMode):
    """Notes tensors that are built on the device from values of the host, which makes both wait."""

    def __init__(self) -> None:
        super().__init__()
        self.watching, self.seen = False, []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        builds = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if self.watching and builds and torch.device(kwargs.get("device") or "cpu") == META:
            self.seen.append(str(func))
        return func(*args, **kwargs)


ATTACKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pgd": (pgd, {"steps": ENDLESS}),
    "apgd": (apgd, {"steps": 30}),
    "apgd giving up": (apgd, {"steps": 30, "reach": 0.4}),
    "apgd targeted": (apgd, {"steps": 30, "loss": "targeted-dlr", "targets": 2}),
    "apgd rescaled": (apgd, {"steps": 30, "loss": "rescaled"}),
    "square": (square, {"queries": ENDLESS}),
    "noise": (random_noise, {"draws": ENDLESS}),
    "universal": (universal, {"perturbations": torch.rand(5000, 2, 3, 3)}),
    "rays": (decision_based, {"queries": ENDLESS, "method": "rays"}),
    "hopskipjump": (decision_based, {"queries": ENDLESS, "method": "hopskipjump"}),
    "finite differences": (finite_differences, {"queries": ENDLESS, "coordinate_limit": 5}),
    "transfer": (transfer, {"queries": ENDLESS, "steps": 3, "surrogates": 2}),
}
SHAPE = (2, 3, 3)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[CarriedOps, BuiltFromValues]]:
    """Runs an attack on the meta device, where no value can be read, and says what it did from its third pass on."""
    monkeypatch.setattr(resident, "LOOK_EVERY", ENDLESS)
    monkeypatch.setattr(Unchecked, "settle", lambda _self: None)
    for module, name in ((square_module, "BLOCK"), (sign_flips, "BLOCK"), (decision, "SIGN_FLIPS_BLOCK")):
        monkeypatch.setattr(module, name, BLOCK)

    def run(attack: Any, norm: Norm, reject_class: int | None = None, **settings: Any) -> tuple[CarriedOps, Any]:
        carried, built = CarriedOps(), BuiltFromValues()

        def begin() -> None:
            carried.watching = built.watching = True

        network = Watched(SHAPE, begin)
        target = Target(network, device=META, mean=(0.1, 0.2), std=(0.5, 0.5), reject_class=reject_class)
        if "surrogates" in settings:
            settings["surrogates"] = [Target(network.body, device=META) for _ in range(settings["surrogates"])]
        rng = PointRNG.create(0, "test", torch.arange(12))
        spec = AttackSpec("mine", "", "random", "challenger", attack)
        labels = torch.zeros(12, dtype=torch.int64)
        job = Job(spec, torch.rand(12, *SHAPE), labels, ThreatModel(norm, 0.1), rng, settings)
        with pytest.raises(EnoughSeen), carried, built:
            job.run(target)
        assert carried.steps > 50, "nothing was watched"
        return carried, built

    return run


@pytest.mark.parametrize(("name", "norm"), [(name, ("L2", "Linf")[i % 2]) for i, name in enumerate(ATTACKS)])
def test_steps_neither_ask_nor_carry(name: str, norm: Norm, watched: Any) -> None:
    attack, settings = ATTACKS[name]
    carried, built = watched(attack, norm, **settings)
    assert carried.seen == []
    assert built.seen == []


def test_a_class_that_means_a_refusal_changes_nothing_of_that(watched: Any) -> None:
    carried, built = watched(apgd, "Linf", reject_class=3, loss="margin")
    assert carried.seen == built.seen == []


def _asks(target: Target, x: Tensor, y: Tensor, **_: Any) -> None:
    while True:
        if bool((target.margin(target.scores(x), y) > 0).any()):
            return


def _carries(target: Target, x: Tensor, y: Tensor, **_: Any) -> None:
    while True:
        target.scores(torch.rand(x.shape).to(x.device))


def _builds(target: Target, x: Tensor, y: Tensor, **_: Any) -> None:
    while True:
        target.scores(x + torch.tensor(0.5, device=x.device))


def test_the_watch_sees_what_it_is_for(watched: Any) -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        watched(_asks, "Linf")
    assert watched(_carries, "Linf")[0].seen
    assert watched(_builds, "Linf")[1].seen
