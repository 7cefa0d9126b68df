"""How a model is asked and how its answers are read: found once at the start of an audit, or stated by options.

A `Form` is plain data, so that workers and reviewers ask a model exactly as the audit did.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from maskaudit.declared import Choice, Flag, Number, Record, Text, Whole
from maskaudit.settings import Layout, Outputs
from maskaudit.threat import Features

#: Largest batch size that is looked for or read from a file.
MOST_POINTS = 65_536
#: The smallest normal number of float32: its logarithm replaces that of a probability of 0.
TINY = float(torch.finfo(torch.float32).tiny)
#: Kinds whose rows are shares of one whole, and kinds of a single output.
SHARES = ("probabilities", "votes")
SINGLE = ("one-logit", "one-probability")

_ANY = Number(-1e30, 1e30)
#: What a file says of a form.
FIELDS = Record(
    {
        "outputs": Choice(*get_args(Outputs)),
        "scale": Number(0, 1e30, above=True),
        "offset": _ANY,
        "smallest": Number(0, 1, above=True),
        "threshold": _ANY,
        "dtype": Choice("float32", "float64", "float16", "bfloat16"),
        "layout": Choice(*get_args(Layout)[1:]),
        "swap": Flag(),
        "output_key": Text(),
        "least": Whole(1, MOST_POINTS),
        "most": Whole(0, MOST_POINTS),
        "alone": Flag(),
        "fresh": Flag(),
    },
    ignore_unknown=True,
)


@dataclass(frozen=True)
class _Layout:
    """An order of the axes: the words for it, which points (…) can have it, and how a batch (N, …) is brought to it."""

    phrase: str
    fits: Callable[[tuple[int, ...]], bool]
    of: Callable[[Tensor], Tensor]


def _square(numbers: int) -> int:
    """Side of the square image that so many numbers make, with one or three channels; 0 where they make none."""
    sides = (math.isqrt(numbers // channels) for channels in (1, 3))
    return next((side for side in sides if side > 2 and numbers in (side * side, 3 * side * side)), 0)


#: Layouts of a batch, the likeliest first.
LAYOUTS: Mapping[str, _Layout] = {
    "as-is": _Layout("as they are", lambda shape: True, lambda x: x),
    "channels-last": _Layout(
        "with the channels last, (N, …, C)", lambda shape: len(shape) > 1, lambda x: x.movedim(1, -1)
    ),
    "no-channel": _Layout(
        "without an axis for the only channel", lambda shape: len(shape) > 1 and shape[0] == 1, lambda x: x.squeeze(1)
    ),
    "one-channel": _Layout("with an axis for one channel, (N, 1, …)", lambda shape: True, lambda x: x.unsqueeze(1)),
    "flat": _Layout("as vectors", lambda shape: len(shape) > 1, lambda x: x.flatten(1)),
    "square": _Layout(
        "as square images of one or three channels",
        lambda shape: len(shape) == 1 and _square(shape[0]) > 0,
        lambda x: x.unflatten(1, (-1, _square(x.shape[1]), _square(x.shape[1]))),
    ),
    "row": _Layout("as images of one row, (N, 1, 1, D)", lambda shape: True, lambda x: x.flatten(1)[:, None, None]),
    "column": _Layout(
        "as images of one column, (N, 1, D, 1)", lambda shape: True, lambda x: x.flatten(1)[:, None, :, None]
    ),
}


@dataclass(frozen=True)
class Form:
    """How a model is asked, and what it returns.

    Attributes:
        outputs: kind of the output.
        scale, offset: a probability p is returned as offset + scale · p.
        smallest: the smallest probability that the output can tell from 0; it is added before the logarithm is taken,
            so that what was rounded to 0 keeps the gradient that it has.
        least: the fewest points that the model takes in a call; fewer are repeated.
        most: the points that it takes in a call, neither more nor fewer, if its batch size is fixed; 0 if it is not.
        dtype: number type in which the model computes.
        layout: order of the axes that it takes; see `LAYOUTS`.
        swap: whether it takes the channels in the reverse order.
        output_key: name or position of the output that holds the scores, where there are several; "" to find it.
        alone: whether every point is asked alone, since answers depend on company.
        fresh: whether the model is put back before every call, since it keeps a state.
        threshold: the value above which the output of a model with a single one means class 1.
        features: what the coordinates of points mean, where they are shares of each feature's range.
        snap: whether whole numbers and categories are shown as such, whatever the coordinates.
    """

    outputs: Outputs = "logits"
    scale: float = 1.0
    offset: float = 0.0
    smallest: float = TINY
    threshold: float = 0.0
    features: Features | None = None
    snap: bool = False
    dtype: str = "float32"
    layout: Layout = "as-is"
    swap: bool = False
    output_key: str = ""
    least: int = 1
    most: int = 0
    alone: bool = False
    fresh: bool = False

    def values(self, x: Tensor) -> Tensor:
        """A batch (N, …) in the units of its features; the graph is kept."""
        return x if self.features is None else self.features.decode(x, snap=self.snap)

    def inputs(self, x: Tensor) -> Tensor:
        """A batch (N, …) as the model takes it; the graph is kept."""
        x = LAYOUTS[self.layout].of(x.flip(1) if self.swap else x)
        return x if self.dtype == "float32" else x.to(getattr(torch, self.dtype))

    @property
    def score_type(self) -> torch.dtype:
        """Number type of the scores: float64 for a model that computes in it, else float32."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def coarse(self) -> bool:
        """Whether probabilities are given in steps, or in a type, too coarse for small ones: a 0 says "less than"."""
        return self.outputs in SHARES and self.smallest > TINY

    def normal(self, raw: Tensor) -> Tensor:
        """Answers (N, K) in their usual unit: probabilities between 0 and 1; others as they are."""
        if self.outputs not in SHARES or (self.scale, self.offset) == (1.0, 0.0):
            return raw
        return (raw - self.offset) / self.scale

    def scores(self, raw: Tensor) -> Tensor:
        """Answers (N, K) on the scale of logits, so that every loss can use them; the graph is kept."""
        if self.outputs in SHARES:
            p = self.normal(raw)
            return (p.clamp_min(0) + self.smallest if self.coarse else p.clamp_min(TINY)).log()
        if self.outputs == "sigmoids":
            return torch.logit(raw, eps=max(self.smallest, torch.finfo(raw.dtype).eps))
        return raw

    def two_classes(self, raw: Tensor) -> Tensor:
        """The single answers (N, 1) of a binary classifier as scores (N, 2), equal where it is undecided."""
        if self.outputs == "one-probability":
            eps = max(self.smallest, torch.finfo(raw.dtype).eps)
            held = (raw - self.offset) / self.scale
            above = torch.logit(held, eps=eps) - _log_odds((self.threshold - self.offset) / self.scale)
        else:
            above = raw - self.threshold
        return torch.cat([-above / 2, above / 2], dim=1)

    def changed(self, **values: Any) -> Form:
        """A copy with other values of some fields."""
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without the features, which the threat model holds."""
        return {name: value for name, value in vars(self).items() if name in FIELDS.fields}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Form:
        """The reverse of `to_dict`, from fields read by `FIELDS`."""
        return cls(**{name: value for name, value in fields.items() if name in FIELDS.fields})


def _log_odds(p: float) -> float:
    held = min(max(p, 1e-12), 1 - 1e-12)
    return math.log(held / (1 - held))
