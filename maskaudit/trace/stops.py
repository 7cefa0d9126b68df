"""Suspects among single ops: cuts, ops that kill the gradient, and ops that pass on something else."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from maskaudit.attacks.losses import RESCALED_GAP
from maskaudit.trace.calls import PERIODIC
from maskaudit.trace.records import Confidence, Culprit, Remedy
from maskaudit.trace.seen import RecordedOp, has_memory
from maskaudit.trace.vocabulary import (
    HARD,
    KILLS,
    LOOP_GROWTH,
    LOOP_TURNS,
    PHASE,
    RELU,
    SATURATING,
    SAWTOOTH,
    SOFTMAX,
)
from maskaudit.trace.walk import GradientWalk


class Stops(GradientWalk):
    """Names the ops at which the walk stopped, and those whose slope is not that of what they compute."""

    def stops(self) -> list[Culprit]:
        """Ops through which the gradient passes and comes out as nothing, or as something else."""
        killed = [self._failing_culprit(op) or self._killer_culprit(op) for op in self.killers]
        return killed + self._overwriting() + self._lying() + self._false_trends() + self._ripples() + self._loops()

    def cut_culprit(self, op: RecordedOp, back: RecordedOp) -> Culprit:
        """The cut at `op`, whose data come back at `back`, with what ties them together again."""
        remedy: Remedy = "reattach"
        if back is not op or op.kind == "entry":
            remedy = "entry"
        elif op.no_grad is not None:
            remedy = "enable-grad"
        location = op.no_grad if op.no_grad is not None else op.location
        return Culprit("cut", location, "high", f"The gradient is cut: {self.cuts_sentence(op)}.", remedy, back.index)

    def end_culprit(self, op: RecordedOp, back: RecordedOp) -> Culprit:
        """The same where the output hangs on it: a cut behind the decision is passed by reading what comes before."""
        cut, tap = self.cut_culprit(op, back), self.tap_scale(op)
        if tap is None:
            return cut
        return dataclasses.replace(cut, mechanism="output-hides-loss", remedy="tap", scale=tap)

    def cuts_sentence(self, op: RecordedOp) -> str:
        """What the cut at `op` does."""
        return next((cut.sentence for cut in self.cuts if cut.op == op.index), f"{op.name} drops the gradient")

    def _failing_culprit(self, op: RecordedOp) -> Culprit | None:
        """The op if a backward pass raises in it, other than for want of a derivative."""
        refusal = self.e.observer.failed.get(op.index)
        if refusal is None or self.underived(op):
            return None
        remedy: Remedy = "function-forward" if op.kind == "function" else "straight-through"
        if self._writer(op) is not None:
            remedy = "keep-saved"
        return Culprit("failing-backward", op.location, "high", f"{refusal.rstrip('.')}.", remedy, op.index)

    def _overwriting(self) -> list[Culprit]:
        """The ops that write over what an earlier one had kept for its backward pass."""
        pairs = {writer.index: (op, writer) for op in self.killers if (writer := self._writer(op)) is not None}
        return [
            Culprit(
                "failing-backward", writer.location, "high",
                f"{writer.name} writes over what {op.name} kept for its backward pass.", "keep-saved", writer.index,
            )
            for op, writer in pairs.values()
        ]  # fmt: skip

    def _writer(self, op: RecordedOp) -> RecordedOp | None:
        """What wrote to the data of an op whose backward pass found them changed."""
        if "modified by an inplace operation" not in self.e.observer.failed.get(op.index, ""):
            return None
        kept = {t.untyped_storage().data_ptr() for t in (*op.inputs, *op.outputs) if has_memory(t)}
        return next(
            (
                later for later in self.ops[op.index + 1 :]
                if later.writes is not None and has_memory(later.writes)
                and later.writes.untyped_storage().data_ptr() in kept
            ),
            None,
        )  # fmt: skip

    def _killer_culprit(self, op: RecordedOp) -> Culprit:
        flow = self.flows[op.index]
        share = f"{flow.zero_share:.0%} of the gradients that reach {op.name} leave it as exact zero"
        if self.underived(op):
            share = "torch has no derivative for this op, so that the backward pass fails here"
        elif flow.nonfinite_share > KILLS:
            share = f"{flow.nonfinite_share:.0%} of the gradients that leave {op.name} are infinite or undefined"
            if op.kind != "function":
                return Culprit("failing-backward", op.location, "high", f"{share}.", "straight-through", op.index)
        tap = self.tap_scale(op)
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
                           self.spread(op) if tap is None else scale)  # fmt: skip
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

    def _false_trends(self) -> list[Culprit]:
        """Staircases that take the gradient of what does not go along with them."""
        return [
            Culprit(
                "lying-backward", one.total.location, "high",
                f"{one.total.name} has the value of a staircase and the gradient of what does not follow it "
                f"(agreement {one.trend:.2f}).",
                op=one.total.index,
            )
            for one in self.estimators if one.foreign
        ]  # fmt: skip

    def _ripples(self) -> list[Culprit]:
        found = []
        killed = {op.index for op in self.killers}
        for op in self.ops:
            moved = self.e.movement.phases.get(op.index, 0.0)
            if op.name in SAWTOOTH:
                if op.live_out and self.e.health.zero_share > KILLS and op.index in self.e.movement.changes:
                    sentence = f"{op.name} cancels the slope of what it is taken from: the result is a staircase."
                    found.append(Culprit("shattered", op.location, "high", sentence, "mute", op.index))
            elif op.live_out and moved > PHASE and op.index not in killed:
                sentence = f"A change of ε moves the argument of {op.name} by {moved:.0f} rad: its slope is noise."
                found.append(Culprit("jagged-surface", op.location, "high", sentence, "mute", op.index))
        return found

    def hooks(self) -> list[Culprit]:
        """Hooks that the forward pass registers on tensors, where nothing else explains the gradient."""
        mechanism, sentence = "lying-backward", "A hook on the forward pass rewrites the gradient."
        if self.e.observer.failure:
            mechanism, sentence = "failing-backward", f"{self.e.observer.failure.rstrip('.')}."
        return [
            Culprit(mechanism, self.ops[i].location, "high", sentence, "ignore-hook", i)
            for i in self.e.observer.hooked if i < len(self.ops) and self.ops[i].live_in
        ]  # fmt: skip

    def _loops(self) -> list[Culprit]:
        """Lines that run again and again, and through which the gradient grows at every turn."""
        turns: dict[tuple[str, str | None, int | None, str], list[RecordedOp]] = {}
        for op in self.ops:
            if op.line is not None and op.index in self.flows and op.index in self.ancestors:
                turns.setdefault((op.module, op.file, op.line, op.name), []).append(op)
        found: dict[tuple[str, str | None, int | None], Culprit] = {}
        for (module, file, line, _), ops in turns.items():
            late, early = self.flows[ops[-1].index].norm_in, self.flows[ops[0].index].norm_out
            grows = len(ops) >= LOOP_TURNS and late > 0 and early > LOOP_GROWTH * late
            if grows and (module, file, line) not in found and ops[0].index in self.ancestors_of(ops[-1].index):
                sentence = (
                    f"This line runs {len(ops)} times, and the gradient grows {early / late:.0e}-fold on its way back "
                    "through it: its slope is noise."
                )
                found[module, file, line] = Culprit(
                    "jagged-surface", ops[0].location, "high", sentence, "boundary", ops[0].index
                )
        return list(found.values())

    def optimisation(self) -> list[Culprit]:
        """Optimisation inside the forward pass of a model whose gradient is unhealthy, if its result is used."""
        used = {op.location for op in self.ops if op.name == "grad" and op.index in self.ancestors}
        places = [place for place in dict.fromkeys(self.e.observer.optimises) if place.op != "grad" or place in used]
        sentence = "The forward pass optimises: an attack through it needs the gradient of every step."
        return [Culprit("test-time-optimisation", place, "high", sentence) for place in places[:1]]

    def tap_scale(self, op: RecordedOp) -> float | None:
        return gap_scale(op.inputs[0].detach()) if self.decides(op) else None

    def spread(self, op: RecordedOp) -> float:
        """Temperature for a saturated op: the mean magnitude of its input, at least 1."""
        if not op.inputs:
            return 1.0
        return max(1.0, float(op.inputs[0].detach().double().abs().mean()))


def gap_scale(scores: Tensor) -> float:
    """Divisor that brings the median top-two gap of scores (N, K) to `RESCALED_GAP`."""
    top = scores.double().topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median())
    return gap / RESCALED_GAP if gap > 0 else 1.0
