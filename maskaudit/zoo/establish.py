"""Establish what is known of a zoo model: attack it in every way that its construction allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.decision import decision_based
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import fgsm, pgd
from maskaudit.attacks.square import square
from maskaudit.data import Dataset, load_data
from maskaudit.errors import ModelError
from maskaudit.loading.interface import state_digest
from maskaudit.rng import PointRNG
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.target.recognise import recognise
from maskaudit.target.rescore import PROOF, clean_correct, rescore
from maskaudit.threat import ThreatModel, customary_eps
from maskaudit.zoo.interface import Unmaskable, ZooEntry
from maskaudit.zoo.masks.base import unmask
from maskaudit.zoo.truth import OTHER_POINTS, POINTS, POINTS_SEED, Truth, digest_of, pack

#: Training points from which decision-based search starts.
POOL_POINTS = 2000

#: Raised when the attacks change in a way that their settings do not show.
PLAN_VERSION = 2

#: Families by the names under which they enter a record's digest, where those differ: a new name makes no record stale.
_IN_RECORDS = {"other": "own"}

#: By this the runs of white-box attacks are divided where there is a twin to attack: the twin then gives the best known
#: accuracy, and white-box attacks are only asked how far they come.
WITH_TWIN = 3


@dataclass(frozen=True)
class TruthAttack:
    """One attack of the plan.

    Attributes:
        view: what it attacks: the "model" itself, or its "unmasked" twin.
        family: "ce" for white-box attacks on cross-entropy, "other" for those on other losses, "" for the rest.
        costs: the setting that is divided by the number of draws for a random model, and by `WITH_TWIN` for
            white-box attacks where there is a twin, so that a record stays affordable.
    """

    view: Literal["model", "unmasked"]
    family: Literal["ce", "other", ""]
    name: str
    run: Callable[..., Attempt]
    settings: dict[str, Any]
    costs: str = ""


#: White-box attacks first, cross-entropy and other losses at about the same number of steps (14 runs of 100 each, or
#: 5 and 6 where there is a twin), then through the twin, then search without gradients on what is not broken yet.
PLAN: tuple[TruthAttack, ...] = (
    TruthAttack("model", "ce", "fgsm", fgsm, {}),
    TruthAttack("model", "ce", "pgd", pgd, {"loss": "ce", "steps": 40}),
    TruthAttack("model", "ce", "pgd-coarse", pgd, {"loss": "ce", "steps": 60, "relative_step": 0.25}),
    TruthAttack("model", "ce", "apgd-ce", apgd, {"loss": "ce", "steps": 100, "restarts": 13}, "restarts"),
    TruthAttack("model", "other", "apgd-margin", apgd, {"loss": "margin", "steps": 100, "restarts": 3}, "restarts"),
    TruthAttack("model", "other", "apgd-dlr", apgd, {"loss": "dlr", "steps": 100}),
    TruthAttack("model", "other", "apgd-rescaled", apgd, {"loss": "rescaled", "steps": 100}),
    TruthAttack(
        "model", "other", "apgd-targeted", apgd, {"loss": "targeted-dlr", "steps": 100, "targets": 9}, "targets"
    ),
    TruthAttack("unmasked", "", "apgd-ce", apgd, {"loss": "ce", "steps": 100, "restarts": 3}),
    TruthAttack("unmasked", "", "apgd-margin", apgd, {"loss": "margin", "steps": 100, "restarts": 3}),
    TruthAttack("unmasked", "", "apgd-targeted", apgd, {"loss": "targeted-margin", "steps": 100, "targets": 9}),
    TruthAttack("model", "", "noise", random_noise, {"draws": 1000}, "draws"),
    TruthAttack("model", "", "square", square, {"queries": 3000}, "queries"),
    TruthAttack("model", "", "decision", decision_based, {"queries": 2000}, "queries"),
)


class _Deep(Target):
    """A target whose attacks go on after a first success, for twins whose decisions are not quite the model's."""

    @property
    def stop_early(self) -> bool:
        """Never."""
        return False


def threat_of(entry: ZooEntry, metadata: dict[str, Any], shape: tuple[int, ...]) -> ThreatModel:
    """The ball that an entry is audited in: its own radius, that of its network's training, or the customary one."""
    eps = entry.radius(metadata.get("threat") or {}) or customary_eps(entry.norm, shape, (0.0, 1.0))
    return ThreatModel(entry.norm, eps)


@dataclass(frozen=True)
class Subject:
    """A loaded entry with its points and ball."""

    entry: ZooEntry
    module: nn.Module
    data: Dataset
    index: Tensor
    x: Tensor
    y: Tensor
    threat: ThreatModel

    @property
    def recipe(self) -> str:
        """Digest of everything that the record depends on."""
        plan = [[s.view, _IN_RECORDS.get(s.family, s.family), s.name, s.settings, s.costs] for s in PLAN]
        threat = [self.threat.norm, self.threat.eps]
        certificate = getattr(self.entry.certificate, "__name__", "") if self.entry.certificate else ""
        model = [state_digest(self.module), repr(self.module)]
        if self.entry.known is not None:
            model.append(self.entry.known.__name__)
        return digest_of(PLAN_VERSION, plan, self.entry.data, self.index.tolist(), threat, certificate, model)


def subject(name: str) -> Subject:
    """A zoo model, loaded (and trained if need be), with the points and the ball of its record."""
    from maskaudit import zoo

    entry, loaded = zoo.ZOO[name], zoo.load(name)
    assert isinstance(loaded.module, nn.Module)
    data = load_data(entry.data, split="test")
    index, x, y = data.sample(POINTS.get(entry.data, OTHER_POINTS), POINTS_SEED)
    threat = threat_of(entry, dict(loaded.metadata), tuple(x.shape[1:]))
    return Subject(entry, loaded.module, data, index, x, y, threat)


def establish(one: Subject) -> Truth:
    """Run the whole plan on a subject; every candidate is scored afresh on the model itself.

    Raises:
        ModelError: when a certified point was broken: certificate or attack is wrong.
    """
    settings = AuditSettings(seed=POINTS_SEED)
    with Target(one.module, bounds=one.threat.bounds, batch_size=len(one.x), seed=POINTS_SEED) as target:
        recognise(target, one.data, settings)
        correct = clean_correct(target.raw, one.x, one.y, random=target.random)
        search = _Search(one, target, correct)
        for step in search.plan():
            search.run(step)
        search.offer_known()
        certified = _certified(one, correct)
        if certified is not None and bool((certified & search.broken).any()):
            raise ModelError(
                f"{one.entry.name}: {int((certified & search.broken).sum())} certified points were broken."
            )
        return Truth(
            name=one.entry.name,
            recipe=one.recipe,
            weights=state_digest(one.module),
            data=one.entry.data,
            norm=one.threat.norm,
            eps=one.threat.eps,
            points=tuple(one.index.tolist()),
            correct=pack(correct.tolist()),
            broken=pack(search.broken.tolist()),
            strong=pack((search.by_ce | search.by_other).tolist()),
            cross_entropy=pack(search.by_ce.tolist()),
            certified="" if certified is None else pack(certified.tolist()),
            random=target.random,
            attacks=tuple(search.ran),
        )


def _certified(one: Subject, correct: Tensor) -> Tensor | None:
    if one.entry.certificate is None:
        return None
    return one.entry.certificate(one.module, one.x, one.y, one.threat.eps) & correct


class _Search:
    """Points broken so far, by family."""

    def __init__(self, one: Subject, target: Target, correct: Tensor) -> None:
        self.one, self.target, self.correct = one, target, correct
        self.broken = torch.zeros_like(correct)
        self.by_ce, self.by_other = self.broken.clone(), self.broken.clone()
        self.ran: list[str] = []
        hides = any(isinstance(module, Unmaskable) for module in one.module.modules())
        self.twin = unmask(one.module).eval() if hides else None
        self.pool = load_data(one.entry.data, split="train", limit=POOL_POINTS).x

    def plan(self) -> Iterator[TruthAttack]:
        """The steps that apply: no twin, no attack through it."""
        return (step for step in PLAN if step.view == "model" or self.twin is not None)

    def run(self, step: TruthAttack) -> None:
        """One attack, on the points that its family has not broken."""
        done = {"ce": self.by_ce, "other": self.by_ce | self.by_other, "": self.broken}[step.family]
        rows = (self.correct & ~done).nonzero().squeeze(1)
        self.ran.append(f"{step.view}:{step.name}")
        if not len(rows):
            return
        if step.view == "model":
            broken, _ = self._attack(self.target, step, rows)
        else:
            broken, crossed = self._through_twin(step, rows, Target)
            again = crossed & ~broken  # the twin was crossed, the model not: go in deeper
            if bool(again.any()):
                broken[again], _ = self._through_twin(step, rows[again], _Deep)
        self.broken[rows] |= broken
        if step.family == "ce":
            self.by_ce[rows] |= broken
        elif step.family == "other":
            self.by_other[rows] |= broken

    def offer_known(self) -> None:
        """Candidates that the model's construction knows, on the points not broken yet."""
        rows = (self.correct & ~self.broken).nonzero().squeeze(1)
        if self.one.entry.known is None:
            return
        self.ran.append("construction:known")
        if len(rows):
            x = self.one.x[rows]
            self.broken[rows] |= self._scored(self.one.entry.known(x, self.one.threat), rows)

    def _through_twin(self, step: TruthAttack, rows: Tensor, kind: type[Target]) -> tuple[Tensor, Tensor]:
        assert self.twin is not None
        twin = kind(self.twin, bounds=self.one.threat.bounds, batch_size=len(self.one.x), seed=POINTS_SEED)
        with twin:
            return self._attack(twin, step, rows)

    def _attack(self, target: Target, step: TruthAttack, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Broken on the model, and crossed in the eyes of the attack, bool (n,) each."""
        one = self.one
        x, y = one.x[rows], one.y[rows]
        settings = dict(step.settings)
        if step.costs:
            share = target.draws * (WITH_TWIN if self.twin is not None and step.family else 1)
            settings[step.costs] = max(1, settings[step.costs] // share)
        if step.run is decision_based:
            settings["pool"] = self.pool
        rng = PointRNG.create(POINTS_SEED, f"truth {step.view} {step.name}", one.index[rows])
        attempt = step.run(target, x, y, threat=one.threat, rng=rng, **settings)
        return self._scored(attempt.examples, rows), attempt.first_success >= 0

    def _scored(self, examples: Tensor, rows: Tensor) -> Tensor:
        """Which candidates (n, …) for points `rows` break the model itself, bool (n,)."""
        x, y, target = self.one.x[rows], self.one.y[rows], self.target
        return rescore(target.raw, examples, x, y, threat=self.one.threat, random=target.random, proof=PROOF).broken
