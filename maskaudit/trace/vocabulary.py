"""Names of ops by what they do to a gradient.

They, and most limits of the trace (`maskaudit.verdict.limits`), were settled on the twenty hand-built masks of
`tests/trace/masked_models.py`; nothing was fitted to the part "check" of the zoo. What was added after a look at it
(loops, indices as cuts, gates driven by random numbers, outputs that bend the loss) is named in docs/verdict.md; the
cases of `tests/trace/hard_cases.py` were written afterwards and changed none of it but the search behind cuts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

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
#: What a rectifier is taken for. They differ on purpose:
#:
#: - "floor": it cuts its argument off from below, so that a unit may be off at all points; dormant units are looked for
#:   in these, whatever lies above the floor and wherever the floor is.
#: - "dead": with the right arguments it is a ReLU, 0 below 0, whose dead units are counted. What leaks is not dead, and
#:   the floor of `maximum` is a tensor.
#: - "half": it blocks about half of its units in health, so that only far more is suspicious. Clamps and their kind are
#:   `SATURATING`, since they are meant to let their argument through; hardswish has no floor, but a dead side.
#: - "leaky": a leaky slope stands in for it. The others, flat above as well or made to limit, get the identity
#:   (`maskaudit.repairs.surrogates.CLAMPS`).
RectifierUse = Literal["floor", "dead", "half", "leaky"]
#: Rectifiers by plain name, and what they are taken for.
RECTIFIERS: Mapping[str, tuple[RectifierUse, ...]] = {
    "relu": ("floor", "dead", "half", "leaky"), "threshold": ("floor", "dead", "half", "leaky"),
    "relu6": ("floor", "dead", "half"), "clamp_min": ("floor", "dead", "half"),
    "hardtanh": ("floor", "dead"), "clamp": ("floor", "dead"),
    "leaky_relu": ("floor",), "maximum": ("floor",),
    "hardswish": ("half",),
}  # fmt: skip


def rectifiers(use: RectifierUse, *more: str) -> frozenset[str]:
    """Names of the rectifiers taken for this, and more: in-place forms, where names are compared as they are."""
    return frozenset({name for name, uses in RECTIFIERS.items() if use in uses} | set(more))


RELU = rectifiers("half", "relu_", "threshold_")
#: Ops that act on single units and may block some of them.
BLOCKING = SATURATING | SMOOTH | RELU | HARD
SOFTMAX = frozenset({"softmax", "log_softmax", "_softmax", "_log_softmax"})
SCALING = frozenset({"mul", "div", "__mul__", "__rmul__", "__truediv__", "true_divide", "multiply", "mul_", "div_"})
#: Ops of torch that round and have the gradient of the identity within their range.
FAKE_QUANTISERS = frozenset({
    "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant",
    "_fake_quantize_learnable_per_tensor_affine", "_fake_quantize_learnable_per_channel_affine",
})  # fmt: skip
ADDING = frozenset({
    "add", "sub", "rsub", "__add__", "__radd__", "__sub__", "__rsub__", "add_", "sub_", "subtract", "__iadd__",
    "__isub__",
})  # fmt: skip
#: Of these, those that subtract their second tensor, and those that subtract their first.
SUBTRACTING = frozenset({"sub", "__sub__", "sub_", "subtract", "__isub__"})
SUBTRACTING_FROM = frozenset({"rsub", "__rsub__"})
#: Ops that answer with places or classes.
CHOICES = frozenset({"argmax", "argmin", "argsort", "one_hot", "bucketize", "searchsorted"})
GATES = frozenset({"mul", "where", "masked_fill", "masked_fill_", "__setitem__", "__mul__", "multiply", "mul_"})
COMPARISONS = frozenset({
    "gt", "ge", "lt", "le", "eq", "ne", "__gt__", "__ge__", "__lt__", "__le__", "topk", "kthvalue", "isclose",
    "scatter", "scatter_", "greater", "less",
})  # fmt: skip
#: Ops that draw random numbers.
RANDOM = frozenset({
    "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "poisson", "dropout", "exponential_", "random_",
})  # fmt: skip
#: Ops that only move values about; a gradient that ends in one was never there.
STRUCTURAL = frozenset({
    "unbind", "__getitem__", "view", "reshape", "flatten", "cat", "stack", "split", "chunk", "select", "permute",
    "transpose", "squeeze", "unsqueeze", "expand", "contiguous", "to", "clone", "narrow", "index_select", "gather",
})  # fmt: skip
#: Sawtooth ops: subtracted from their own input they leave a staircase.
SAWTOOTH = frozenset({"remainder", "fmod", "frac", "__mod__"})
#: Ops of a TorchScript graph whose result is not connected to their input in the autograd graph.
CUTTING = frozenset({
    "detach", "argmax", "argmin", "argsort", "searchsorted", "bucketize", "one_hot", "item", "Int", "Float", "Bool",
    "gt", "ge", "lt", "le", "eq", "ne", "isclose", "logical_and", "logical_or", "logical_not", "bincount", "nonzero",
    "Byte", "_cast_Byte", "_cast_Int", "_cast_Long", "numpy_T", "multinomial",
})  # fmt: skip
#: Autograd nodes (as `scripted.node_kind` names them) that an op of a TorchScript graph leaves, where names differ.
GRAPH_KINDS: Mapping[str, tuple[str, ...]] = {
    "conv1d": ("convolution",), "conv2d": ("convolution",), "conv3d": ("convolution",),
    "_convolution": ("convolution",), "conv_transpose2d": ("convolution",),
    "linear": ("addmm", "mm", "t", "view", "unsafe_view", "add"),
    "matmul": ("mm", "bmm", "mv", "dot", "expand", "unsafe_view", "view"),
    "flatten": ("view", "reshape_alias", "unsafe_view"), "reshape": ("view", "reshape_alias", "unsafe_view"),
    "max_pool2d": ("max_pool2_dwith_indices", "max_pool2d_with_indices"), "max_pool1d": ("squeeze", "unsqueeze"),
    "adaptive_avg_pool2d": ("mean", "adaptive_avg_pool2_d"), "avg_pool2d": ("avg_pool2_d",),
    "adaptive_max_pool2d": ("adaptive_max_pool2_d",),
    "batch_norm": ("native_batch_norm", "cudnn_batch_norm"), "layer_norm": ("native_layer_norm",),
    "group_norm": ("native_group_norm",), "dropout": ("native_dropout", "mul", "div"),
    "upsample_nearest2d": ("upsample_nearest2_d",), "upsample_bilinear2d": ("upsample_bilinear2_d",),
    "pad": ("constant_pad_nd", "reflection_pad2_d", "replication_pad2_d"), "true_divide": ("div",),
    "clamp": ("clamp", "clamp_min", "clamp_max"), "floor_divide": ("not_implemented",),
    "scaled_dot_product_attention": ("scaled_dot_product_flash_attention_for_cpu", "bmm", "softmax"),
}  # fmt: skip
