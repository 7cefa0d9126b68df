"""Attention as torch's fast path computes it, in operations that have a gradient.

`nn.MultiheadAttention` and `nn.TransformerEncoderLayer` that are traced without gradients leave one operation in an
archive which torch cannot differentiate. What it computes is written out here, and put in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_head: int, qkv_weight: Tensor, qkv_bias: Tensor,
    proj_weight: Tensor, proj_bias: Tensor, mask: Tensor | None, need_weights: bool, average: bool,
    mask_type: int | None,
) -> Tensor:  # fmt: skip
    """Answers (N, L, E) to queries (N, L, E), without a mask; weights and biases of an `nn.MultiheadAttention`."""
    weights, biases = qkv_weight.chunk(3), qkv_bias.chunk(3)
    q = F.linear(query, weights[0], biases[0]).unflatten(-1, [num_head, -1]).transpose(1, 2)
    k = F.linear(key, weights[1], biases[1]).unflatten(-1, [num_head, -1]).transpose(1, 2)
    v = F.linear(value, weights[2], biases[2]).unflatten(-1, [num_head, -1]).transpose(1, 2)
    shares = (q @ k.transpose(2, 3) * float(q.shape[-1]) ** -0.5).softmax(-1)
    return F.linear((shares @ v).transpose(1, 2).flatten(2), proj_weight, proj_bias)


def encoder_layer(
    src: Tensor, embed_dim: int, num_heads: int, qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor,
    proj_bias: Tensor, use_gelu: bool, norm_first: bool, eps: float, weight_1: Tensor, bias_1: Tensor,
    weight_2: Tensor, bias_2: Tensor, ffn_weight_1: Tensor, ffn_bias_1: Tensor, ffn_weight_2: Tensor,
    ffn_bias_2: Tensor, mask: Tensor | None, mask_type: int | None,
) -> Tensor:  # fmt: skip
    """What `nn.TransformerEncoderLayer` makes of tokens (N, L, E); there is no mask."""
    h = F.layer_norm(src, [embed_dim], weight_1, bias_1, eps) if norm_first else src
    h = attention(h, h, h, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, None, False, False, None)
    x = src + h if norm_first else F.layer_norm(src + h, [embed_dim], weight_1, bias_1, eps)
    h = F.layer_norm(x, [embed_dim], weight_2, bias_2, eps) if norm_first else x
    h = F.linear(h, ffn_weight_1, ffn_bias_1)
    h = F.linear(F.gelu(h) if use_gelu else F.relu(h), ffn_weight_2, ffn_bias_2)
    return x + h if norm_first else F.layer_norm(x + h, [embed_dim], weight_2, bias_2, eps)


#: What is written out, and which of the operation's inputs is the mask.
WRITTEN_OUT: dict[str, tuple[Callable[..., Any], int]] = {
    "aten::_native_multi_head_attention": (attention, 9),
    "aten::_transformer_encoder_layer_fwd": (encoder_layer, 18),
}


def write_out(module: torch.jit.ScriptModule) -> bool:
    """Put it into every method of a module that has not run yet; returns whether there was any.

    What is given a mask, or hands on the weights of its attention, stays as it is.
    """
    scripts: list[Any] = [part._c for part in module.modules()]
    graphs = [script._get_method("forward").graph for script in scripts if script._has_method("forward")]
    met = [(graph, node) for graph in graphs for kind in WRITTEN_OUT for node in graph.findAllNodes(kind)]
    known = [(graph, node) for graph, node in met if _is_known(node)]
    for graph, node in known:
        spelt = torch.jit.script(WRITTEN_OUT[node.kind()][0]).inlined_graph.copy()
        for each in spelt.nodes():
            each.copyMetadata(node)  # the place in the author's code
        with graph.insert_point_guard(node):
            (made,) = graph.insertGraph(spelt, list(node.inputs()))
        node.outputsAt(0).replaceAllUsesWith(made)
        node.destroy()
    return bool(known)


def _is_known(node: torch._C.Node) -> bool:
    unused = not any(output.uses() for output in list(node.outputs())[1:])
    return unused and str(node.inputsAt(WRITTEN_OUT[node.kind()][1]).type()) == "NoneType"
