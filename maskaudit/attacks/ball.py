"""Steps inside the ball of each slot's point, written into tensors that lie ready.

The same projections as `ThreatModel.project`, without temporaries: a step of a gradient attack is
otherwise a dozen passes over memory, which a small model does not hide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.resident import SlotState
from maskaudit.sums import column, row_norm
from maskaudit.target import accelerator
from maskaudit.threat import ThreatModel

#: Lengths whose squares neither vanish nor overflow in float32; others take the scaled way.
SHORTEST, LONGEST = 1e-15, 1e15


@dataclass
class Ball(SlotState):
    """Clean points and what the steps around them need.

    Attributes:
        threat: norm, radius and bounds.
        clean: clean points (b, …).
        low, high: smallest and largest admissible value of each coordinate (b, …); None for L2.
        scratch: working space (b, …).
    """

    threat: ThreatModel
    clean: Tensor
    low: Tensor | None
    high: Tensor | None
    scratch: Tensor

    @classmethod
    def around(cls, clean: Tensor, threat: ThreatModel) -> Ball:
        """The balls around clean points (b, …)."""
        if threat.norm == "Linf":
            radius = threat.radius(clean)
            low, high = threat.clamp(clean - radius), threat.clamp(clean + radius)
            return cls(threat, clean, low, high, torch.empty_like(clean))
        return cls(threat, clean, None, None, torch.empty_like(clean))

    def step(self, at: Tensor, gradient: Tensor, size: float | Tensor, out: Tensor, *, full: bool = False) -> Tensor:
        """`out` = `at` + `size`·direction of steepest ascent, all (b, …), `size` a number or (b,); projected.

        `full` chooses `project_full_`.

        The gradient is only read: it may belong to the model.
        """
        if self.threat.norm == "Linf":
            torch.sign(gradient, out=self.scratch)
            if self.threat.features is not None:
                self.scratch.copy_(self.threat.scaled(self.scratch))
            if isinstance(size, Tensor):
                torch.addcmul(at, self.scratch, column(size, self.clean), out=out)
            else:
                torch.add(at, self.scratch, alpha=size, out=out)
            return self.project_(out)
        if self.threat.features is not None:
            length = column(size, self.clean) if isinstance(size, Tensor) else size
            return self.project_(torch.add(at, length * self.threat.step_direction(gradient), out=out))
        length = row_norm(gradient)
        odd = (length < SHORTEST) | ~(length < LONGEST)
        factor = torch.where(odd, 0.0, size / length)
        torch.addcmul(at, gradient, column(factor, self.clean), out=out)
        if accelerator.perhaps(odd):
            self._step_by_scaled(at, gradient, size, odd, out)
        return self.project_full_(out) if full else self.project_(out)

    def project_(self, x_adv: Tensor) -> Tensor:
        """`ThreatModel.project` of `x_adv` (b, …), in place."""
        if self.low is not None and self.high is not None:
            return torch.clamp(x_adv, self.low, self.high, out=x_adv)
        if self.threat.features is not None:
            return x_adv.copy_(self.threat.project(x_adv, self.clean))
        length = row_norm(torch.sub(x_adv, self.clean, out=self.scratch))
        shrink = self.threat.eps / length.clamp_min(self.threat.eps)
        torch.addcmul(self.clean, self.scratch, column(shrink, self.clean), out=x_adv)
        return x_adv.clamp_(*self.threat.bounds)

    def project_full_(self, x_adv: Tensor) -> Tensor:
        """As `project_`; for L2 the length lost to the bounds is restored, at most twofold, so that no step is lost."""
        if self.low is not None or self.threat.features is not None:
            return self.project_(x_adv)
        wanted = row_norm(torch.sub(x_adv, self.clean, out=self.scratch)).clamp_max(self.threat.eps)
        self.project_(x_adv)
        length = row_norm(torch.sub(x_adv, self.clean, out=self.scratch))
        grow = (wanted / length.clamp_min(1e-12)).clamp(1.0, 2.0)
        torch.addcmul(self.clean, self.scratch, column(grow, self.clean), out=x_adv)
        return x_adv.clamp_(*self.threat.bounds)

    def _step_by_scaled(self, at: Tensor, gradient: Tensor, size: float | Tensor, odd: Tensor, out: Tensor) -> None:
        """The step where the length of the gradient under- or overflows (and the zero step for a zero gradient)."""
        length = column(size, self.clean) if isinstance(size, Tensor) else size
        scaled = at + length * self.threat.step_direction(gradient)
        torch.where(column(odd, self.clean), scaled, out, out=out)


def finite(gradient: Tensor) -> Tensor:
    """The gradient with every value that is not finite set to zero; never written to, since it may be the model's."""
    if accelerator.asking_is_free(gradient.device) and bool(torch.isfinite(gradient.sum())):
        return gradient
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def as_images(x: Tensor) -> Tensor:
    """Points (N, …) as images (N, C, H, W) whose neighbours are neighbours: signals (N, C, L) and tokens become rows,
    volumes are unrolled along their height, vectors become one row."""
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        return x.unsqueeze(2)
    return x.flatten(2, -2) if x.dim() > 4 else x.reshape(len(x), 1, 1, -1)
