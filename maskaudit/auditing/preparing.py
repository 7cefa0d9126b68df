"""From a request to everything that an audit needs: load model and data, settle what was left open, check the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from maskaudit.auditing.attacker import POOL_POINTS
from maskaudit.data import Dataset, Draw, load_data
from maskaudit.data.features import read_features, wide
from maskaudit.data.interface import in_order_of
from maskaudit.errors import InputError, ModelError, UsageError, describe_error
from maskaudit.loading import LoadedModel, blackbox
from maskaudit.loading.interface import count_parameters, state_digest
from maskaudit.loading.origins import Settler
from maskaudit.repairs.plan_file import read_plan
from maskaudit.settings import MOST_DRAWN, AuditSettings, Request
from maskaudit.sources import load_model
from maskaudit.target import Target, usual_batch
from maskaudit.target.fit import misfit
from maskaudit.target.form import SHARES, Form
from maskaudit.target.memory import limited
from maskaudit.target.preserve import preserved
from maskaudit.target.recognise import meet
from maskaudit.target.scores import detect_outputs
from maskaudit.threat import Features, Norm, ThreatModel, customary_eps

DEFAULT_DATA = "digits"
#: Share of the diameter of the box from which on the radius is warned of: a common point is within reach of all.
WIDE_BALL = 0.5

#: Parameters of a model and numbers of an input (3 × 64 × 64) up to which passes use one thread.
SMALL_MODEL, SMALL_INPUT = 2_000_000, 12_288
#: Numbers that the points of the pool hold together at most: 512 MiB in float32.
POOL_ELEMENTS = 2**27
#: Points that are drawn at least, for whoever looks at some before the attacks do.
LEAST_DRAWN = 256

Points = Dataset | tuple[Tensor, Tensor]
#: What the report says of points drawn by class.
STRATIFIED = (
    "Points are drawn by class, each with its share of the source; every rate is that under the class shares of the "
    "points drawn, and intervals are at least as wide as they need to be."
)


@dataclass(frozen=True)
class Prepared:
    """Everything an audit needs, resolved.

    Attributes:
        pool: further inputs (M, …) of the same kind, for training the surrogate and as starts of decision-based search.
        surrogates: modules for transfer attacks, besides the one trained here; `surrogate_names` what the user called
            them.
    """

    loaded: LoadedModel
    data: Dataset
    threat: ThreatModel
    settings: AuditSettings
    pool: Tensor
    surrogates: tuple[nn.Module, ...]
    surrogate_names: tuple[str, ...] = ()

    def target(self) -> Target:
        """The model behind the one interface, as the settings say; a context manager, not open yet."""
        settings = self.settings
        return Target(
            self.loaded.module, bounds=self.threat.bounds, mean=settings.mean, std=settings.std,
            batch_size=settings.batch_size or usual_batch(self.data.point_shape), reject_class=settings.reject_class,
            device=settings.device, seed=settings.seed, form=Form(features=self.threat.features),
        )  # fmt: skip

    @property
    def small(self) -> bool:
        """Whether a pass gains little from several threads."""
        return self.loaded.parameters <= SMALL_MODEL and math.prod(self.data.point_shape) <= SMALL_INPUT


def prepare(request: Request, *, loaded: LoadedModel | None = None, points: Points | None = None) -> Prepared:
    """Load model and data and settle the threat model.

    Args:
        request: what was asked for.
        loaded: the model, where it is in memory already.
        points: the points, where they are in memory already.

    Raises:
        MaskauditError: with the sentence for the user, when something is missing or does not fit.
    """
    if isinstance(request.plan, str):
        request = replace(request, plan=read_plan(Path(request.plan)))
    with limited(request.settings.memory):
        if loaded is None:
            loaded = load_model(
                request.model, arch=request.arch, trust_pickle=request.trust_pickle, device=request.settings.device,
                weights=request.weights,
            )  # fmt: skip
        prepared = _boxed(_resolve(loaded, request, points))
        _check_fit(prepared, by_default=request.data is None and points is None)
        return prepared


def _boxed(prepared: Prepared) -> Prepared:
    """A model that the user calls a black box, or that does not compute in torch, counted and without gradients."""
    loaded, settings = prepared.loaded, prepared.settings
    known = settings.black_box or loaded.format == "http"
    module = isinstance(loaded.module, nn.Module)
    with preserved(loaded.module):
        known = known or (not module and blackbox.computes_elsewhere(loaded.module, prepared.data.x[:2]))
    if not known:
        if settings.queries is not None or settings.rate is not None:
            raise UsageError("--queries and --rate are for black boxes; give --black-box as well.")
        return prepared
    box = blackbox.boxed(
        loaded.module, limit=settings.queries, rate=settings.rate, workers=settings.workers is not None,
        ray=bool(settings.ray), classes=prepared.data.num_classes,
    )  # fmt: skip
    note = "The model is a black box: its answers are all that is asked of it, and its gradients are not audited."
    return replace(
        prepared, loaded=replace(loaded, module=box, notes=(*loaded.notes, note)),
        settings=replace(settings, black_box=True),
    )  # fmt: skip


def _resolve(loaded: LoadedModel, request: Request, points: Points | None) -> Prepared:
    """Settle every value that the request leaves open; `points` are used in place of a data source."""
    settler = Settler(loaded)
    if request.arch is None:
        settler.take("arch", None)
    given = points.bounds if isinstance(points, Dataset) else None
    bounds = settler.choose("bounds", request.bounds or given, (0.0, 1.0))
    read_in = wide(bounds) if request.features else bounds
    data, pool = _points(settler, request, read_in, points)
    usual: Norm = "Linf"
    norm = settler.choose("norm", request.norm, usual)
    if loaded.metadata.get("threat", {}).get("norm") != norm:
        settler.leave("eps")
    data, pool = in_order_of(loaded.columns, data, pool)
    box = (0.0, 1.0) if request.features else bounds
    threat = ThreatModel(norm, settler.choose("eps", request.eps, customary_eps(norm, data.point_shape, box)), box)
    if request.features:
        data, pool, threat = _described(request.features, data, pool, threat, bounds)
    warning = _check_radius(threat, data)
    settings = _settings(settler, request)
    data = _numbered(data, settings.first_label)
    data = data if settings.first_label else data.with_classes_of(loaded.class_names)
    surrogates = tuple(_surrogate(spec, data, threat) for spec in request.surrogates)
    loaded = replace(loaded, notes=(*warning, *loaded.notes, *settler.note()))
    return Prepared(loaded, data, threat, settings, pool, surrogates, request.surrogates)


def _described(
    path: str, data: Dataset, pool: Tensor, threat: ThreatModel, bounds: tuple[float, float]
) -> tuple[Dataset, Tensor, ThreatModel]:
    """Points, pool and ball in the terms of a file of features."""
    table = read_features(Path(path), data, bounds)
    described = table.threat(threat.eps, threat.norm)
    assert described.features is not None
    notes = (*data.notes, table.sentence())
    encoded = table.encode(data, described.features)
    return replace(encoded, notes=notes), table.coordinates(data.name, pool, described.features), described


def _check_radius(threat: ThreatModel, data: Dataset) -> tuple[str, ...]:
    """Refuse a ball that holds every input; a warning for the report where it takes in half of the way to any."""
    share = threat.share_of_box(data.point_shape)
    low, high = threat.bounds
    if share >= 1:
        guess = f"; did you mean --eps {threat.eps:g}/255?" if high - low <= 2 and threat.eps > 1 else "."
        raise UsageError(
            f"ε = {threat.eps:g} in {threat.norm} reaches across the whole range {low:g} … {high:g} of the inputs, so "
            f"that every input is an adversarial example of every other{guess}"
        )
    if share < WIDE_BALL:
        return ()
    return (
        f"Warning: ε = {threat.eps:g} in {threat.norm} is {share:.0%} of the whole range of the inputs; from half of "
        "it on every point can be turned into the same one, and robust accuracy says nothing about small changes.",
    )


def _numbered(data: Dataset, first: int) -> Dataset:
    """The data with their labels counted from 0, where they count from `first`."""
    if first == 0:
        return data
    y = data.y - first
    if int(y.min()) < 0:
        raise UsageError(f"--first-label {first} does not fit {data.name}: its labels begin at {int(data.y.min())}.")
    names = data.class_names[first:] if data.class_names and first > 0 else None
    return replace(data, y=y, num_classes=max(2, data.num_classes - first), class_names=names)


def _points(
    settler: Settler, request: Request, bounds: tuple[float, float], points: Points | None
) -> tuple[Dataset, Tensor]:
    """The points to audit on, and inputs for those who need more."""
    if points is not None:
        if not isinstance(points, Dataset) and (not isinstance(points, (tuple, list)) or len(points) != 2):
            found = type(points).__name__
            raise UsageError(f"The data must be a source, a Dataset, or a pair of inputs and labels; found a {found}.")
        data = points if isinstance(points, Dataset) else dataset_of(*points, bounds=bounds)
        return _by_class(data, request.settings), data.some(_pool_points(data)).x
    source = settler.choose("data", request.data, DEFAULT_DATA)
    data = load_data(source, split="test", bounds=bounds, draw=_draw(request.settings), target=request.target)
    pool = load_data(source, split="train", bounds=bounds, limit=_pool_points(data), target=request.target)
    return _by_class(data, request.settings), pool.x


def _by_class(data: Dataset, settings: AuditSettings) -> Dataset:
    """The points in the order in which they are drawn, where that is by class."""
    if not settings.stratify:
        return data
    return replace(data.by_class(settings.seed), notes=(*data.notes, STRATIFIED))


def _draw(settings: AuditSettings) -> Draw | None:
    """The points that the audit may come to need; None for all."""
    if settings.samples == "all" or settings.precision is not None:
        return None
    asked = settings.samples or max(settings.effort.points, settings.effort.claim_points, MOST_DRAWN)
    return Draw(max(int(asked), LEAST_DRAWN), settings.seed, settings.stratify)


def _pool_points(data: Dataset) -> int:
    """Points of the pool, fewer of large inputs."""
    return max(1, min(POOL_POINTS, POOL_ELEMENTS // math.prod(data.point_shape)))


def _settings(settler: Settler, request: Request) -> AuditSettings:
    """The settings with what the model brings where the user left them open."""
    given = request.settings
    return replace(
        given,
        arch=request.arch or given.arch,
        weights=request.weights or given.weights,
        plan=given.plan if request.plan is None or isinstance(request.plan, str) else request.plan,
        outputs=settler.take("outputs", given.outputs if given.outputs != "auto" else None) or "auto",
        mean=settler.take("mean", given.mean),
        std=settler.take("std", given.std),
        reject_class=settler.take("reject_class", given.reject_class),
        certified=settler.take("certified", given.certified),
        defaults=tuple(settler.defaults),
    )


def in_memory(model: nn.Module | Callable[[Tensor], Tensor]) -> LoadedModel:
    """A model that is already in memory, as if it had been loaded."""
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
    return LoadedModel(model, f"in memory: {name}", "python", state_digest(model), count_parameters(model), {})


def dataset_of(x: Tensor, y: Tensor, *, bounds: tuple[float, float]) -> Dataset:
    """Points given as tensors or arrays, checked."""
    try:
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        classes = max(2, int(y.max()) + 1) if len(y) else 2
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"Inputs and labels must be tensors or arrays: {describe_error(error)}.") from error
    return Dataset("in memory", x, y, classes, bounds, split="all")


class _InUnits(nn.Module):
    """A module that is shown values in the units of features, asked in shares of their ranges."""

    def __init__(self, module: nn.Module, features: Features) -> None:
        super().__init__()
        self.module, self.features = module, features

    def forward(self, x: Tensor) -> Tensor:
        return self.module(self.features.decode(x))


def _surrogate(spec: str, data: Dataset, threat: ThreatModel) -> nn.Module:
    """A module for `--surrogate MODEL[@SPEC]`, checked on the data's shape."""
    source, _, arch = spec.partition("@")
    module = load_model(source, arch=arch or None).module
    if not isinstance(module, nn.Module):
        raise UsageError(f"The surrogate {source} must be a torch module, got {type(module).__name__}.")
    if threat.features is not None:
        module = _InUnits(module, threat.features)
    try:
        with torch.no_grad():
            answer = module.eval()(data.x[:2])
    except Exception as error:  # a foreign model: whatever it raises means that it does not fit
        raise InputError(f"The surrogate {source} does not accept the data: {describe_error(error)}.") from error
    if not isinstance(answer, Tensor) or answer.shape[:1] != (2,) or answer.dim() != 2:
        raise InputError(f"The surrogate {source} does not return class scores (N, K).")
    return module


def _check_fit(prepared: Prepared, *, by_default: bool) -> None:
    """One forward pass of two points: a model that does not take their shape needs other data, and is told so.

    What the model file says of its outputs is held against the answers.
    """
    loaded, data, settings = prepared.loaded, prepared.data, prepared.settings
    try:
        with prepared.target() as target:
            meet(target, data.x[:8], settings)
            found = detect_outputs(target.answers(data.x[:2]))
    except ModelError as error:
        if not misfit(error) or error.__cause__ is None:
            raise
        shape = "×".join(str(n) for n in data.x.shape[1:])
        kind = "the default data" if by_default else "the given data"
        raise InputError(
            f"The model does not accept {data.name} ({shape}), {kind}: give inputs of the model's own shape, for "
            f"example `maskaudit check {loaded.source} --data test.npz`. ({error})"
        ) from error
    claimed = loaded.metadata.get("outputs")
    from_file = "outputs (from the model file)" in settings.defaults and claimed != "auto"
    if from_file and (found in SHARES) != (claimed in SHARES):
        raise InputError(
            f"{loaded.source} says of itself that it returns {claimed}, but its answers are {found}; "
            "say with --outputs what is right."
        )
