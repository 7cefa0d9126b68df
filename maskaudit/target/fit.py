"""Find how a model takes its inputs, by asking: number type, layout of the axes, and a batch size that is baked in.

What the model takes as it is given is left so. Else the ways that people's models differ in are tried on two points,
the likeliest first, and the first that it answers is taken.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from maskaudit.errors import ModelError, UsageError
from maskaudit.settings import Layout
from maskaudit.target.form import LAYOUTS, Form
from maskaudit.target.model import Target

#: Number types that models compute in; inputs come in the first.
TYPES = ("float32", "float64", "float16", "bfloat16")
#: Batch sizes that are tried where a model takes no other: one, what people trace and export with, and all up to 16.
SIZES = (1, 8, 4, 16, 32, 64, 128, 256, *(n for n in range(2, 16) if n not in (4, 8)), 20, 24, 48, 50, 96, 100, 512)
#: Times the root of the rounding, as a share of the spread of the scores, and the rounding of the scores themselves, by
#: which copies in two types may differ.
ALIKE = 4.0
#: Points that are asked; a model that is meant for two only shows itself at three.
FEW, MORE = 2, 3

_MISFIT = re.compile(
    r"shape|size|channel|dim(ension)?s?\b|mat1|dtype|scalar type|same type|invalid for input|Half|Double|BFloat16|"
    r"expected .* but|index out of|out of range|batch|\b\dD\b|unbatched|Got:",
    re.IGNORECASE,
)


def misfit(error: ModelError) -> bool:
    """Whether a failure may come from the shape or the type of the input."""
    return _MISFIT.search(str(error.__cause__ or error)) is not None


def fit(target: Target, x: Tensor, layout: Layout = "auto") -> list[str]:
    """Set `target.form` so that the model answers points (N, …), as it does or in `layout`.

    Returns:
        Notes for the report, as sentences; nothing where the model takes the points as they are.

    Raises:
        UsageError: for a layout that such points cannot have.
        ModelError: the model's own, where nothing that was tried helps.
    """
    if layout != "auto" and not LAYOUTS[layout].fits(tuple(x.shape[1:])):
        raise UsageError(f"--layout {layout} does not fit inputs of shape (N, {', '.join(map(str, x.shape[1:]))}).")
    given = target.form.changed(layout="as-is" if layout == "auto" else layout)
    failure: ModelError | None = None
    for form in _ways(given, target, x, free=layout == "auto"):
        target.form = form
        try:
            target.answers(x[:FEW])
            target.answers(x[:MORE])
        except ModelError as error:
            failure = failure or error
            if not misfit(error):
                break
        else:
            return _notes(form, given)
    target.form = given
    assert failure is not None
    raise failure


def _ways(given: Form, target: Target, x: Tensor, *, free: bool) -> Iterator[Form]:
    """Forms to try: number types, then layouts with them, then fixed batch sizes."""
    types = _types(target.model)
    layouts = [name for name, one in LAYOUTS.items() if one.fits(tuple(x.shape[1:]))] if free else [given.layout]
    for layout in layouts:
        for dtype in types:
            yield given.changed(layout=layout, dtype=dtype)
    for size in dict.fromkeys((target.batch_size, *SIZES)):
        for layout in layouts[:3]:
            for dtype in types[:2]:
                yield given.changed(layout=layout, dtype=dtype, most=size)


def _types(model: object) -> tuple[str, ...]:
    """Number types, that of the model's own weights first where they are of one."""
    own: Iterable[str] = ()
    if isinstance(model, nn.Module):
        tensors = [*model.parameters(), *model.buffers()]
        own = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} & set(TYPES)
    only = tuple(own)
    return tuple(dict.fromkeys((*(only if len(only) == 1 else ()), *TYPES)))


def _notes(form: Form, given: Form) -> list[str]:
    """What was found, for the report."""
    notes = []
    if form.dtype != "float32":
        notes.append(f"The model computes in {form.dtype} and is audited in it.")
    if form.layout != given.layout:
        notes.append(f"The model takes its inputs {LAYOUTS[form.layout].phrase} (--layout {form.layout}).")
    if form.most:
        size = "a single point" if form.most == 1 else f"exactly {form.most} points"
        fails = f"The model fails on {MORE if form.most == FEW else FEW} points per call"
        notes.append(
            f"{fails} and is asked {size} each time, as if its batch size were fixed; missing points are filled up."
        )
    return notes


def in_type(target: Target, dtype: torch.dtype, x: Tensor) -> Target | None:
    """The target around a copy of its model in another number type; None where the copy does not answer alike.

    Args:
        target: the open target; its model is not touched.
        x: points (N, …) on which the copy is compared.
    """
    if not isinstance(target.model, nn.Module):
        return None
    try:
        other = copy.copy(target)
        other.model = copy.deepcopy(target.model).to(dtype)
        other.form = target.form.changed(dtype=str(dtype).removeprefix("torch."), fresh=False)
        with torch.no_grad():
            before, after = target.scores(x), other.scores(x)
    except Exception:  # foreign code that was not made for this type
        return None
    types = [torch.finfo(getattr(torch, name)) for name in (target.form.dtype, "float32")]
    rounding, tiny = max(one.eps for one in types), max(one.tiny for one in types)  # below it digits are lost
    spread, size = float(before.amax() - before.amin()), float(before.abs().amax())
    allowed = ALIKE * (rounding**0.5 * spread + rounding * size + tiny)
    return other if float((before - after).abs().max()) <= allowed else None
