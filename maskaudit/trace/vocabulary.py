"""Names of ops by what they do to a gradient, and the limits beyond which they are suspects."""

from __future__ import annotations

#: Share of points with a zero gradient above which something is wrong
#: (docs/verdict.md: 13 of 17 masked, 0 of 24 honest).
ZERO_SHARE = 0.05
#: Healthy directional derivatives correlate at least this well with central differences (docs/verdict.md: .92 and above
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
    "tanh", "sigmoid", "hardtanh", "clamp", "clip", "hardsigmoid", "softsign", "erf", "clamp_max", "tanh_",
    "sigmoid_", "clamp_", "clip_", "atan", "arctan", "logsigmoid", "hardtanh_", "minimum", "maximum", "softmax",
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
#: Sawtooth ops: subtracted from their own input they leave a staircase.
SAWTOOTH = frozenset({"remainder", "fmod", "frac", "__mod__"})
