"""Suspects among single ops: cuts, ops that kill the gradient, and ops that pass on something else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from torch import Tensor

from maskaudit.attacks.losses import RESCALED_GAP
from maskaudit.results import Confidence
from maskaudit.settings.plan import Remedy
from maskaudit.trace.calls import PERIODIC
from maskaudit.trace.cuts import Cuts
from maskaudit.trace.op_notes import RecordedOp, has_memory
from maskaudit.trace.opgraph import OpGraph, underived
from maskaudit.trace.records import Culprit, FunctionCheck
from maskaudit.trace.vocabulary import HARD, RELU, SATURATING, SAWTOOTH, SOFTMAX
from maskaudit.trace.walk import Walk
from maskaudit.verdict.limits import KILLED_SHARE, LOOP_GROWTH, LOOP_TURNS, PHASE_SHIFT

Checks = Mapping[str, FunctionCheck]


def stops(walk: Walk, checks: Checks, zero_share: float) -> list[Culprit]:
    """Ops through which the gradient passes and comes out as nothing, or as something else.

    Args:
        walk: the gradient, followed back.
        checks: of custom Functions, by class name.
        zero_share: share of points whose gradient is exactly zero.
    """
    killed = [_failing_culprit(walk.graph, op) or _killer_culprit(walk, checks, op) for op in walk.killers]
    lying = [*_lying(walk, checks), *_false_trends(walk.cuts)]
    return [*killed, *_overwriting(walk), *lying, *_ripples(walk, zero_share), *_loops(walk)]


def cut_culprit(cuts: Cuts, op: RecordedOp, back: RecordedOp) -> Culprit:
    """The cut at `op`, whose data come back at `back`, with what ties them together again."""
    remedy: Remedy = "reattach"
    if back is not op or op.kind == "entry":
        remedy = "entry"
    elif op.no_grad is not None:
        remedy = "enable-grad"
    location = op.no_grad if op.no_grad is not None else op.location
    return Culprit("cut", location, "high", f"The gradient is cut: {cuts.sentence(op)}.", remedy, back.index)


def end_culprit(cuts: Cuts, op: RecordedOp, back: RecordedOp) -> Culprit:
    """The same where the output hangs on it: a cut behind the decision is passed by reading what comes before."""
    cut, tap = cut_culprit(cuts, op, back), _tap_scale(cuts.graph, op)
    if tap is None:
        return cut
    return dataclasses.replace(cut, mechanism="output-hides-loss", remedy="tap", scale=tap)


def _failing_culprit(graph: OpGraph, op: RecordedOp) -> Culprit | None:
    """The op if a backward pass raises in it, other than for want of a derivative."""
    error = graph.observer.failed.get(op.index)
    if error is None or underived(op):
        return None
    remedy: Remedy = "function-forward" if op.kind == "function" else "straight-through"
    if _writer(graph, op) is not None:
        remedy = "keep-saved"
    return Culprit("failing-backward", op.location, "high", f"{error.rstrip('.')}.", remedy, op.index)


def _overwriting(walk: Walk) -> list[Culprit]:
    """The ops that write over what an earlier one had kept for its backward pass."""
    pairs = {writer.index: (op, writer) for op in walk.killers if (writer := _writer(walk.graph, op)) is not None}
    return [
        Culprit(
            "failing-backward", writer.location, "high",
            f"{writer.name} writes over what {op.name} kept for its backward pass.", "keep-saved", writer.index,
        )
        for op, writer in pairs.values()
    ]  # fmt: skip


def _writer(graph: OpGraph, op: RecordedOp) -> RecordedOp | None:
    """What wrote to the data of an op whose backward pass found them changed."""
    if "modified by an inplace operation" not in graph.observer.failed.get(op.index, ""):
        return None
    kept = {t.untyped_storage().data_ptr() for t in (*op.inputs, *op.outputs) if has_memory(t)}
    for later in graph.ops[op.index + 1 :]:
        written = later.writes
        if written is not None and has_memory(written) and written.untyped_storage().data_ptr() in kept:
            return later
    return None


def _killer_culprit(walk: Walk, checks: Checks, op: RecordedOp) -> Culprit:
    """The op as a suspect: what becomes of the gradient there, by which mechanism, and what helps."""
    flow = walk.flows[op.index]
    fate = f"{flow.zero_share:.0%} of the gradients that reach {op.name} leave it as exact zero"
    if underived(op):
        fate = "torch has no derivative for this op, so that the backward pass fails here"
    elif flow.nonfinite_share > KILLED_SHARE:
        fate = f"{flow.nonfinite_share:.0%} of the gradients that leave {op.name} are infinite or undefined"
        if op.kind != "function":
            return Culprit("failing-backward", op.location, "high", f"{fate}.", "straight-through", op.index)
    tap = _tap_scale(walk.graph, op)
    scale = 1.0 if tap is None else tap

    def culprit(mechanism: str, sentence: str, remedy: Remedy, confidence: Confidence = "high") -> Culprit:
        return Culprit(mechanism, op.location, confidence, sentence, remedy, op.index, scale)

    def unless_tapped(remedy: Remedy) -> Remedy:
        return remedy if tap is None else "tap"

    scripted_output = op.kind == "node" and op.index == walk.graph.output
    if op.name in SOFTMAX and (scripted_output or tap is not None):
        sentence = f"The scores are so far apart that {fate}."
        return culprit("logit-scale", sentence, "soften" if scripted_output else "tap")
    if op.kind == "function":
        check = checks.get(op.name)
        mechanism = "shattered" if check is not None and not check.smooth else "lying-backward"
        return culprit(mechanism, f"{fate}; its backward is written by hand.", unless_tapped("function-forward"))
    if op.name in SATURATING | RELU:
        scale = spread(op) if tap is None else tap
        return culprit("saturation", f"{fate}: it is saturated.", unless_tapped("soften"))
    if op.name in PERIODIC:
        scale = 1.0
        return culprit("shattered", f"{fate}.", "mute")
    mechanism = "shattered" if tap is None else "output-hides-loss"
    confidence: Confidence = "high" if op.name in HARD else "medium"
    return culprit(mechanism, f"{fate}, although its output changes.", unless_tapped("straight-through"), confidence)


def _lying(walk: Walk, checks: Checks) -> list[Culprit]:
    """Custom Functions whose backward is that of something else; the first call of each."""
    killed = {op.name for op in walk.killers}
    found = []
    for op in walk.graph.ops:
        check = checks.get(op.name) if op.kind == "function" else None
        if check is not None and check.kind == "lying" and op.name not in killed:
            sentence = f"The backward of {op.name} does not follow its own forward (agreement {check.agreement:.2f})."
            found.append(Culprit("lying-backward", op.location, "high", sentence, "function-forward", op.index))
            killed.add(op.name)
    return found


def _false_trends(cuts: Cuts) -> list[Culprit]:
    """Staircases that take the gradient of what does not go along with them."""
    return [
        Culprit(
            "lying-backward", one.total.location, "high",
            f"{one.total.name} has the value of a staircase and the gradient of what does not follow it "
            f"(agreement {one.trend:.2f}).",
            op=one.total.index,
        )
        for one in cuts.estimators if one.foreign
    ]  # fmt: skip


def _ripples(walk: Walk, zero_share: float) -> list[Culprit]:
    """Periodic ops whose argument a small perturbation moves by more than a turn, and staircases made of them."""
    found = []
    movement, killed = walk.graph.movement, {op.index for op in walk.killers}
    for op in walk.graph.ops:
        moved = movement.phases.get(op.index, 0.0)
        if op.name in SAWTOOTH:
            if op.live_out and zero_share > KILLED_SHARE and op.index in movement.changes:
                sentence = f"{op.name} cancels the slope of what it is taken from: the result is a staircase."
                found.append(Culprit("shattered", op.location, "high", sentence, "mute", op.index))
        elif op.live_out and moved > PHASE_SHIFT and op.index not in killed:
            sentence = f"A change of ε moves the argument of {op.name} by {moved:.0f} rad: its slope is noise."
            found.append(Culprit("jagged-surface", op.location, "high", sentence, "mute", op.index))
    return found


def hooks(graph: OpGraph) -> list[Culprit]:
    """Hooks that the forward pass registers on tensors, where nothing else explains the gradient."""
    mechanism, sentence = "lying-backward", "A hook on the forward pass rewrites the gradient."
    if graph.observer.failure:
        mechanism, sentence = "failing-backward", f"{graph.observer.failure.rstrip('.')}."
    return [
        Culprit(mechanism, graph.ops[i].location, "high", sentence, "ignore-hook", i)
        for i in graph.observer.hooked if i < len(graph.ops) and graph.ops[i].live_in
    ]  # fmt: skip


def _loops(walk: Walk) -> list[Culprit]:
    """Lines that run again and again, and through which the gradient grows at every turn."""
    graph, flows = walk.graph, walk.flows
    turns: dict[tuple[str, str | None, int | None, str], list[RecordedOp]] = {}
    for op in graph.ops:
        if op.line is not None and op.index in flows and op.index in graph.way:
            turns.setdefault((op.module, op.file, op.line, op.name), []).append(op)
    found: dict[tuple[str, str | None, int | None], Culprit] = {}
    for (module, file, line, _), ops in turns.items():
        late, early = flows[ops[-1].index].norm_in, flows[ops[0].index].norm_out
        grows = len(ops) >= LOOP_TURNS and late > 0 and early > LOOP_GROWTH * late
        again = grows and (module, file, line) not in found and ops[0].index in graph.ancestors(ops[-1].index)
        if again and not _weights_change(graph, ops):
            sentence = (
                f"This line runs {len(ops)} times, and the gradient grows {early / late:.0e}-fold on its way back "
                "through it: its slope is noise."
            )
            culprit = Culprit("jagged-surface", ops[0].location, "high", sentence, "boundary", ops[0].index)
            found[module, file, line] = culprit
    return list(found.values())


def _weights_change(graph: OpGraph, turns: list[RecordedOp]) -> bool:
    """Whether no two turns in succession read the same weights: layers that share a line, and no loop."""
    between = [graph.weights(first.index, last.index) for first, last in itertools.pairwise(turns)]
    return all(between) and all(a.isdisjoint(b) for a, b in itertools.pairwise(between))


def optimisation(graph: OpGraph) -> list[Culprit]:
    """Optimisation inside the forward pass of a model whose gradient is unhealthy, if its result is used."""
    used = {op.location for op in graph.ops if op.name == "grad" and op.index in graph.way}
    places = [place for place in dict.fromkeys(graph.observer.optimises) if place.op != "grad" or place in used]
    sentence = "The forward pass optimises: an attack through it needs the gradient of every step."
    return [Culprit("test-time-optimisation", place, "high", sentence) for place in places[:1]]


def _tap_scale(graph: OpGraph, op: RecordedOp) -> float | None:
    """Divisor of the scores that the op is given, where these hold the decision already; else None."""
    return gap_scale(op.inputs[0].detach()) if graph.decides(op) else None


def spread(op: RecordedOp) -> float:
    """Temperature for a saturated op: the mean magnitude of its input, at least 1."""
    if not op.inputs:
        return 1.0
    return max(1.0, float(op.inputs[0].detach().double().abs().mean()))


def gap_scale(scores: Tensor) -> float:
    """Divisor that brings the median top-two gap of scores (N, K) to `RESCALED_GAP`."""
    top = scores.double().topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median())
    return gap / RESCALED_GAP if gap > 0 else 1.0
