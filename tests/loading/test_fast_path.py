"""Attention traced without gradients: the archive answers as before, and has the gradient of the module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.trace import trace_model

X = torch.rand(8, 5, 8, generator=torch.Generator().manual_seed(0))


class Attending(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = (
            self.layer(x, x, x, need_weights=False)[0]
            if isinstance(self.layer, nn.MultiheadAttention)
            else self.layer(x)
        )
        return self.head(h.mean(1))


LAYERS = {
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "norm first": lambda: nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, norm_first=True, activation="gelu"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", LAYERS)
def test_the_fast_path_of_attention_has_a_gradient(layer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attending(LAYERS[layer]()).eval()
    with torch.no_grad():
        traced = torch.jit.trace(module, (X[:2],), check_trace=False)
    assert any(f"aten::{name}" in str(traced.inlined_graph) for name in ("_native_multi", "_transformer_encoder"))
    torch.jit.save(traced, str(tmp_path / "model.ts"))
    loaded = load_model(str(tmp_path / "model.ts"))
    assert any("fast path" in note for note in loaded.notes)
    answers = []
    for model in (module, loaded.module):
        leaf = X.clone().requires_grad_()
        scores = model(leaf)
        (grad,) = torch.autograd.grad((scores[:, 0] - scores[:, 1]).sum(), leaf)
        answers.append((scores.detach(), grad))
    assert torch.allclose(*(scores for scores, _ in answers), atol=1e-5)
    assert torch.allclose(*(grad for _, grad in answers), atol=1e-5)
    with Target(loaded.module) as target:
        assert trace_model(target, X, target.predict(target.scores(X))).healthy
