"""Arguments that torch's CPU kernels take on trust, checked before the call.

Most kernels compare what they are given with the tensors that they read. Those below read or divide by what the
caller states, which is fine for torch's own callers and not for a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

#: Largest stride, dilation, kernel, padding or number of pieces.
MAX_WINDOW, MAX_PIECES = 2**20, 16_384
Arguments = Mapping[str, Any]


def names(text: str) -> frozenset[str]:
    """Names of operations, written as words."""
    return frozenset(text.split())


def check_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that would make an operation read outside its tensors, or never end.

    Args:
        func: an overload of torch.ops.aten.

    Raises:
        ValueError: naming the operation.
    """
    name = func._schema.name.removeprefix("aten::")
    guard = GUARDS.get(name)
    if guard is None:
        return
    positions = [argument.name for argument in func._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    if not guard({**defaults, **dict(zip(positions, args, strict=False)), **kwargs}):
        raise ValueError(f"aten.{name} is called with arguments that do not fit its input")


def is_guarded(func: Any) -> bool:
    """Whether `check_arguments` looks at an operation."""
    return func._schema.name.removeprefix("aten::") in GUARDS


def check_values(func: Any, args: tuple[Any, ...]) -> None:
    """Refuse values that end the process: the least whole number divided by -1, matrices that are not finite.

    Raises:
        ValueError: naming the operation.
    """
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    if name in DIVISIONS and len(args) > 1:
        check_division(args[0], args[1])
    if name in FINITE and not all(bool(item.isfinite().all()) for item in args if isinstance(item, Tensor)):
        raise ValueError(f"aten.{name} is given numbers that are not finite")


#: Divisions, which trap on the processor when whole numbers overflow.
DIVISIONS = frozenset(("div", "divide", "floor_divide", "remainder", "fmod", "true_divide", "__floordiv__"))
#: Decompositions whose LAPACK routines are made for finite numbers.
FINITE = names(
    "linalg_svd _linalg_svd svd linalg_eigh _linalg_eigh linalg_qr linalg_inv linalg_inv_ex inverse linalg_cholesky "
    "linalg_cholesky_ex cholesky linalg_solve linalg_solve_ex _linalg_solve_ex linalg_det _linalg_det det"
)


def check_division(x: Any, y: Any) -> None:
    """Refuse the one quotient of whole numbers that does not exist: the least number by -1.

    Raises:
        ValueError: when it occurs.
    """
    if not all(isinstance(item, (Tensor, int)) for item in (x, y)):
        return
    dtype = torch.result_type(x, y)
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool or dtype == torch.uint8:
        return
    if any(isinstance(item, Tensor) and item.is_meta for item in (x, y)):
        return
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        least, negative = x == torch.iinfo(dtype).min, y == -1
        hit = least & negative
        overflows = hit if isinstance(hit, bool) else bool(hit.any())
    if overflows:
        raise ValueError("a division of whole numbers overflows")


def _ints(value: Any) -> list[int]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if type(item) is int]


def _window(a: Arguments) -> bool:
    """Convolutions and pooling: positive steps and kernels, no axis of size 0, nothing absurdly large."""
    steps = [size for key in ("stride", "dilation", "kernel_size", "groups") for size in _ints(a.get(key))]
    pads = [size for key in ("padding", "output_padding", "output_size") for size in _ints(a.get(key))]
    shapes = [
        size for key in ("self", "input", "weight") if isinstance(a.get(key), Tensor) for size in a[key].shape[1:]
    ]
    divisor = a.get("divisor_override")
    return (
        all(0 < size <= MAX_WINDOW for size in steps)
        and all(0 <= size <= MAX_WINDOW for size in pads)
        and all(shapes)
        and divisor != 0
    )


def _per_channel(a: Arguments) -> bool:
    """Batch norm: one number per channel in each of its vectors."""
    x = a.get("input")
    if not isinstance(x, Tensor) or x.dim() < 2:
        return False
    vectors = [a.get(key) for key in ("weight", "bias", "running_mean", "running_var")]
    return all(vector is None or tuple(vector.shape) == (x.shape[1],) for vector in vectors)


def _grouped(a: Arguments) -> bool:
    x, sizes, group = a["input"], [a["N"], a["C"], a["HxW"]], a["group"]
    vectors = [a.get(key) for key in ("weight", "bias")]
    fits = all(vector is None or vector.numel() == sizes[1] for vector in vectors)
    return bool(math.prod(sizes) == x.numel() and group > 0 and min(sizes) >= 0 and sizes[1] % group == 0 and fits)


def _grid(a: Arguments) -> bool:
    return a["interpolation_mode"] in (0, 1, 2) and a["padding_mode"] in (0, 1, 2)


def _scaled(a: Arguments) -> bool:
    """Upsampling: where factors are stated in addition to sizes, they lead from the input's size to the output's."""
    x, sizes = a.get("self", a.get("input")), a.get("output_size")
    listed = a.get("scale_factors")
    factors = list(listed) if listed else [a.get(key) for key in ("scales_d", "scales_h", "scales_w") if key in a]
    if not factors and "scales" in a:
        factors = [a["scales"]]
    spatial = list(x.shape[2:]) if isinstance(x, Tensor) else []
    if sizes is None:
        sizes = [size * (factor or 1.0) for size, factor in zip(spatial, factors, strict=False)]
    return all(
        factor is None or (math.isfinite(factor) and factor > 0 and abs(size * factor - target) <= 1 + factor)
        for size, factor, target in zip(spatial, factors, sizes, strict=False)
    )


def _weight_norm(a: Arguments) -> bool:
    v, g, dim = a["v"], a["g"], a["dim"]
    return bool(-1 <= dim < v.dim() and g.numel() == (1 if dim == -1 else v.shape[dim]))


def _half_spectrum(a: Arguments) -> bool:
    x, dims, length = a["self"], a["dim"], a["last_dim_size"]
    return bool(dims and length > 0 and x.shape[dims[-1]] == length // 2 + 1)


def _attention(a: Arguments) -> bool:
    """Attention: queries (…, L, E), keys (…, S, E), values (…, S, V), a mask that broadcasts to (…, L, S)."""
    q, k, v, mask = a["query"], a["key"], a["value"], a.get("attn_mask")
    if min(q.dim(), k.dim(), v.dim()) < 2 or not (q.numel() and k.numel() and v.numel()):
        return False
    fits = q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2] and q.shape[:-3] == k.shape[:-3] == v.shape[:-3]
    fits = fits and k.shape[:-2] == v.shape[:-2] and (q.shape[:-2] == k.shape[:-2] or bool(a.get("enable_gqa")))
    wanted = (*q.shape[:-1], k.shape[-2])
    if mask is None:
        return bool(fits)
    pairs = zip(reversed(mask.shape), reversed(wanted), strict=False)
    return bool(fits and mask.dim() <= len(wanted) and all(size in (1, full) for size, full in pairs))


def _pieces(a: Arguments) -> bool:
    """Splitting: not into more parts than a program can name."""
    x, dim = a["self"], a.get("dim", 0)
    length = x.shape[dim] if x.dim() and -x.dim() <= dim < x.dim() else 0
    if "chunks" in a:
        return bool(0 < a["chunks"] <= MAX_PIECES)
    each = a.get("split_size", a.get("split_sizes", 1))
    if isinstance(each, (list, tuple)):
        return len(each) <= MAX_PIECES
    return bool(each > 0 and length <= MAX_PIECES * each)


#: Gates of a recurrent cell by the operation's name.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent_fits(gates: int, a: Arguments) -> bool:
    """Whether weights and states of a recurrent layer have the shapes that its input calls for."""
    x, states, weights = a["input"], a["hx"], list(a["params"])
    states = states if isinstance(states, (list, tuple)) else [states]
    if x.dim() != 3 or len(states) != (2 if gates == 4 else 1) or any(state.dim() != 3 for state in states):
        return False
    layers, directions = a["num_layers"], 2 if a["bidirectional"] else 1
    out, hidden, batch = states[0].shape[2], states[-1].shape[2], x.shape[0 if a["batch_first"] else 1]
    projected, bias, size = out != hidden, bool(a["has_biases"]), x.shape[2]
    wanted: list[tuple[int, ...]] = []
    if not (0 < layers <= MAX_PIECES and x.numel() and hidden and out):
        return False
    for layer in range(layers):
        given = size if layer == 0 else out * directions
        one = [(gates * hidden, given), (gates * hidden, out)] + [(gates * hidden,)] * 2 * bias
        wanted += (one + [(out, hidden)] * projected) * directions
        if len(wanted) > len(weights):
            return False
    shapes = [(layers * directions, batch, length) for length in (out, hidden)[: len(states)]]
    return (
        [tuple(weight.shape) for weight in weights] == wanted
        and [tuple(state.shape) for state in states] == shapes
        and len({item.dtype for item in (x, *states, *weights)}) == 1
    )


def _recurrent(gates: int) -> Callable[[Arguments], bool]:
    return lambda a: recurrent_fits(gates, a)


#: Convolutions and pooling, batch norms, upsampling.
WINDOWS = names(
    """
    conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d max_pool1d
    max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d im2col
    col2im adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    """
)
BATCH_NORMS = names(
    """
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update
    _batch_norm_with_update
    """
)
UPSAMPLING = names(
    """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    """
)
#: By the name of the operation.
GUARDS: dict[str, Callable[[Arguments], bool]] = {
    **dict.fromkeys(WINDOWS, _window),
    **dict.fromkeys(BATCH_NORMS, _per_channel),
    "native_group_norm": _grouped,
    **dict.fromkeys(names("grid_sampler grid_sampler_2d grid_sampler_3d"), _grid),
    **dict.fromkeys(UPSAMPLING, _scaled),
    **dict.fromkeys(names("_weight_norm _weight_norm_interface"), _weight_norm),
    "_fft_c2r": _half_spectrum,
    **dict.fromkeys(names("scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu"), _attention),
    **dict.fromkeys(names("split split_with_sizes split_copy chunk unsafe_chunk unsafe_split unbind"), _pieces),
    **{name: _recurrent(gates) for name, gates in GATES.items()},
    **dict.fromkeys(names("searchsorted bucketize"), lambda a: a.get("sorter") is None),
    "multinomial": lambda a: bool(0 < a["num_samples"] <= MAX_WINDOW),
}
