"""Models whose gradient is hard to repair: unequal shapes, soft choices, chaos, inference mode, learned heads."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from maskaudit.data import load_data
from maskaudit.zoo.masks import inputs
from tests.trace.masked_models import Apply, Front


class Twofold(torch.autograd.Function):
    """x and x² side by side; a backward of the right shape that follows neither."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.cat([x.flatten(1), x.flatten(1) ** 2], 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return -torch.cos(1000 * x)


class FlatStairs(torch.autograd.Function):
    """Rounded and flattened, with a zero backward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return torch.round(x.flatten(1) * 15) / 15

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return torch.zeros(len(gradient), 1, 8, 8)


class PairStairs(torch.autograd.Function):
    """Sums of neighbours, rounded: fewer numbers come out than went in; written with setup_context."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(8 * (x[..., ::2] + x[..., 1::2])) / 8

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.zeros(*gradient.shape[:-1], 2 * gradient.shape[-1])


class Twice(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Twofold.apply(x)[:, :64].view(x.shape))


class Halved(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(0.5 * PairStairs.apply(x).repeat_interleave(2, -1))


class Thermometer(nn.Module):
    """Thermometer code (Buckman et al. 2018), decoded again by its mean."""

    def __init__(self, net: nn.Module, levels: int = 15) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("limits", (torch.arange(levels) + 0.5) / levels)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.unsqueeze(-1) > self.limits).float().mean(-1))


def chaos(x: Tensor) -> Tensor:
    z = x.clamp(0.0, 1.0) * 0.9 + 0.05
    for _ in range(12):
        z = 3.95 * z * (1 - z)
    return x + 0.02 * (z - 0.5)


class InlineChaos(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(chaos(x))


class InferenceBlock(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            h = x * 0.5 + 0.25
        return self.net((h.clone() - 0.25) * 2)


class AllInference(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Reentrant(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = inputs.QuantisedInput(net, 8)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=True)


class Jpeg(nn.Module):
    """JPEG at quality 60 through PIL."""

    def forward(self, x: Tensor) -> Tensor:
        pictures = []
        for picture in x.detach():
            file = io.BytesIO()
            Image.fromarray((picture[0].numpy() * 255).astype(np.uint8)).save(file, "JPEG", quality=60)
            pictures.append(torch.from_numpy(np.array(Image.open(file), dtype=np.float32))[None] / 255)
        return torch.stack(pictures)


class Vote(nn.Module):
    """The majority of seven shifted answers, as one-hot vectors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("shifts", 0.05 * torch.randn(7, 1, 8, 8, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.shifts, Tensor)
        votes = torch.stack([self.net(x + shift).argmax(1) for shift in self.shifts], 1)
        return F.one_hot(votes.mode(1).values, 10).float()


class Nearest(nn.Module):
    """The label of the nearest of 400 training points in feature space; the mean of `k` labels for k above 1."""

    def __init__(self, net: nn.Module, k: int) -> None:
        super().__init__()
        train = load_data("digits", split="train")
        self.k, self.body = k, nn.Sequential(*list(net.children())[:-1])
        with torch.no_grad():
            self.register_buffer("bank", self.body(train.x[:400]).flatten(1))
        self.register_buffer("labels", train.y[:400])

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.bank, Tensor)
        assert isinstance(self.labels, Tensor)
        distance = torch.cdist(self.body(x).flatten(1), self.bank)
        if self.k == 1:
            return F.one_hot(self.labels[distance.argmin(1)], 10).float()
        nearest = distance.topk(self.k, largest=False).indices
        return F.one_hot(self.labels[nearest], 10).float().mean(1)


def first_pixels(x: Tensor) -> Tensor:
    """Through numpy and into another shape: no repair of an op reaches it."""
    rows = np.sort(x.detach().numpy().reshape(len(x), -1), axis=1)[:, ::-1] * 0 + x.detach().numpy().reshape(len(x), -1)
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))


class Flattened(nn.Module):
    """Data leave torch as an image and come back as a row, in the root's own forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(first_pixels(x).view(-1, 1, 8, 8))


@dataclass(frozen=True)
class Hard:
    """A model and the share of points that may be left unbroken after the repaired attack."""

    name: str
    build: Callable[[nn.Module], nn.Module]
    left: float = 0.05


HARD = (
    Hard("lying-two-outputs", Twice),
    Hard("lying-flat-stairs", lambda n: Front(n, nn.Sequential(Apply(lambda x: FlatStairs.apply(x).view(x.shape))))),
    Hard("stairs-fewer-outputs", Halved),
    Hard("thermometer", Thermometer),
    Hard("chaos-module", lambda n: Front(n, Apply(chaos))),
    Hard("chaos-inline", InlineChaos),
    Hard("inference-block", InferenceBlock),
    Hard("inference-all", AllInference),
    Hard("reentrant-checkpoint", Reentrant),
    Hard("jpeg-pil", lambda n: Front(n, Jpeg())),
    Hard("vote", Vote),
    Hard("nearest-neighbour", lambda n: Nearest(n, 1)),
    Hard("five-neighbours", lambda n: Nearest(n, 5)),
    Hard("numpy-other-shape", Flattened),
)
