"""The trace of a model that answers only as long as it is not asked for a gradient.

What torch refuses call by call is traced like any cut. Here the forward pass itself ends with an error where its input
requires a gradient: a check of the model's own, or code that torch's modes do not see.
"""

from __future__ import annotations

from torch import Tensor, nn

from maskaudit.errors import GradientError
from maskaudit.files import shown_path
from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.target.kinds import output_kind
from maskaudit.trace.behaviour import model_kind
from maskaudit.trace.differences import DIFFERENCE_STEPS
from maskaudit.trace.records import Culprit, GradientHealth, Trace
from maskaudit.trace.scope import is_users


def refused(target: Target, x: Tensor, eps: float, error: GradientError) -> Trace:
    """The trace whose only finding is where the forward pass raised `error`, for inputs `x` (N, …)."""
    nothing = tuple((eps * step, 0.0) for step in DIFFERENCE_STEPS)
    sentence = f"The forward pass fails where a gradient is asked for. {str(error).rstrip('.')}."
    return Trace(
        kind=model_kind(target.model),
        points=len(x),
        ops=(),
        cuts=(),
        functions=(),
        randomness=None,
        output_kind=output_kind(target.raw(x), target.form),
        health=GradientHealth(False, 1.0, 1.0, nothing, pairs=(0, 0)),
        optimises=(),
        culprits=(Culprit("failing-backward", _place(error, target.model), "high", sentence),),
    )


def _place(error: BaseException, model: object) -> Location:
    """The innermost line of the user's in the traceback of what the model raised, and the module that ran it."""
    names = {id(m): name for name, m in model.named_modules()} if isinstance(model, nn.Module) else {}
    origin: BaseException = error
    while origin.__cause__ is not None:
        origin = origin.__cause__
    place, module, frames = Location("", "forward"), "", origin.__traceback__
    while frames is not None:
        frame = frames.tb_frame
        module = names.get(id(frame.f_locals.get("self")), module)
        if is_users(frame.f_code.co_filename):
            place = Location(module, "forward", shown_path(frame.f_code.co_filename), frames.tb_lineno)
        frames = frames.tb_next
    return place
