"""A target with repaired gradients, for any white-box attack."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from maskaudit.repairs.dormant import DormantUnits
from maskaudit.repairs.graft import graft
from maskaudit.repairs.repaired import RepairedModel
from maskaudit.settings.plan import Repair
from maskaudit.target import Target, accelerator
from maskaudit.trace.behaviour import copy_of


@contextlib.contextmanager
def repaired_target(
    target: Target, repairs: Sequence[Repair], stand_ins: Mapping[str, nn.Module] | None = None,
    dormant: DormantUnits | None = None,
) -> Iterator[Target]:  # fmt: skip
    """A target that decides like `target` and whose gradients are repaired; passes count in the same ledger.

    Args:
        target: the open target; its model is not touched.
        repairs: as `propose` returns them.
        stand_ins: learned stand-ins by module path, where a repair asks for one.
        dormant: units that are off on all audited points, where a repair opens them.

    Scores are the model's own, bit for bit, unless a repair taps or rescales them; then they are those of
    the tapped tensor over its scale, for points where both decide alike, and the model's own elsewhere.
    """
    model = RepairedModel(target.model, repairs, stand_ins, dormant)
    tap = next((r for r in repairs if r.remedy == "tap"), None)
    divisor = next((r.scale for r in repairs if r.remedy == "rescale"), 1.0)

    def scores(inputs: Tensor) -> Tensor:
        own = target.form.scores(target.checked(model(inputs), len(inputs)))
        tapped = model.tapped
        if tap is None or tapped is None or tapped.shape != own.shape:
            return own / divisor if divisor != 1.0 else own
        before = tapped.float() / tap.scale
        top = own.topk(2, dim=1).values  # a tie of clipped or hard scores decides nothing, whatever came before
        same = (before.argmax(dim=1) == own.argmax(dim=1)) & (top[:, 0] > top[:, 1])
        if accelerator.asking_is_free(same.device) and bool(same.all()):
            return before
        fallback = graft(own, before) if before.requires_grad else own
        return torch.where(same[:, None], before, fallback)

    other = copy_of(target, scores, draws=target.draws)
    other.form = other.form.changed(outputs="logits")
    with model.installed():
        yield other
