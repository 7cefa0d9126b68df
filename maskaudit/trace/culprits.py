"""From what was recorded to suspects: which op stops the gradient although it passes the data on.

Nothing is suspected where the input gradient as a whole is healthy (it agrees
with central differences and vanishes nowhere), whatever single ops look like:
a detach whose gradient revives downstream, dead units and statistics that are
taken off the graph are no faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.attacks.losses import RESCALED_GAP
from maskaudit.results import Location
from maskaudit.trace.behaviour import flat_share
from maskaudit.trace.observe import PERIODIC, Seen
from maskaudit.trace.records import Confidence, Culprit, Cut, Flow, Remedy
from maskaudit.trace.vocabulary import (
    ALONE,
    COMPARISONS,
    DEAD_RELU,
    GATES,
    HARD,
    KILLS,
    LOOP_GROWTH,
    LOOP_TURNS,
    PHASE,
    RANDOM,
    RELU,
    SATURATED,
    SATURATING,
    SAWTOOTH,
    SCALING,
    SMOOTH,
    SOFTMAX,
    STRUCTURAL,
    ZERO_SHARE,
)
from maskaudit.trace.walk import Evidence, Walk


@dataclass
class Suspects:
    """Result of the search; `dead_way` are the ops behind cuts, where the output is not connected to the input."""

    culprits: list[Culprit]
    cuts: list[Cut]
    flows: dict[int, Flow]
    dead_way: frozenset[int]


def find_culprits(evidence: Evidence) -> Suspects:
    """Suspects, the most certain first; empty for a healthy gradient."""
    search = _Search(evidence)
    search.walk()
    culprits = search.gradient_culprits() if evidence.suspicious else search.saturation(SMOOTH, ALONE)
    culprits += search.logit_scale(culprits)
    if not culprits:
        culprits += search.bent_output()
    culprits = ranked(culprits)
    dead_way = frozenset() if evidence.observer.live(evidence.raw) else search.dead_way()
    return Suspects(culprits, search.cuts, search.flows, dead_way)


#: Of equally certain suspects, those that act on any input come before those that depend on how far units are driven.
_ORDER = (
    "test-time-optimisation", "cut", "shattered", "lying-backward", "output-hides-loss", "jagged-surface",
    "logit-scale", "saturation", "imbalanced-margin", "stochastic",
)  # fmt: skip


def ranked(culprits: list[Culprit]) -> list[Culprit]:
    """The most certain first."""
    certain = {"high": 0, "medium": 1, "low": 2}
    return sorted(
        culprits,
        key=lambda c: (certain[c.confidence], _ORDER.index(c.mechanism), c.op if c.op >= 0 else 1 << 30),
    )


def behind_cuts(evidence: Evidence, found: list[Culprit]) -> list[Culprit]:
    """Suspects on the way from a cut to the output, from a pass in which the cut tensors were made leaves."""
    search = _Search(evidence)
    search.walk()
    named = {culprit.location for culprit in found}
    return [culprit for culprit in search.stops() if culprit.location not in named]


class _Search(Walk):
    """Names what the walk found."""

    def gradient_culprits(self) -> list[Culprit]:
        """Cuts, killers, lying backwards, ripples, hooks and saturation; gates only if there is nothing else."""
        found = [self._cut_culprit(op, back) for op, back in self.severed]
        found += self.stops() + self._hooks() + self._optimisation()
        named = {c.op for c in found}
        found += [c for c in self.saturation(SATURATING | RELU, SATURATED) if c.op not in named]
        if not found:
            found += self._gates()
        if not found and not self.e.health.connected:
            found.append(self._disconnected())
        return found

    def stops(self) -> list[Culprit]:
        """Ops through which the gradient passes and comes out as nothing, or as something else."""
        killed = [self._killer_culprit(op) for op in self.killers]
        return killed + self._lying() + self._ripples() + self._loops()

    def dead_way(self) -> frozenset[int]:
        """Ops that carry the data from a cut on towards the output."""
        return frozenset(
            op.index for op in self.ops if op.index in self.ancestors and not op.live_out and self._moves(op)
        )

    def _disconnected(self) -> Culprit:
        place = self.e.observer.script_cut
        if place is None:
            return Culprit("cut", Location("", "output"), "medium", "The output is not connected to the input.")
        return Culprit(
            "cut", place, "high", f"The gradient is cut: {place.op} passes the data on and drops the gradient."
        )

    def _cut_culprit(self, op: Seen, back: Seen) -> Culprit:
        tap = self._tap_scale(op)
        remedy: Remedy = "reattach"
        if tap is not None:
            remedy = "tap"
        elif back is not op or op.kind == "entry":
            remedy = "entry"
        elif op.no_grad is not None:
            remedy = "enable-grad"
        location = op.no_grad if op.no_grad is not None else op.location
        sentence = f"The gradient is cut: {self.cuts_sentence(op)}."
        mechanism = "cut" if tap is None else "output-hides-loss"
        return Culprit(mechanism, location, "high", sentence, remedy, back.index, 1.0 if tap is None else tap)

    def cuts_sentence(self, op: Seen) -> str:
        """What the cut at `op` does."""
        return next((cut.sentence for cut in self.cuts if cut.op == op.index), f"{op.name} drops the gradient")

    def _killer_culprit(self, op: Seen) -> Culprit:
        flow = self.flows[op.index]
        share = f"{flow.zero_share:.0%} of the gradients that reach {op.name} leave it as exact zero"
        tap = self._tap_scale(op)
        scale = 1.0 if tap is None else tap
        scripted_output = op.kind == "node" and op.index == self.e.observer.maker(self.e.raw)
        if op.name in SOFTMAX and (scripted_output or self.decides(op)):
            return Culprit(
                "logit-scale", op.location, "high", f"The scores are so far apart that {share}.",
                "soften" if scripted_output else "tap", op.index, scale,
            )  # fmt: skip
        if op.kind == "function":
            check = self.e.functions.get(op.name)
            staircase = check is not None and not check.smooth
            mechanism = "shattered" if staircase else "lying-backward"
            return Culprit(
                mechanism, op.location, "high", f"{share}; its backward is written by hand.",
                "function-forward" if tap is None else "tap", op.index, scale,
            )  # fmt: skip
        if op.name in SATURATING | RELU:
            remedy: Remedy = "soften" if tap is None else "tap"
            return Culprit("saturation", op.location, "high", f"{share}: it is saturated.", remedy, op.index,
                           self._spread(op) if tap is None else scale)  # fmt: skip
        if op.name in PERIODIC:
            return Culprit("shattered", op.location, "high", f"{share}.", "mute", op.index)
        hard: Confidence = "high" if op.name in HARD else "medium"
        return Culprit(
            "shattered" if tap is None else "output-hides-loss", op.location, hard,
            f"{share}, although its output changes.",
            "straight-through" if tap is None else "tap", op.index, scale,
        )  # fmt: skip

    def _lying(self) -> list[Culprit]:
        killed = {op.name for op in self.killers}
        found = []
        for op in self.ops:
            check = self.e.functions.get(op.name) if op.kind == "function" else None
            if check is not None and check.kind == "lying" and op.name not in killed:
                found.append(Culprit(
                    "lying-backward", op.location, "high",
                    f"The backward of {op.name} does not follow its own forward (agreement {check.agreement:.2f}).",
                    "function-forward", op.index,
                ))  # fmt: skip
                killed.add(op.name)
        return found

    def _ripples(self) -> list[Culprit]:
        found = []
        killed = {op.index for op in self.killers}
        for op in self.ops:
            moved = self.e.phases.get(op.index, 0.0)
            if op.name in SAWTOOTH:
                if op.live_out and op.index in self.e.changes and self.e.health.zero_share > KILLS:
                    sentence = f"{op.name} cancels the slope of what it is taken from: the result is a staircase."
                    found.append(Culprit("shattered", op.location, "high", sentence, "mute", op.index))
            elif op.live_out and moved > PHASE and op.index not in killed:
                sentence = f"A change of ε moves the argument of {op.name} by {moved:.0f} rad: its slope is noise."
                found.append(Culprit("jagged-surface", op.location, "high", sentence, "mute", op.index))
        return found

    def _hooks(self) -> list[Culprit]:
        return [
            Culprit("lying-backward", self.ops[i].location, "high",
                    "A hook on the forward pass rewrites the gradient.", "ignore-hook", i)
            for i in self.e.observer.hooked if i < len(self.ops) and self.ops[i].live_in
        ]  # fmt: skip

    def _loops(self) -> list[Culprit]:
        """Lines that run again and again, and through which the gradient grows at every turn."""
        turns: dict[tuple[str, str | None, int | None, str], list[Seen]] = {}
        for op in self.ops:
            if op.line is not None and op.index in self.flows and op.index in self.ancestors:
                turns.setdefault((op.module, op.file, op.line, op.name), []).append(op)
        found: dict[tuple[str, str | None, int | None], Culprit] = {}
        for (module, file, line, _), ops in turns.items():
            late, early = self.flows[ops[-1].index].norm_in, self.flows[ops[0].index].norm_out
            if len(ops) >= LOOP_TURNS and late > 0 and early > LOOP_GROWTH * late and (module, file, line) not in found:
                sentence = (
                    f"This line runs {len(ops)} times, and the gradient grows {early / late:.0e}-fold on its way back "
                    "through it: its slope is noise."
                )
                found[module, file, line] = Culprit(
                    "jagged-surface", ops[0].location, "high", sentence, "boundary", ops[0].index
                )
        return list(found.values())

    def _optimisation(self) -> list[Culprit]:
        """Optimisation inside the forward pass of a model whose gradient is unhealthy, if its result is used."""
        used = {op.location for op in self.ops if op.name == "grad" and op.index in self.ancestors}
        places = [place for place in dict.fromkeys(self.e.observer.optimises) if place.op != "grad" or place in used]
        sentence = "The forward pass optimises: an attack through it needs the gradient of every step."
        return [Culprit("test-time-optimisation", place, "high", sentence) for place in places[:1]]

    def saturation(self, names: frozenset[str], limit: float) -> list[Culprit]:
        """Ops of the given names that block more than `limit` of their units (`DEAD_RELU` for rectifiers)."""
        found = []
        for op in self.ops:
            flow = self.flows.get(op.index)
            if flow is None or flow.blocked_share is None or op.name not in names:
                continue
            if op.name in SOFTMAX and self.decides(op):  # how far scores are apart is a matter of their scale
                continue
            if flow.blocked_share > (DEAD_RELU if op.name in RELU else limit) and op.index in self.e.changes:
                confidence: Confidence = "high" if flow.blocked_share > 0.7 and op.name not in RELU else "medium"
                sentence = f"{op.name} lets less than a hundredth through at {flow.blocked_share:.0%} of its units."
                found.append(Culprit("saturation", op.location, confidence, sentence, "soften", op.index,
                                     self._spread(op)))  # fmt: skip
        return found

    def _gates(self) -> list[Culprit]:
        found = []
        for op in self.ops:
            if op.name not in GATES or not (op.live_in and op.live_out):
                continue
            dead = [p for p in op.parents if not self.ops[p].live_out and p in self.e.changes]
            before = {self.ops[a].name for p in dead for a in self.ancestors_of(p)}
            if before & COMPARISONS and not before & RANDOM:
                sentence = f"{op.name} applies a mask computed from the data: the surface jumps when the mask changes."
                found.append(Culprit("jagged-surface", op.location, "medium", sentence, "gate-identity", op.index))
        return found

    def logit_scale(self, already: list[Culprit]) -> list[Culprit]:
        """Cross-entropy flat in float32: its derivative with respect to the scores is exactly zero."""
        if any(c.remedy == "tap" for c in already):
            return []
        scores = self.e.scores
        flat = flat_share(scores, self.e.y)
        if self.e.health.connected and self.e.health.zero_share <= ZERO_SHARE:
            flat = max(flat, self.e.health.ce_zero_share)
        if flat <= ZERO_SHARE:
            return []
        scaling = [op for op in self.ops if op.index in self.ancestors and op.name in SCALING and self.decides(op)]
        where = scaling[-1] if scaling else None
        location = where.location if where is not None else Location("", "output")
        sentence = f"The gradient of cross-entropy is exactly zero on {flat:.0%} of points: the logits are too large."
        index = where.index if where is not None else -1
        return [Culprit("logit-scale", location, "high", sentence, "rescale", index, gap_scale(scores.detach()))]

    def bent_output(self) -> list[Culprit]:
        """Scores that pass a function which turns the slope of the loss round while it keeps the decision."""
        scores = self.e.scores
        deciding = [op for op in self.ops if op.kind == "torch" and op.live_in and op.live_out and self.decides(op)]
        if not scores.requires_grad or not deciding:
            return []
        before = deciding[0].inputs[0]
        if not before.requires_grad:
            return []
        loss = F.cross_entropy(scores, self.e.y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, before, retain_graph=True, allow_unused=True)
        if slope is None:
            return []
        plain = before.detach().float().softmax(dim=1) - F.one_hot(self.e.y, before.shape[1])
        against = float((F.cosine_similarity(slope.float(), plain, dim=1) < 0).double().mean())
        bends = [op for op in deciding if op.name not in SOFTMAX | SCALING | STRUCTURAL]
        if against <= ZERO_SHARE or not bends:
            return []
        sentence = (
            f"What follows the scores turns the slope of cross-entropy round on {against:.0%} of points, "
            "while the decision stays."
        )
        return [Culprit("output-hides-loss", bends[0].location, "high", sentence, "tap", bends[0].index,
                        gap_scale(bends[0].inputs[0].detach()))]  # fmt: skip

    def _tap_scale(self, op: Seen) -> float | None:
        return gap_scale(op.inputs[0].detach()) if self.decides(op) else None

    def _spread(self, op: Seen) -> float:
        """Temperature for a saturated op: the mean magnitude of its input, at least 1."""
        if not op.inputs:
            return 1.0
        return max(1.0, float(op.inputs[0].detach().double().abs().mean()))


def gap_scale(scores: Tensor) -> float:
    """Divisor that brings the median top-two gap of scores (N, K) to `RESCALED_GAP`."""
    top = scores.double().topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median())
    return gap / RESCALED_GAP if gap > 0 else 1.0
