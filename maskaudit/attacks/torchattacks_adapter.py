"""Any attack of torchattacks as an attack of ours: the second opinion.

H. Kim, "Torchattacks: a PyTorch repository for adversarial attacks", 2020. Version 3.5.1 has
habits that would spoil an audit; the adapter works around each of them:

- it assumes pixels in [0, 1] and checks nothing: inputs, ε and step sizes are rescaled on the
  way in, examples on the way out;
- it changes mode flags for good (also after an exception), reseeds the global random streams and
  fills `.grad` of parameters: everything is put back;
- it refuses plain callables and needs a module with a device: the target is wrapped in one, which
  also keeps parameters out of its sight;
- it fails with an IndexError below ten classes: the number of classes is passed on and, where a
  loss needs the third logit, classes that can never win are added;
- its APGD, Square, PGDL2 and others crash on vectors: those are shown as images (N, 1, 1, D).

Examples leave the adapter only after projection into the ball and the bounds.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.attacks.interface import Attempt
from maskaudit.errors import MaskauditError, ModelError, UsageError, first_line
from maskaudit.rng import PointRNG
from maskaudit.sums import column
from maskaudit.target import Target
from maskaudit.target.preserve import preserved
from maskaudit.threat import ThreatModel

INSTALL_HINT = "install it with: pip install 'maskaudit[torchattacks]'"
#: Not attacks on a model alone: a combinator, and one that retrains the model.
NOT_RUNNABLE = ("MultiAttack", "LGV")
#: Attacks whose loss or defaults assume ten classes get at least this many.
LEAST_CLASSES = 10
#: Scores of added classes lie this far below the smallest real one; they get no gradient and never win.
ADDED_CLASS_GAP = 100.0
#: Steps and queries where torchattacks' own default is below what an audit spends (matched to our PGD-40, Square-500).
DEFAULT_STEPS, DEFAULT_QUERIES = 40, 500
#: Attacks of a fixed norm without `norm` in their signature; all others that take ε are Linf.
L2_ATTACKS = ("PGDL2", "PGDRSL2")
#: Settings that are lengths in input units and must shrink with the range of the bounds.
LENGTHS = ("eps", "alpha", "max_epsilon", "noise_sd", "delta")


class ExternalAttackError(MaskauditError):
    """An attack of another package failed on this model; the audit itself is not affected."""


def installed() -> str | None:
    """Name and version of the torchattacks that is installed, which is not loaded for that; None without."""
    try:
        return f"torchattacks {importlib.metadata.version('torchattacks')}"
    except importlib.metadata.PackageNotFoundError:
        return None


def available() -> tuple[bool, str]:
    """Whether torchattacks can be imported, and its version or how to get it."""
    if importlib.util.find_spec("torchattacks") is None:
        return False, f"torchattacks is not installed; {INSTALL_HINT}"
    try:
        _postpone("scipy.stats")  # for one attack of many (TIFGSM); takes thirty times as long as torchattacks itself
        package = importlib.import_module("torchattacks")
    except Exception as error:  # a broken installation may raise anything on import
        return False, f"torchattacks does not import ({type(error).__name__}: {error}); {INSTALL_HINT}"
    return True, f"torchattacks {getattr(package, '__version__', 'of unknown version')}"


def _postpone(name: str) -> None:
    """Let the submodule `name` be loaded when something in it is first asked for, if it is not loaded yet."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)  # where `from parent import child` finds it without loading it


def attack_names() -> tuple[str, ...]:
    """Names that `run_torchattacks` accepts, sorted.

    Raises:
        UsageError: without torchattacks.
    """
    package = _package()
    base = importlib.import_module("torchattacks.attack").Attack
    return tuple(
        name
        for name, value in sorted(vars(package).items())
        if inspect.isclass(value) and issubclass(value, base) and value is not base and name not in NOT_RUNNABLE
    )


def run_torchattacks(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, name: str, **settings: Any
) -> Attempt:
    """Run one torchattacks attack once per batch and keep what it found.

    The attack gets the threat's norm and ε where its signature has a place for them, 40 steps or 500
    queries, a step of ε/4, and the seed of the stream; `settings` override all of that. Lengths in
    `settings` are in input units. Attacks without ε (CW, DeepFool, …) run as they are, and their
    examples are projected into the ball, which usually undoes them.

    torchattacks draws from one global stream, so unlike our own attacks the result depends on the
    order of the points and on the batch size.

    Args:
        x: clean points, images (N, C, H, W) or vectors (N, D), in bounds; y: labels (N,).
        name: class name in torchattacks, for example "PGD" or "Square".

    Returns:
        The attack's examples; `first_success` is 1 where they break the point (when is not known), and
        `queries` the forward passes of the batch divided by its points.

    Raises:
        UsageError: for an unknown name, a setting that the attack does not have, another norm than the
            attack's, or without torchattacks.
        ExternalAttackError: when the attack itself fails; ModelError when the model does.
    """
    names = attack_names()
    if name not in names:
        raise UsageError(f"torchattacks has no attack {name!r}; available: {', '.join(names)}.")
    attack_class = getattr(_package(), name)
    seed = rng.key % 2**31
    arguments = _arguments(name, attack_class, threat, seed, settings)
    examples = x.clone()
    first = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    queries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with preserved(target.model, seed=seed):
        if isinstance(target.model, nn.Module):
            with contextlib.suppress(NotImplementedError):  # an exported program, whose mode is settled
                target.model.eval()
        for start in range(0, len(x), target.batch_size):
            rows = slice(start, start + target.batch_size)
            before = target.ledger.forwards
            found = _run_batch(attack_class, arguments, target, x[rows], y[rows], threat, name)
            examples[rows] = torch.where(column(torch.isfinite(found).flatten(1).all(dim=1), x), found, x[rows])
            examples[rows] = threat.project(examples[rows], x[rows])
            broken = target.margin(target.scores(examples[rows]), y[rows]) > 0
            first[rows] = torch.where(broken, 1, -1)
            queries[rows] = (target.ledger.forwards - before) // len(x[rows]) // target.draws
    return Attempt(examples, first, queries)


def _run_batch(
    attack_class: type[Any], arguments: dict[str, Any], target: Target, x: Tensor, y: Tensor, threat: ThreatModel,
    name: str,
) -> Tensor:  # fmt: skip
    """The attack's examples for one batch, mapped back to the bounds, shape of `x`."""
    low, high = threat.bounds
    width = high - low
    images = x if x.dim() == 4 else x.view(len(x), 1, 1, -1)
    unit = ((images - low) / width).clamp(0, 1)
    module = _UnitModel(target, low, width, tuple(x.shape[1:]))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), torch.enable_grad():
        try:
            if "n_classes" in inspect.signature(attack_class.__init__).parameters:
                arguments = {"n_classes": module.classes(unit[:1]), **arguments}
            attack = attack_class(module, **arguments)
            attack.set_device(x.device)
            found = attack(unit, y)
        except ModelError:
            raise
        except Exception as error:  # whatever the package raises is reported under the attack's name
            raise ExternalAttackError(
                f"torchattacks:{name} failed on this model with {type(error).__name__}: "
                f"{first_line(error) or 'no message'}; leave it out or choose another attack."
            ) from error
    return found.detach().to(x).reshape(x.shape) * width + low


def _arguments(
    name: str, attack_class: type[Any], threat: ThreatModel, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Constructor arguments in torchattacks' units."""
    accepted = inspect.signature(attack_class.__init__).parameters
    unknown = sorted(set(settings) - set(accepted) - {"self", "model"})
    if unknown:
        raise UsageError(
            f"torchattacks:{name} has no setting {', '.join(unknown)}; it has "
            f"{', '.join(key for key in accepted if key not in ('self', 'model'))}."
        )
    takes_eps = "eps" in accepted or "max_epsilon" in accepted
    own_norm = "L2" if name in L2_ATTACKS else "Linf"
    if takes_eps and "norm" not in accepted and threat.norm != own_norm:
        raise UsageError(f"torchattacks:{name} works in {own_norm}, but the threat model is {threat.norm}.")
    steps = settings.get("steps", DEFAULT_STEPS)
    defaults = {
        "eps": threat.eps,
        "max_epsilon": threat.eps,
        "alpha": threat.eps if name == "FFGSM" else threat.eps / 4,
        "norm": threat.norm,
        "steps": steps,
        "num_iter_set": steps,
        "n_queries": DEFAULT_QUERIES,
        "seed": seed,
    }
    wanted = {**{key: value for key, value in defaults.items() if key in accepted}, **settings}
    width = threat.bounds[1] - threat.bounds[0]
    return {
        key: value / width if key in LENGTHS and key in settings | defaults else value for key, value in wanted.items()
    }


class _UnitModel(nn.Module):
    """The target on inputs in [0, 1] of image shape, with enough classes for every loss."""

    def __init__(self, target: Target, low: float, width: float, point_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.low, self.width, self.point_shape = low, width, point_shape
        self.register_buffer("device_marker", torch.zeros(1))
        object.__setattr__(self, "target", target)  # not a child: its modes and parameters stay out of reach

    def parameters(self, recurse: bool = True) -> Any:
        """One placeholder: torchattacks asks the first parameter for the device."""
        return iter([nn.Parameter(torch.zeros(1, device=self.get_buffer("device_marker").device))])

    def classes(self, unit: Tensor) -> int:
        """Number of outputs, added ones included."""
        with torch.no_grad():
            return int(self(unit).shape[1])

    def forward(self, unit: Tensor) -> Tensor:
        if not bool(torch.isfinite(unit).all()):
            raise ArithmeticError("the attack itself produced inputs that are not finite")
        target: Target = self.__dict__["target"]
        inputs = (unit * self.width + self.low).view(len(unit), *self.point_shape)
        inputs = inputs + (inputs.clamp(*target.bounds) - inputs).detach()  # rounding must not cut the gradient
        scores = target.differentiable_scores(inputs)
        for _ in range(target.draws - 1):
            scores = scores + target.differentiable_scores(inputs)
        scores = scores / target.draws
        missing = LEAST_CLASSES - scores.shape[1]
        if missing > 0:
            floor = scores.detach().amin(dim=1, keepdim=True) - ADDED_CLASS_GAP
            scores = torch.cat([scores, floor.expand(-1, missing)], dim=1)
        if unit.requires_grad and torch.is_grad_enabled():
            target.count_backward(len(unit) * target.draws)
            if not scores.requires_grad:  # hard outputs: a zero gradient instead of a crash
                scores = scores + 0.0 * unit.flatten(1).sum(dim=1, keepdim=True)
        return scores


def _package() -> ModuleType:
    ready, reason = available()
    if not ready:
        raise UsageError(f"{reason[0].upper()}{reason[1:]}.")
    return importlib.import_module("torchattacks")
