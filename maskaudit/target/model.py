"""The audited model behind one interface.

`Target` turns any module or callable into class scores of shape (N, K), gives
input gradients of a per-point objective, cuts work into batches, and counts
every pass. While it is open (`with target:`) the model is in evaluation mode and
on the target's device; on leaving, also after an exception, the model and the
caller's world (see `maskaudit.target.preserve`) are put back bit for bit.

Whatever the model raises is its failure, not ours: a `ModelError` in the forward
pass, a missing gradient where only the gradient fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import foreign
from maskaudit.errors import GradientError, ModelError, UsageError
from maskaudit.settings import Outputs
from maskaudit.target import accelerator
from maskaudit.target.batches import Batches, Part
from maskaudit.target.chunks import FixedBatch
from maskaudit.target.form import SINGLE, Form
from maskaudit.target.gradient import Gradient
from maskaudit.target.model_contents import Belongings
from maskaudit.target.passes import (
    BATCH,
    Normaliser,
    PassLedger,
    differentiate,
    of_the_model,
    out_of_memory,
    sentence_of,
)
from maskaudit.target.preserve import open_checkpoints, preserved
from maskaudit.target.process_state import Modes, TorchFlags
from maskaudit.target.scores import Unchecked, breaking_margin, checked_scores, columns, refuse_nan

Objective = Callable[[Tensor, Tensor], Tensor]
"""(scores (N, K), rows (N,)) → value per point (N,), to be ascended; `rows` index the points of the call."""


class Target:
    """A classifier under audit.

    Scores are looked at as they come. Within `late_checks`, where an attack runs, scores on an accelerator are
    looked at once, at its end.

    Args:
        model: maps inputs (N, C, H, W) or (N, D) to logits or probabilities (N, K), K ≥ 2.
        bounds: smallest and largest coordinate; inputs outside are refused.
        mean, std: per-channel normalisation applied before the model, if it is not part of it.
        outputs: what the model returns; probabilities are turned into their logarithm, so that
            every loss sees scores on the scale of logits.
        form: the same with all that else was found about how to ask and read the model; goes before `outputs`.
        draws: forward passes averaged per evaluation; above 1 for random models only.
        reject_class: index of an output that means "refused to answer", if the model has one.
            Predicting it counts neither as correct nor as broken.
        batch_size: largest number of points per pass.
        seed: seeds the global generators while the target is open, for models that draw from them.

    Attributes:
        batches: how many points are asked at once now.
        before_pass: called before every batch; may raise to end the work.
        averaging: makes the gradient of a batch out of those of single draws, one per call; None for the mean of
            `draws` of them.
        gradient_failure: the first sentence that a pass with a gradient failed with, if one did.
        needs_graph: whether the model answers only where gradients are recorded, since it differentiates in its
            forward pass; it is then asked in no other way. None before the first answer.
        worked_out: what others found out about the model and need not find again, by name; a copy begins anew.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        outputs: Outputs = "logits",
        form: Form | None = None,
        draws: int = 1,
        reject_class: int | None = None,
        batch_size: int = BATCH,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or draws < 1:
            raise UsageError(f"Batch size and draws must be at least 1, got {batch_size} and {draws}.")
        self.model = model
        if std is not None and not all(s > 0 for s in std):
            raise UsageError("Every entry of --std must be positive.")
        self.bounds = bounds
        self.mean, self.std = mean, std
        self._normalise = Normaliser()
        self.form = form or Form(outputs)
        if isinstance(model, FixedBatch):
            self.model, self.form = model.module, self.form.changed(most=model.size)
        self.draws = draws
        self.reject_class = reject_class
        self.batch_size, self.batches = batch_size, Batches(batch_size)
        self.device = torch.device(device)
        self.seed = seed
        self.ledger = PassLedger()
        self.before_pass: Callable[[], None] | None = None
        self.averaging: Callable[[Callable[[], Gradient]], Gradient] | None = None
        self.gradient_failure = ""
        self.needs_graph: bool | None = None
        self.worked_out: dict[str, object] = {}
        self._flags = TorchFlags.read()
        self._stack: contextlib.ExitStack | None = None
        self._start: Belongings | None = None
        self._unchecked: Unchecked | None = None
        self._classes: int | None = None

    @property
    def outputs(self) -> Outputs:
        """The kind of output that the model returns, such as logits."""
        return self.form.outputs

    @outputs.setter
    def outputs(self, outputs: Outputs) -> None:
        self.form = self.form.changed(outputs=outputs)

    @property
    def random(self) -> bool:
        """Whether answers are averaged over draws; attacks then never stop at a first success."""
        return self.draws > 1

    @property
    def stop_early(self) -> bool:
        """Whether the first misclassification proves the point (deterministic model without a reject class)."""
        return not self.random and self.reject_class is None

    def __enter__(self) -> Target:
        with foreign.Call(), contextlib.ExitStack() as stack:
            stack.enter_context(preserved(self.model, seed=self.seed))
            stack.enter_context(open_checkpoints())
            if isinstance(self.model, nn.Module):
                if self.device.type != "cpu":
                    self.model.to(self.device)
                # frozen TorchScript has no mode, and that of an exported program was settled when it was exported
                if hasattr(self.model, "training"):
                    with contextlib.suppress(NotImplementedError):
                        self.model.eval()
            self._flags = TorchFlags.read()
            if self.form.fresh:
                self.remember()
            self._stack = stack.pop_all()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A closed target that has counted nothing, as it is sent to another process."""
        return {**self.__dict__, "ledger": PassLedger(), "worked_out": {}, "_stack": None, "_unchecked": None}

    def __copy__(self) -> Target:
        """The same settings around the same model, counting in the same ledger."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, worked_out={})
        return other

    def __exit__(self, *exception: object) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = self._start = None
        self.worked_out = {}

    @contextlib.contextmanager
    def late_checks(self) -> Iterator[None]:
        """Within, passes on an accelerator do not wait for it; NaN among the scores is refused on leaving.

        Raises:
            ModelError: on leaving, as the passes themselves do elsewhere and on the CPU.
        """
        if accelerator.asking_is_free(self.device) or self._unchecked is not None:
            yield
            return
        self._unchecked = unchecked = Unchecked(torch.zeros((), dtype=torch.int64, device=self.device))
        try:
            yield
        finally:  # also where the NaN was what made the attack fail
            self._unchecked = None
            unchecked.settle()

    def raw(self, x: Tensor) -> Tensor:
        """One fresh forward pass per point without gradient: what the model returned, float32 (N, K)."""
        with torch.no_grad():
            return torch.cat(self._in_batches(len(x), lambda rows: self._answer(x[rows], self._call)))

    def scores(self, x: Tensor) -> Tensor:
        """Class scores (N, K) without gradient, averaged over `draws` passes."""
        with torch.no_grad():
            parts = self._in_batches(len(x), lambda rows: self._scores_of_batch(x[rows]))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _scores_of_batch(self, x: Tensor) -> Tensor:
        total = self._answer(x, self._scores_once)
        for _ in range(self.draws - 1):
            total = total + self._answer(x, self._scores_once)
        return total / self.draws  # a copy: the model may write its next answer over this one

    def value_and_grad(self, x: Tensor, objective: Objective) -> Gradient:
        """Scores, objective and input gradient at `x` (N, …); draws are averaged for random models.

        Where the model fails only because a gradient is asked for, that of the batch is zero, and
        `gradient_failure` says why.

        Raises:
            ModelError: when the model raises or returns something that is not class scores.
        """

        def gradient(rows: slice) -> Gradient:
            return self._gradient_of_batch(x[rows], torch.arange(rows.start, rows.stop, device=x.device), objective)

        return Gradient.joined(self._in_batches(len(x), gradient))

    def differentiable_scores(self, x: Tensor) -> Tensor:
        """Class scores (N, K) of one batch with the graph to `x` kept, one draw; for callers that differentiate twice.

        Raises:
            ModelError: when the model raises or returns something that is not class scores; `GradientError` if only
                because of the graph.
        """
        try:
            return self._scores_once(x)
        except ModelError as error:
            if isinstance(error, GradientError) or out_of_memory(error) or not self._answers_without(x):
                raise
            raise GradientError(str(error)) from error.__cause__ or error

    def _answers_without(self, x: Tensor) -> bool:
        """Whether the model answers a batch if no gradient is asked for."""
        try:
            with torch.no_grad():
                self._scores_once(x.detach())
        except ModelError:
            return False
        return True

    def _answer(self, x: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """What a batch (n, …) is answered, off the graph; the first answer shows whether that needs a graph."""
        if self.needs_graph is None:
            try:
                answer = ask(x)
            except ModelError as error:
                if out_of_memory(error):
                    raise
                try:
                    answer = self._on_graph(x, ask)
                except ModelError:
                    raise error from error.__cause__
                self.needs_graph = True
                return answer
            self.needs_graph = False
            return answer
        return self._on_graph(x, ask) if self.needs_graph else ask(x)

    def _on_graph(self, x: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            return ask(x.detach().requires_grad_(True)).detach()

    def predict(self, scores: Tensor) -> Tensor:
        """Predicted class (N,) for scores (N, K)."""
        return scores.argmax(dim=1)

    def margin(self, scores: Tensor, y: Tensor) -> Tensor:
        """Largest score of a class that would break the point, less the score that holds it; > 0 means broken. (N,)."""
        return breaking_margin(scores, y, self.reject_class).float()

    def count_backward(self, points: int) -> None:
        """Record backward passes made outside `value_and_grad` (double backward in probes)."""
        self.ledger.backwards += points

    def _gradient_of_batch(self, x: Tensor, rows: Tensor, objective: Objective) -> Gradient:
        def once() -> Gradient:
            return self._gradient_once(x, rows, objective)

        if self.averaging is not None:
            return self.averaging(once)
        total = once()
        for _ in range(self.draws - 1):
            total = total + once()
        return total.over(self.draws)

    def _gradient_once(self, x: Tensor, rows: Tensor, objective: Objective) -> Gradient:
        """That of one draw."""
        leaf = x.detach().requires_grad_(True)  # the model sees a copy, see `_call`
        try:
            with torch.enable_grad():
                scores = self.differentiable_scores(leaf)
        except GradientError as error:
            self.gradient_failure = self.gradient_failure or str(error)
            with torch.no_grad():
                scores = self._scores_once(x)
        with torch.enable_grad():
            value = objective(scores, rows)
            total = value.sum()
        grad = self._input_gradient(total, leaf) if total.requires_grad else None
        found = torch.zeros_like(x) if grad is None else grad.detach()
        return Gradient(scores.detach().float(), value.detach().float(), found, grad is not None)

    @contextlib.contextmanager
    def snapping(self) -> Iterator[None]:
        """Within, features that must be whole numbers or single categories are so in every pass (`Features.decode`)."""
        before = self.form
        if before.features is not None:
            self.form = before.changed(snap=True)
        try:
            yield
        finally:
            self.form = before

    def _input_gradient(self, total: Tensor, leaf: Tensor) -> Tensor | None:
        """Gradient of a sum with respect to the input; None where the model gives none."""
        self.ledger.backwards += len(leaf)
        try:
            (grad,) = differentiate(total, (leaf,))
        except GradientError as error:
            self.gradient_failure = self.gradient_failure or str(error)
            return None
        return grad

    def _scores_once(self, x: Tensor) -> Tensor:
        return self.form.scores(self._call(x))

    def _call(self, x: Tensor) -> Tensor:
        """One batch, checked and counted, in as many passes as `form` asks for."""
        parts = [self.checked(output, n)[:wanted] for output, n, wanted in self._passes(x)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.device)

    def remember(self) -> None:
        """Take the state that the model has now for the one that `put_back` gives it."""
        self._start = Belongings(self.model)

    def put_back(self) -> None:
        """Give the model the state that was remembered; generators of its own go on drawing."""
        if self._start is not None:
            self._start.restore(generators=False)

    def forget(self) -> None:
        """Remember no state any more."""
        self._start = None

    def answers(self, x: Tensor) -> Tensor:
        """What the model returned for points (N, …) in one pass, (N, K) with K ≥ 1: no kind is presumed."""
        with torch.no_grad():
            found = torch.cat(self._in_batches(len(x), lambda rows: self._answer(x[rows], self._columns)))
        refuse_nan(int(found.isnan().any(dim=1).sum()), len(x))
        return found

    def bare(self, x: Tensor) -> Tensor:
        """What the model makes of one batch (n, …), K ≥ 2 columns: neither counted nor checked, for those that record
        its operations on data without values."""
        inputs = self.form.values(x.clone())
        inputs = self._normalise(inputs, self.mean, self.std)
        raw = columns(self.model(self.form.inputs(inputs)), len(x), self.form.output_key, unseen=True)
        return self.form.two_classes(raw) if raw.shape[1] == 1 and self.form.outputs in SINGLE else raw

    def _columns(self, x: Tensor) -> Tensor:
        """What the model returned for one batch, float32 (n, K)."""
        return torch.cat(
            [columns(output, n, self.form.output_key)[:wanted].float() for output, n, wanted in self._passes(x)]
        )

    def _passes(self, x: Tensor) -> Iterator[tuple[object, int, int]]:
        """Outputs of the model for one batch, with the points that each was asked, and how many of them are meant.

        One pass, unless points must be asked alone or the batch size is fixed; missing points are filled up with the
        last one.
        """
        size = 1 if self.form.alone else self.form.most or max(1, len(x))
        for start in range(0, max(1, len(x)), size):
            part = x[start : start + size]
            missing = (self.form.most or self.form.least) - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, *x.shape[1:])]) if missing > 0 and len(part) else part
            yield self._pass(filled), len(filled), len(part)

    def _pass(self, x: Tensor) -> object:
        """What the model returned for one batch; counted."""
        if self.form.fresh:
            self.put_back()
        self.ledger.forwards += len(x)
        inputs = x.to(self.device)
        if inputs is x:
            inputs = x.clone()  # a model that works in place must not reach the caller's points
        inputs = self.form.inputs(self._normalise(self.form.values(inputs), self.mean, self.std))
        modes = Modes()
        try:
            with foreign.Call():
                return self.model(inputs)
        except BaseException as error:  # whatever the audited code raises is its failure, `sys.exit` included
            if not of_the_model(error):
                raise
            raise ModelError(sentence_of(error, f"on input of shape {tuple(x.shape)}")) from error
        finally:
            modes.restore()
            self._flags.restore()

    def checked(self, output: object, n: int) -> Tensor:
        """What a model returned for `n` inputs as float32 scores (n, K); within `late_checks` NaN is refused later.

        Raises:
            ModelError: when it is something else.
        """
        scores = checked_scores(output, n, self._unchecked, self.form)
        self._classes = self._classes or scores.shape[1]
        if scores.shape[1] != self._classes:
            raise ModelError(f"The model returned {scores.shape[1]} scores, and {self._classes} before.")
        return scores

    def _in_batches(self, n: int, do: Callable[[slice], Part]) -> list[Part]:
        """What is done to every batch of `n` points."""
        return self.batches.run(n, do, self.ledger, self.device, random=self.random, before=self.before_pass)
