"""The same attack by every engine: ours, torchattacks, foolbox, the official AutoAttack.

Peers are measured where they can be imported; the official one lives at
https://github.com/fra31/auto-attack and is put on PYTHONPATH.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.decision import decision_based
from maskaudit.attacks.finite_differences import finite_differences
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import pgd
from maskaudit.attacks.square import square
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]
Settings = Callable[[int, int], dict[str, Any]]

#: Points per pass, for every engine.
BATCH = 256
#: Our attacks, and their settings from steps (or queries, or draws) and target classes.
OURS: dict[str, tuple[Callable[..., Attempt], Settings]] = {
    "pgd": (pgd, lambda steps, _: {"steps": steps}),
    "apgd-ce": (apgd, lambda steps, _: {"steps": steps}),
    "apgd-t": (apgd, lambda steps, targets: {"steps": steps, "loss": "targeted-dlr", "targets": targets}),
    "square": (square, lambda steps, _: {"queries": steps}),
    "finite-differences": (finite_differences, lambda steps, _: {"queries": steps}),
    "decision": (decision_based, lambda steps, _: {"queries": steps}),
    "noise": (random_noise, lambda steps, _: {"draws": steps}),
}
#: What no peer has in this form.
ALONE = ("finite-differences", "decision", "noise")
#: What passes forward alone.
FORWARD = ("square", "decision", "noise")


class Counted(nn.Module):
    """A network that counts the points of its forward and backward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        counts = {"forwards": 0, "backwards": 0}

        def count(what: str, points: int) -> None:
            counts[what] += points

        # Kept out of the module's attributes: an audit puts those back when it ends.
        self.count, self.counted = count, lambda what: counts[what]

    @property
    def forwards(self) -> int:
        """Points passed forward so far."""
        return self.counted("forwards")

    @property
    def backwards(self) -> int:
        """Points passed backward so far."""
        return self.counted("backwards")

    def forward(self, x: Tensor) -> Tensor:
        self.count("forwards", len(x))
        scores: Tensor = self.network(x)
        if x.requires_grad and scores.requires_grad:
            scores.register_hook(lambda _gradient: self.count("backwards", len(x)))
        return scores


def subjects(attack: str, steps: int, targets: int, eps: float) -> dict[str, Run]:
    """Engine → function (network, x, y) → examples, for one of the attacks of the benchmark."""
    found = {"maskaudit": _ours(attack, steps, targets, eps)}
    if attack in ALONE:
        return found
    if importlib.util.find_spec("torchattacks"):
        found["torchattacks"] = _torchattacks(attack, steps, targets, eps)
    if importlib.util.find_spec("foolbox") and attack == "pgd":
        found["foolbox"] = _foolbox(steps, eps)
    if importlib.util.find_spec("autoattack") and attack != "pgd":
        found["autoattack"] = _official(attack, steps, targets, eps)
    return found


def _ours(attack: str, steps: int, targets: int, eps: float) -> Run:
    threat = ThreatModel("Linf", eps)

    def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        rng = PointRNG.create(0, attack, torch.arange(len(x), device=x.device))
        with Target(network, batch_size=BATCH, device=x.device) as target, target.late_checks():
            function, settings = OURS[attack]
            attempt: Attempt = function(target, x, y, threat=threat, rng=rng, **settings(steps, targets))
        return attempt.examples

    return run


def _batched(make: Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]) -> Run:
    def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = make(network)
        return torch.cat([attack(a, b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])

    return run


def _torchattacks(attack: str, steps: int, targets: int, eps: float) -> Run:
    import torchattacks

    def make(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        if attack == "pgd":
            return torchattacks.PGD(network, eps=eps, alpha=2.5 * eps / steps, steps=steps)  # type: ignore[no-any-return]
        if attack == "apgd-ce":
            return torchattacks.APGD(network, eps=eps, steps=steps, n_restarts=1, loss="ce")  # type: ignore[no-any-return]
        if attack == "apgd-t":
            return torchattacks.APGDT(network, eps=eps, steps=steps, n_restarts=1, n_classes=targets + 1)  # type: ignore[no-any-return]
        return torchattacks.Square(network, eps=eps, n_queries=steps, n_restarts=1)  # type: ignore[no-any-return]

    return _batched(make)


def _foolbox(steps: int, eps: float) -> Run:
    import foolbox

    def make(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        attack = foolbox.attacks.LinfPGD(steps=steps)
        wrapped = foolbox.PyTorchModel(network, bounds=(0, 1))
        return lambda x, y: attack.run(wrapped, x, y, epsilon=eps)  # type: ignore[no-any-return]

    return _batched(make)


def _official(attack: str, steps: int, targets: int, eps: float) -> Run:
    from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from autoattack.square import SquareAttack

    def make(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        device = str(next(network.parameters()).device)
        common = {"norm": "Linf", "eps": eps, "seed": 0, "verbose": False, "device": device, "n_restarts": 1}
        if attack == "apgd-ce":
            return APGDAttack(network, n_iter=steps, loss="ce", **common).perturb  # type: ignore[no-any-return]
        if attack == "apgd-t":
            return APGDAttack_targeted(network, n_iter=steps, n_target_classes=targets, **common).perturb  # type: ignore[no-any-return]
        return SquareAttack(network, p_init=0.8, n_queries=steps, resc_schedule=False, **common).perturb  # type: ignore[no-any-return]

    return _batched(make)
