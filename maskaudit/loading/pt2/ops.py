"""The operations that an exported program may call, by name; everything else is refused.

All are forward operations whose result depends on their arguments alone (random draws apart). Left out are those
that make tensors over foreign memory (as_strided, set_), change sizes in place, set the random state, print,
open files, run backward, or index without a check; and those whose result's size depends on values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from maskaudit.loading.op_guards import names

#: Changes of each number by itself; those that torch also has in place (`relu_`) are allowed there too.
ELEMENTWISE = names(
    """
    abs absolute acos acosh add addcdiv addcmul arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan
    atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp
    clamp_max clamp_min clip copysign cos cosh deg2rad detach digamma div divide elu eq erf erfc erfinv exp exp2 expm1
    fill fix float_power floor floor_divide fmod frac ge gelu greater greater_equal gt hardshrink hardsigmoid hardswish
    hardtanh heaviside hypot i0 le leaky_relu lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2
    logical_and logical_not logical_or logical_xor logit lt masked_fill mish mul multiply nan_to_num ne neg negative
    nextafter not_equal positive pow rad2deg reciprocal relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign
    silu sin sinc sinh softplus softshrink sqrt square sub subtract tan tanh threshold tril triu true_divide trunc
    xlogy copy zero scatter scatter_add scatter_reduce index_add index_copy index_fill index_put index_reduce cumsum
    cumprod bernoulli dropout feature_dropout alpha_dropout feature_alpha_dropout rrelu normal uniform exponential
    addmm addmv addbmm addr baddbmm renorm
    """
)
#: Further operations.
PLAIN = names(
    """
    __and__ __or__ __xor__ angle conj conj_physical complex polar real imag resolve_conj resolve_neg view_as_real
    view_as_complex isclose isfinite isinf isnan isneginf isposinf maximum minimum fmax fmin signbit where
    log_sigmoid glu prelu _prelu_kernel softmax log_softmax _softmax _log_softmax _safe_softmax
    special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1 special_log1p special_logit
    special_ndtr special_sinc special_xlog1py special_xlogy ldexp lerp fake_quantize_per_tensor_affine
    fake_quantize_per_channel_affine

    all any amax amin aminmax argmax argmin argsort max min mean median nanmedian mode sum nansum prod std var std_mean
    var_mean logsumexp logcumsumexp cummax cummin norm linalg_norm linalg_vector_norm linalg_matrix_norm kthvalue sort
    msort topk count_nonzero cosine_similarity pairwise_distance cdist _cdist_forward mse_loss l1_loss smooth_l1_loss
    diff trace trapezoid

    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear bilinear matmul mm bmm mv
    dot vdot inner outer einsum tensordot kron cross linalg_cross baddbmm
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training group_norm
    native_group_norm instance_norm layer_norm native_layer_norm rms_norm _fused_rms_norm _weight_norm
    _weight_norm_interface
    scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu lstm gru rnn_tanh rnn_relu lstm_cell
    gru_cell rnn_tanh_cell rnn_relu_cell embedding one_hot native_dropout
    affine_grid_generator grid_sampler grid_sampler_2d grid_sampler_3d im2col col2im pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_rfftn fft_irfft fft_irfft2 fft_irfftn
    fft_fftshift fft_ifftshift fft_fftfreq fft_rfftfreq _fft_r2c _fft_c2c _fft_c2r
    linalg_svd _linalg_svd linalg_eigh _linalg_eigh linalg_qr linalg_inv linalg_inv_ex inverse linalg_cholesky
    linalg_cholesky_ex linalg_solve linalg_solve_ex _linalg_solve_ex

    alias clone contiguous lift_fresh lift_fresh_copy to _to_copy type_as detach_copy
    view view_as _unsafe_view reshape reshape_as flatten unflatten ravel permute transpose t mT mH numpy_T matrix_H
    adjoint swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors
    atleast_1d atleast_2d atleast_3d narrow select slice slice_scatter select_scatter diagonal diag diag_embed
    diagonal_scatter unfold flip fliplr flipud rot90 roll repeat repeat_interleave tile cat concat concatenate stack
    hstack vstack dstack column_stack split split_with_sizes chunk unsafe_chunk unsafe_split unbind meshgrid pad
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d view_copy expand_copy permute_copy slice_copy select_copy squeeze_copy unsqueeze_copy
    transpose_copy t_copy split_copy
    gather index index_select take take_along_dim bucketize searchsorted isin

    arange eye full full_like linspace logspace new_full new_ones new_zeros ones ones_like scalar_tensor zeros
    zeros_like hann_window hamming_window
    rand rand_like randn randn_like randint randint_like randperm multinomial

    item _local_scalar_dense sym_size sym_numel sym_stride _assert_async _assert_tensor_metadata _assert_scalar
    sym_constrain_range sym_constrain_range_for_size
    """
)
#: Operations of which only one form is allowed: the other one's size depends on values.
ONLY = {"repeat_interleave": ("self_int",), "where": ("self", "ScalarSelf", "ScalarOther", "Scalar")}
#: Types of arguments that no program may give.
FOREIGN_TYPES = ("Dimname", "Storage", "Stream")
#: Operations that only assert something.
ASSERTIONS = names(
    "_assert_async _assert_tensor_metadata _assert_scalar sym_constrain_range sym_constrain_range_for_size"
)
#: Operations that read a number out of a tensor, and those that make a size of a plain number.
READS_NUMBER = frozenset(("item", "_local_scalar_dense"))
SIZE_OF_NUMBER = frozenset(("arange", "linspace", "logspace"))


def _zeros(size: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return torch.zeros(size, dtype=dtype)


def _copied(x: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return source.to(x.dtype).expand_as(x)


def _quantised(x: torch.Tensor, scale: Any, zero: Any, low: Any, high: Any, dtype: torch.dtype) -> torch.Tensor:
    """x on the grid of whole numbers from `low` to `high`, kept as real numbers."""
    return (torch.round(x * (1.0 / scale)) + zero).clamp(low, high)


def _restored(
    x: torch.Tensor, scale: Any, zero: Any, low: Any, high: Any, dtype: torch.dtype, *,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """The real numbers that whole numbers on such a grid stand for."""
    return (x.to(out_dtype or torch.float32) - zero) * scale


def _by_channel(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same with scales and zeros (C,) of their own along an axis."""

    def run(x: torch.Tensor, scales: torch.Tensor, zeros: Any, axis: int, *rest: Any, **named: Any) -> Any:
        sizes = [-1 if place == axis % x.dim() else 1 for place in range(x.dim())]
        return function(x, scales.reshape(sizes), 0 if zeros is None else zeros.reshape(sizes), *rest, **named)

    return run


_GRID = "torch.ops.quantized_decomposed."
#: Operations that are replaced: no memory is read that was not written, indices are checked, and backward works.
REPLACED: dict[str, Callable[..., Any]] = {
    "torch.ops.aten.empty.memory_format": _zeros,
    "torch.ops.aten.empty_like.default": torch.ops.aten.zeros_like.default,
    "torch.ops.aten.new_empty.default": torch.ops.aten.new_zeros.default,
    "torch.ops.aten.copy.default": _copied,
    "torch.ops.aten._unsafe_index.Tensor": torch.ops.aten.index.Tensor,
    "torch.ops.aten._unsafe_index_put.default": torch.ops.aten.index_put.default,
    # strides depend on how attention is computed, which is not alike everywhere
    "torch.ops.aten.view.default": torch.ops.aten.reshape.default,
    **{f"{_GRID}quantize_per_tensor.{form}": _quantised for form in ("default", "tensor", "tensor2")},
    **{f"{_GRID}dequantize_per_tensor.{form}": _restored for form in ("default", "tensor", "tensor2")},
    f"{_GRID}quantize_per_channel.default": _by_channel(_quantised),
    f"{_GRID}dequantize_per_channel.default": _by_channel(_restored),
}


class FromValues(float):
    """A placeholder, in a rehearsal, for a number that a program computes from the values of its input."""


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic on sizes: numbers only, and whole ones within 64 bits."""

    def run(*numbers: Any) -> Any:
        if not all(isinstance(number, (int, float)) or type(number).__name__.startswith("Sym") for number in numbers):
            raise ValueError("arithmetic on sizes is given something that is not a number")
        if any(isinstance(number, FromValues) for number in numbers):
            return FromValues(1.0)
        result = function(*numbers)
        if isinstance(result, int) and not -(2**63) <= result < 2**63:
            raise ValueError("a size grows beyond 64 bits")
        return result

    return run


#: Arithmetic on sizes, by target.
SIZES: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": _arithmetic(getattr(operator, name))
        for name in names("add sub mul floordiv truediv mod neg pos eq ne lt le gt ge and_ or_")
    },
    **{
        f"torch.{name}": _arithmetic(getattr(torch, name))
        for name in names("sym_max sym_min sym_int sym_float sym_not")
    },
    **{f"math.{name}": _arithmetic(getattr(math, name)) for name in ("trunc", "floor", "ceil")},
}
#: Those that never make a size smaller as others grow.
GROWING = frozenset(
    SIZES[target] for target in ("_operator.add", "_operator.mul", "_operator.pos", "torch.sym_max", "torch.sym_min")
)


def allowed(target: str) -> Callable[..., Any] | None:
    """The function that a target names, None if it is not on the list or not in this torch."""
    if target in SIZES:
        return SIZES[target]
    if target in REPLACED:
        return REPLACED[target]
    prefix, _, rest = target.partition("torch.ops.aten.")
    name, _, overload = rest.partition(".")
    if prefix or not (name in PLAIN or name.removesuffix("_") in ELEMENTWISE):
        return None
    if overload not in ONLY.get(name, (overload,)):
        return None
    found = getattr(getattr(torch.ops.aten, name, None), overload, None) if overload.isidentifier() else None
    if not isinstance(found, torch._ops.OpOverload):
        return None
    foreign = any(
        argument.is_out or any(kind in str(argument.type) for kind in FOREIGN_TYPES)
        for argument in found._schema.arguments
    )
    return None if foreign else found
