"""What a zoo model is: how it is made, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from maskaudit.threat import ThreatModel

Part = Literal["tune", "check"]
Level = Literal["gradient", "loss", ""]

#: Fields of an entry that are functions.
_FUNCTIONS = ("wrap", "certificate", "known")

#: Points are certified robust, bool (N,), for clean points x (N, …), labels y (N,) and a radius ε.
Certificate = Callable[[nn.Module, Tensor, Tensor, float], Tensor]

#: Candidates (N, …) that the construction of a model knows to be adversarial, for clean points x (N, …) and a ball.
KnownExamples = Callable[[Tensor, ThreatModel], Tensor]


@runtime_checkable
class Unmaskable(Protocol):
    """A wrapper that knows how to be attacked, because it was built here."""

    def unmasked(self) -> nn.Module:
        """The same classifier with a usable gradient and usable scores; values may differ, decisions hardly."""


@dataclass(frozen=True)
class ZooEntry:
    """One model of known truth.

    Attributes:
        name: as in `zoo:NAME`.
        title: one line.
        masked: whether its gradients or its loss hide its weakness; measured (`maskaudit.zoo.truth`), not intended.
        level: where it is masked: "gradient", "loss", or "" where it is not.
        network: key of the network inside, see `maskaudit.zoo.networks.NETWORKS`.
        wrap: what is put around it.
        family: what kind of model it is, for tables: "healthy", "robust", "masked", "great".
        part: "tune" where constants were fitted on it, "check" where they were not.
        mechanisms: ids of `maskaudit.verdict.mechanisms.TITLES` that name the cause rightly; empty if not masked.
        module: path of the module that holds the culprit ("" is the root), None where no single op is to blame.
        ops: names of ops that are the culprit; empty where any op of `module` will do.
        certificate: proves points robust, where the construction allows it.
        known: gives adversarial examples that are known because they were planted.
        data: source of its points.
        norm: of the ball that it is audited in; `eps`: its radius, None for the customary one.
    """

    name: str
    title: str
    masked: bool
    level: Level
    network: str
    wrap: Callable[[nn.Module], nn.Module] | None = None
    family: Literal["healthy", "robust", "masked", "great"] = "masked"
    part: Part = "check"
    mechanisms: tuple[str, ...] = ()
    module: str | None = None
    ops: tuple[str, ...] = ()
    certificate: Certificate | None = None
    known: KnownExamples | None = None
    data: str = "digits"
    norm: Literal["Linf", "L2"] = "Linf"
    eps: float | None = None

    def radius(self, trained: Mapping[str, Any]) -> float | None:
        """The radius that it is audited at: its own, or that of its network's training; None for the customary one."""
        return self.eps if self.eps is not None or trained.get("norm") != self.norm else trained.get("eps")

    def to_dict(self) -> dict[str, Any]:
        """Plain form, without the functions."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FUNCTIONS}
