"""Models that a trace must get right and that no rule was tuned on: unusual but healthy ones, and other masks."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.trace.masked_models import Front, Masked, Middle, SignActivation


class Reentrant(nn.Module):
    """Checkpointing that runs its block without a graph and again in the backward pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=True)


class Quantise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 3) / 3


class QuantiseSTE(nn.Module):
    """An honest straight-through estimator written with a detached difference."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.round(x * 15) / 15 - x).detach()


class JpegNumpy(nn.Module):
    """Coefficients of the whole image rounded in numpy."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = np.fft.rfft2(x.detach().numpy())
        return torch.from_numpy(np.fft.irfft2(np.round(spectrum / 2) * 2)).float()


class JpegFile(nn.Module):
    """A real JPEG file in memory, written and read by Pillow."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = (x.detach() * 255).to(torch.uint8).numpy()
        return torch.stack([self.through(image) for image in pixels[:, 0]])[:, None]

    def through(self, image: np.ndarray) -> Tensor:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="JPEG", quality=40)
        return torch.tensor(np.asarray(Image.open(stream)) / np.float32(255))


class InferenceBlock(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            h = x * 1.5
        return h.clone() / 1.5


class Indices(nn.Module):
    """The positions of the largest features, not their values, go on."""

    def forward(self, h: Tensor) -> Tensor:
        flat = h.flatten(1)
        order = flat.sort(dim=1).indices.argsort(dim=1)
        return (order / flat.shape[1]).view(h.shape)


class TentMap(nn.Module):
    """A chaotic preprocessing loop, its turns spread over two lines."""

    def forward(self, x: Tensor) -> Tensor:
        z = 0.1 + 0.8 * x
        for _ in range(16):
            distance = (z - 0.5).abs()
            z = 1 - 1.99 * distance
        return x + 0.1 * z


class RoundedProbabilities(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        p = self.net(x).softmax(dim=1)
        return torch.floor(p * 20) / 20


class Deceptive(nn.Module):
    """Scores that keep their order at the top and shrink as the lead grows (after reverse sigmoid)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        lead = z.amax(dim=1, keepdim=True) - z.mean(dim=1, keepdim=True)
        return z / (1 + lead.square())


class TestTimeTraining(nn.Module):
    """Trains its own scale on the inputs before it answers (after test-time training, Sun et al. 2020)."""

    __test__ = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.scale = net, nn.Parameter(torch.ones(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            fresh = self.scale.detach().clone().requires_grad_(True)
            optimiser = torch.optim.SGD([fresh], lr=0.5)
            for _ in range(3):
                loss = (x.detach() * fresh - x.detach().round()).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return self.net((x.detach() * fresh).detach().round())


class SelfModifying(nn.Module):
    """Adapts a buffer at every answer, so that it never answers twice alike."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.5).add_(x.detach().mean(dim=0) * 0.5)
        return self.net(x - 0.3 * self.seen)


class ResizePad(nn.Module):
    """Random resize and pad (Xie et al. 2018), sizes drawn by `random`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        import random

        size = random.randint(6, 8)
        small = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        left = random.randint(0, 8 - size)
        return self.net(F.pad(small, (left, 8 - size - left, 0, 8 - size)))


class BatchStatistics(nn.Module):
    """Batch normalisation that ignores `eval`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.batch_norm(x, None, None, training=True) * 0.3 + 0.3)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.b = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm_a(self.a(x)), inplace=True)
        return F.relu(x + self.norm_b(self.b(h)))


def tiny_resnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), Residual(12), nn.MaxPool2d(2), Residual(12),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))  # fmt: skip


class TinyViT(nn.Module):
    """Patches of 2 × 2, a class token, two encoder layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.1, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.place
        return self.head(self.encoder(h)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021) with one block."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2)
        h = (h + self.tokens(h)).transpose(1, 2)
        h = h + self.channels(h)
        return self.head(h.mean(dim=1))


class Recurrent(nn.Module):
    """Rows read one after the other by the same cell: a loop that is none of chaos."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for row in range(8):
            h = self.cell(x[:, 0, row], h)
        return self.head(h)


ARCHITECTURES: tuple[tuple[str, Callable[[], nn.Module]], ...] = (
    ("resnet", tiny_resnet),
    ("vit", TinyViT),
    ("mixer", Mixer),
    ("recurrent", Recurrent),
)

#: Mechanism, module and a fragment of the source line of each.
HARD = (
    Masked("reentrant", lambda n: Reentrant(Front(n, Quantise())), "shattered", "net.front", "torch.round(x * 3)"),
    Masked("jpeg-numpy", lambda n: Front(n, JpegNumpy()), "cut", "front", "x.detach().numpy()"),
    Masked("jpeg-file", lambda n: Front(n, JpegFile()), "cut", "front", "to(torch.uint8)"),
    Masked("inference-mode", lambda n: Front(n, InferenceBlock()), "cut", "front", "h = x * 1.5"),
    Masked("indices", lambda n: Middle(n, Indices()), "cut", "middle", ".indices"),
    Masked("tent-map", lambda n: Front(n, TentMap()), "jagged-surface", "front", "distance"),
    Masked("rounded-probabilities", RoundedProbabilities, "output-hides-loss", "", "torch.floor(p * 20)"),
    Masked("deceptive", Deceptive, "output-hides-loss", "", "lead = "),
    Masked("test-time-training", TestTimeTraining, "test-time-optimisation", "", "loss.backward()"),
)  # fmt: skip

#: Two masks in series and the mechanisms that must both be named.
SERIES: tuple[tuple[str, Callable[[nn.Module], nn.Module], dict[str, str]], ...] = (
    ("round then sign", lambda n: Middle(Wrapped(n), SignActivation()), {"round": "head", "sign": "middle"}),
    ("cut then round", lambda n: Front(Front(n, Quantise()), JpegNumpy()), {"numpy": "front", "round": "net.front"}),
)


class Wrapped(nn.Sequential):
    """A sequential network whose first layer is quantised."""

    def __init__(self, net: nn.Module) -> None:
        layers = list(net.children())
        super().__init__(nn.Sequential(Quantise(), layers[0]), *layers[1:])
