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

from maskaudit.attacks.losses import RESCALED_GAP
from maskaudit.results import Location
from maskaudit.trace.behaviour import flat_share
from maskaudit.trace.flow import gradient_flow
from maskaudit.trace.observe import ESCAPES, PERIODIC, Observer, Seen
from maskaudit.trace.records import Confidence, Culprit, Cut, Flow, FunctionCheck, GradientHealth, Remedy

#: Share of points with a zero gradient above which something is wrong (FACTS.md §5: 13 of 17 masked, 0 of 24 honest).
ZERO_SHARE = 0.05
#: Healthy directional derivatives correlate at least this well with central differences (FACTS.md §5: .92 and above
#: on healthy networks at ε/4, .82 and below on masked ones).
AGREEMENT = 0.87
#: An op kills the gradient when more than this share of arriving points leave with exactly nothing.
KILLS = 0.5
#: Saturating ops are suspected when this share of units is blocked; ReLU blocks about half of them in health.
SATURATED, DEAD_RELU = 0.5, 0.97
#: Median change of the argument of a periodic op, in radians, under a perturbation of size ε.
PHASE = 0.5
#: Rounds of "walk on from the input of what killed the gradient": masks in series.
MASKS_IN_SERIES = 6

HARD = frozenset({
    "round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide", "__floordiv__",
    "round_", "floor_", "ceil_", "trunc_", "sign_", "sgn_",
})  # fmt: skip
SATURATING = frozenset({
    "tanh", "sigmoid", "hardtanh", "clamp", "clip", "hardsigmoid", "softsign", "erf", "clamp_max", "tanh_", "sigmoid_", "clamp_", "clip_", "atan", "arctan", "logsigmoid",
    "hardtanh_", "minimum", "maximum", "softmax",
})  # fmt: skip
#: Saturating ops without a flat side in normal use: blocked this far they are suspects whatever the whole says.
SMOOTH = frozenset({"tanh", "sigmoid", "softsign", "erf", "tanh_", "sigmoid_", "atan", "arctan"})
ALONE = 0.8
RELU = frozenset({"relu", "relu_", "threshold", "threshold_", "relu6", "hardswish", "clamp_min"})
SOFTMAX = frozenset({"softmax", "log_softmax", "_softmax", "_log_softmax"})
SCALING = frozenset({"mul", "div", "__mul__", "__rmul__", "__truediv__", "true_divide", "multiply", "mul_", "div_"})
GATES = frozenset({"mul", "where", "masked_fill", "masked_fill_", "__setitem__", "__mul__", "multiply", "mul_"})
COMPARISONS = frozenset({
    "gt", "ge", "lt", "le", "eq", "ne", "__gt__", "__ge__", "__lt__", "__le__", "topk", "kthvalue", "isclose",
    "scatter", "scatter_", "greater", "less",
})  # fmt: skip
#: Ops that only move values about; a gradient that ends in one was never there.
STRUCTURAL = frozenset({
    "unbind", "__getitem__", "view", "reshape", "flatten", "cat", "stack", "split", "chunk", "select", "permute",
    "transpose", "squeeze", "unsqueeze", "expand", "contiguous", "to", "clone", "narrow", "index_select", "gather",
})  # fmt: skip


@dataclass
class Suspects:
    """Result of the search."""

    culprits: list[Culprit]
    cuts: list[Cut]
    flows: dict[int, Flow]


@dataclass
class Evidence:
    """What the search looks at.

    Attributes:
        observer: the recorded pass, graph alive.
        raw: the model's output (N, K).
        scores: the target's scores (N, K).
        y: labels (N,).
        changes: indices of ops whose output moved when the input was perturbed.
        phases: median phase change of periodic ops, by index.
        health: the gradient as a whole.
        functions: checks of custom Functions, by class name.
    """

    observer: Observer
    raw: Tensor
    scores: Tensor
    y: Tensor
    changes: set[int]
    phases: dict[int, float]
    health: GradientHealth
    functions: dict[str, FunctionCheck]

    @property
    def suspicious(self) -> bool:
        """Whether the gradient as a whole is unhealthy."""
        health = self.health
        poor = min(value for _, value in health.agreement) < AGREEMENT
        return not health.connected or health.zero_share > ZERO_SHARE or poor


def find_culprits(evidence: Evidence) -> Suspects:
    """Suspects, the most certain first; empty for a healthy gradient."""
    search = _Search(evidence)
    search.walk()
    culprits = search.gradient_culprits() if evidence.suspicious else search.saturation(SMOOTH, ALONE)
    culprits += search.logit_scale(culprits)
    rank = {"high": 0, "medium": 1, "low": 2}
    culprits.sort(key=lambda c: (rank[c.confidence], c.op if c.op >= 0 else 1 << 30))
    return Suspects(culprits, search.cuts, search.flows)


class _Search:
    def __init__(self, evidence: Evidence) -> None:
        self.e = evidence
        self.ops = evidence.observer.ops
        self.n = len(evidence.y)
        self.flows: dict[int, Flow] = {}
        self.cuts: list[Cut] = []
        self.killers: list[Seen] = []
        self.severed: list[tuple[Seen, Seen]] = []  # (where it is cut, where the data come back)
        self.ancestors = self._ancestors(evidence.observer.maker(evidence.raw))

    # --- walking ----------------------------------------------------------------------------------

    def walk(self) -> None:
        """Trace the gradient from the output; where it stops, go on from the input of what stopped it."""
        observer = self.e.observer
        alive = observer.live(self.e.raw)
        self._find_cuts(alive)
        roots = [(self.e.raw, self._margin_cotangent())] if alive else []
        for cut, _ in self.severed:
            roots += [(t, _noise(t)) for t in self._live_inputs(cut)]
        for _ in range(MASKS_IN_SERIES):
            flows = gradient_flow(observer, roots, self.n)
            fresh = {i: f for i, f in flows.items() if i not in self.flows or self.flows[i].points == 0}
            self.flows.update(fresh)
            killers = [self.ops[i] for i, f in fresh.items() if f.points and self._kills(self.ops[i], f)]
            if not killers:
                return
            self.killers += killers
            roots = [(t, _noise(t)) for op in killers for t in self._live_inputs(op)]

    def _kills(self, op: Seen, flow: Flow) -> bool:
        if op.name in STRUCTURAL:
            return False
        limit = ZERO_SHARE if op.name in SOFTMAX and self._decides(op) else KILLS
        return flow.zero_share > limit and op.index in self.e.changes and op not in self.killers

    def _find_cuts(self, alive: bool) -> None:
        for op in self.ops:
            if op.index not in self.e.changes or op.live_out:
                continue
            relevant = op.index in self.ancestors
            back = op.kind == "entry" or (op.kind == "torch" and not op.parents and not op.live_in)
            if back and relevant:
                escape = self._escape_before(op)
                where = escape if escape is not None else op
                self._add_cut(where, op, alive, f"the data leave torch in {where.name} and come back without gradient")
            elif op.live_in and op.kind == "torch" and relevant:
                self._add_cut(op, op, alive, f"{op.name} passes the data on and drops the gradient")

    def _add_cut(self, op: Seen, back: Seen, alive: bool, sentence: str) -> None:
        location = op.no_grad if op.no_grad is not None and op.kind == "torch" else op.location
        if any(cut.location == location for cut in self.cuts):
            return
        self.cuts.append(Cut(location, op.index, alive, sentence))
        if not alive:
            self.severed.append((op, back))

    def _escape_before(self, entry: Seen) -> Seen | None:
        earlier = [op for op in self.ops[: entry.index] if op.kind == "escape" and op.name in ESCAPES]
        here = [op for op in earlier if op.module == entry.module]
        return (here or earlier or [None])[-1]

    def _ancestors(self, start: int | None) -> set[int]:
        found: set[int] = set()
        stack = [start] if start is not None and start >= 0 else []
        while stack:
            index = stack.pop()
            if index not in found:
                found.add(index)
                stack.extend(self.ops[index].parents)
        return found

    def _live_inputs(self, op: Seen) -> list[Tensor]:
        """Inputs of `op` that are on the graph, or those of what made its inputs."""
        observer = self.e.observer
        pending, seen = [op], set()
        while pending:
            current = pending.pop()
            live = [t for t in current.inputs if observer.live(t) and t is not observer.leaf]
            if live:
                return live
            if not current.inputs and current.nodes:
                parents = [t for p in current.parents for t in self.ops[p].outputs if observer.live(t)]
                if parents:
                    return parents
            seen.add(current.index)
            pending += [self.ops[p] for p in current.parents if p not in seen]
        return []

    def _margin_cotangent(self) -> Tensor:
        """Derivative of the margin with respect to the raw output: +1 at the runner-up, −1 at the label."""
        raw, y = self.e.raw.detach(), self.e.y
        wrong = raw.float().scatter(1, y[:, None], -torch.inf).argmax(dim=1)
        cotangent = torch.zeros_like(raw)
        cotangent[torch.arange(len(y)), wrong] = 1
        cotangent[torch.arange(len(y)), y] = -1
        return cotangent

    # --- naming -----------------------------------------------------------------------------------

    def gradient_culprits(self) -> list[Culprit]:
        """Cuts, killers, lying backwards, ripples, hooks and saturation; gates only if there is nothing else."""
        found = [self._cut_culprit(op, back) for op, back in self.severed]
        found += [self._killer_culprit(op) for op in self.killers]
        found += self._lying() + self._ripples() + self._hooks()
        named = {c.op for c in found}
        found += [c for c in self.saturation(SATURATING | RELU, SATURATED) if c.op not in named]
        if not found:
            found += self._gates()
        if not found and not self.e.health.connected:
            found.append(Culprit("cut", Location("", "output"), "medium", "The output is not connected to the input."))
        return found

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
        return Culprit("cut", location, "high", sentence, remedy, back.index, 1.0 if tap is None else tap)

    def cuts_sentence(self, op: Seen) -> str:
        """What the cut at `op` does."""
        return next((cut.sentence for cut in self.cuts if cut.op == op.index), f"{op.name} drops the gradient")

    def _killer_culprit(self, op: Seen) -> Culprit:
        flow = self.flows[op.index]
        share = f"{flow.zero_share:.0%} of the gradients that reach {op.name} leave it as exact zero"
        tap = self._tap_scale(op)
        scale = 1.0 if tap is None else tap
        scripted_output = op.kind == "node" and op.index == self.e.observer.maker(self.e.raw)
        if op.name in SOFTMAX and (scripted_output or self._decides(op)):
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
                "function-identity" if tap is None else "tap", op.index, scale,
            )  # fmt: skip
        if op.name in SATURATING | RELU:
            remedy: Remedy = "soften" if tap is None else "tap"
            return Culprit("saturation", op.location, "high", f"{share}: it is saturated.", remedy, op.index,
                           self._spread(op) if tap is None else scale)  # fmt: skip
        if op.name in PERIODIC:
            return Culprit("shattered", op.location, "high", f"{share}.", "mute", op.index)
        hard: Confidence = "high" if op.name in HARD else "medium"
        return Culprit(
            "shattered", op.location, hard, f"{share}, although its output changes.",
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
                    "function-identity", op.index,
                ))  # fmt: skip
                killed.add(op.name)
        return found

    def _ripples(self) -> list[Culprit]:
        found = []
        killed = {op.index for op in self.killers}
        for op in self.ops:
            moved = self.e.phases.get(op.index, 0.0)
            if op.live_out and moved > PHASE and op.index not in killed:
                sentence = f"A change of ε moves the argument of {op.name} by {moved:.0f} rad: its slope is noise."
                found.append(Culprit("jagged-surface", op.location, "high", sentence, "mute", op.index))
        return found

    def _hooks(self) -> list[Culprit]:
        return [
            Culprit("lying-backward", self.ops[i].location, "high",
                    "A hook on the forward pass rewrites the gradient.", "ignore-hook", i)
            for i in self.e.observer.hooked if i < len(self.ops) and self.ops[i].live_in
        ]  # fmt: skip

    def saturation(self, names: frozenset[str], limit: float) -> list[Culprit]:
        """Ops of the given names that block more than `limit` of their units (`DEAD_RELU` for rectifiers)."""
        found = []
        for op in self.ops:
            flow = self.flows.get(op.index)
            if flow is None or flow.blocked_share is None or op.name not in names:
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
            if any(self.ops[a].name in COMPARISONS for p in dead for a in self._ancestors(p)):
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
        scaling = [op for op in self.ops if op.index in self.ancestors and op.name in SCALING and self._decides(op)]
        where = scaling[-1] if scaling else None
        location = where.location if where is not None else Location("", "output")
        sentence = f"The gradient of cross-entropy is exactly zero on {flat:.0%} of the points: the logits are too large."
        index = where.index if where is not None else -1
        return [Culprit("logit-scale", location, "high", sentence, "rescale", index, gap_scale(scores.detach()))]

    # --- taps -------------------------------------------------------------------------------------

    def _decides(self, op: Seen) -> bool:
        """Whether the op's first input is (N, K) and already holds the model's decision."""
        if not op.inputs or op.index not in self.ancestors:
            return False
        before = op.inputs[0].detach()
        if before.shape != self.e.raw.shape or not before.is_floating_point():
            return False
        return torch.equal(before.argmax(dim=1), self.e.raw.detach().argmax(dim=1))

    def _tap_scale(self, op: Seen) -> float | None:
        return gap_scale(op.inputs[0].detach()) if self._decides(op) else None

    def _spread(self, op: Seen) -> float:
        """Temperature for a saturated op: the mean distance of its input from the input's centre, at least 1."""
        if not op.inputs:
            return 1.0
        values = op.inputs[0].detach().double()
        return max(1.0, float((values - values.median()).abs().mean()))


def gap_scale(scores: Tensor) -> float:
    """Divisor that brings the median top-two gap of scores (N, K) to `RESCALED_GAP`."""
    top = scores.double().topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median())
    return gap / RESCALED_GAP if gap > 0 else 1.0


def _noise(tensor: Tensor) -> Tensor:
    """A fixed random cotangent."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor)
