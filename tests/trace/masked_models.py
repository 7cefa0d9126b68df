"""Hand-built models with one known culprit each, and healthy ones that look suspicious."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from maskaudit.zoo.masks import backward, inputs, outputs


class Front(nn.Module):
    """`net(f(x))`, with f in a module of its own called `front`."""

    def __init__(self, net: nn.Module, front: nn.Module) -> None:
        super().__init__()
        self.front, self.net = front, net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.front(x))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Middle(nn.Module):
    """A mask after the first layer of a `Sequential`."""

    def __init__(self, net: nn.Module, middle: nn.Module) -> None:
        super().__init__()
        layers = list(net.children())
        self.head, self.middle, self.tail = layers[0], middle, nn.Sequential(*layers[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.middle(self.head(x)))


class SignActivation(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.sign(h) * 0.5


class SaturatedTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.tanh(40 * (x - 0.5))


class NumpyQuantiser(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        levels = np.round(x.detach().cpu().numpy() * 15) / 15
        return torch.from_numpy(levels)


class InlineNumpy(nn.Module):
    """A round trip in the root's own forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        array = x.detach().numpy() ** 1.0
        return self.net(torch.tensor(array))


class ItemLoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = [value.item() for value in x.flatten()]
        return torch.tensor(flat).view(x.shape)


class NoGradBlock(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = x * 0.5 + 0.25
        return self.net((h - 0.25) * 2 * self.gain)


class KWTA(nn.Module):
    """k winners take all (Xiao et al. 2020)."""

    def __init__(self, share: float = 0.15) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        flat = h.flatten(1)
        limit = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= limit).to(h.dtype)).view(h.shape)


class Scrambled(torch.autograd.Function):
    """Identity whose backward is shuffled and negated."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return -grad.flip(-1)


class RoundSTE(torch.autograd.Function):
    """The honest straight-through estimator."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x * 15) / 15

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


class NoneBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> None:
        return None


class ForgottenDropout(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.3, training=True))


class NumpyNoise(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        noise = np.random.normal(size=tuple(x.shape)).astype(np.float32)
        return self.net(x + 0.2 * torch.from_numpy(noise))


class PrivateNoise(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.generator = net, torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.2 * torch.randn(x.shape, generator=self.generator))


class HookedGradient(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        h = x * 1.0
        if h.requires_grad:
            h.register_hook(lambda g: g * 0)
        return self.net(h)


@dataclass(frozen=True)
class Masked:
    """A masked model: mechanism, module path, and a fragment of the source line to be named."""

    name: str
    build: Callable[[nn.Module], nn.Module]
    mechanism: str
    module: str
    line: str


def round_ste(x: Tensor) -> Tensor:
    return x + (torch.round(x * 15) / 15 - x).detach()


def cast(x: Tensor) -> Tensor:
    return (x * 15).long().float() / 15


MASKED = (
    Masked("quantised", lambda n: inputs.QuantisedInput(n, 4), "shattered", "", "torch.round(x * (self"),
    Masked("zero-backward", backward.ZeroBackward, "lying-backward", "", "def backward"),
    Masked("sine", inputs.SineInput, "jagged-surface", "", "torch.sin(self.frequency"),
    Masked("tanh", lambda n: Front(n, SaturatedTanh()), "saturation", "front", "torch.tanh(40"),
    Masked("softmax-x50", lambda n: outputs.SharpSoftmax(n, 50.0), "logit-scale", "", "torch.softmax(self.network"),
    Masked("logits-x1e4", lambda n: outputs.ScaledLogits(n, 1e4), "logit-scale", "", "self.network(x) * self.scale"),
    Masked("hard-labels", outputs.HardLabels, "output-hides-loss", "", "one_hot(scores.argmax"),
    Masked("detach", lambda n: Middle(n, Apply(lambda h: h.detach())), "cut", "middle", "lambda h: h.detach()"),
    Masked("data", lambda n: Front(n, Apply(lambda h: h.data * 1)), "cut", "front", "lambda h: h.data"),
    Masked("numpy", lambda n: Front(n, NumpyQuantiser()), "cut", "front", "numpy() * 15"),
    Masked("numpy-inline", InlineNumpy, "cut", "", "x.detach().numpy()"),
    Masked("item", lambda n: Front(n, ItemLoop()), "cut", "front", "value.item()"),
    Masked("cast", lambda n: Front(n, Apply(cast)), "cut", "front", ".long().float()"),
    Masked("no-grad", NoGradBlock, "cut", "", "with torch.no_grad()"),
    Masked("sign-middle", lambda n: Middle(n, SignActivation()), "shattered", "middle", "torch.sign(h)"),
    Masked("scrambled", lambda n: Front(n, Apply(lambda h: Scrambled.apply(h))), "lying-backward", "front",
           "def backward"),
    Masked("none-backward", lambda n: Front(n, Apply(lambda h: NoneBackward.apply(h))), "lying-backward", "front",
           "def backward"),
    Masked("hook", HookedGradient, "lying-backward", "", "h.register_hook("),
    Masked("k-wta", lambda n: Middle(n, KWTA()), "jagged-surface", "middle", "flat * (flat >= limit)"),
    Masked("quantised+softmax-x100", lambda n: outputs.SharpSoftmax(inputs.QuantisedInput(n, 4), 100.0), "shattered",
           "network", "torch.round(x * (self"),
)  # fmt: skip


class Checkpointed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=False)


class Reused(nn.Module):
    """One module called twice."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.act = net, nn.LeakyReLU(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.act(self.act(x)))


class Half(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)


class ChannelsLast(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.contiguous(memory_format=torch.channels_last))


class Statistics(nn.Module):
    """Takes statistics off the graph and leaves the gradient alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.last = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach().mean().item()
        if bool((x.detach().abs() > 1e6).any()):
            raise ValueError("input out of range")
        return self.net(x)


HEALTHY: tuple[tuple[str, Callable[[nn.Module], nn.Module]], ...] = (
    ("plain", lambda n: n),
    ("softmax", outputs.SoftmaxOutput),
    ("log-softmax", lambda n: nn.Sequential(n, nn.LogSoftmax(1))),
    ("x3", lambda n: outputs.ScaledLogits(n, 3.0)),
    ("ste", lambda n: Front(n, Apply(round_ste))),
    ("ste-function", lambda n: Front(n, Apply(lambda h: RoundSTE.apply(h)))),
    ("checkpoint", Checkpointed),
    ("reused", Reused),
    ("bfloat16", Half),
    ("channels-last", ChannelsLast),
    ("statistics", Statistics),
    ("dropout-eval", lambda n: nn.Sequential(nn.Dropout(0.5), n)),
    ("batch-norm", lambda n: nn.Sequential(nn.BatchNorm2d(1), n)),
)
