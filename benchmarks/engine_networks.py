"""Networks of the shapes that the engine benchmark measures; untrained, since a pass costs the same."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def small_cnn() -> nn.Module:
    """Two 3×3 convolutions with pooling and two linear layers on (N, 1, 28, 28): 106,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def strided_cnn() -> nn.Module:
    """Two strided 4×4 convolutions on (N, 1, 28, 28): a forward pass of about 12 µs, the hardest case for an engine."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def image_cnn() -> nn.Module:
    """Two strided convolutions and one linear layer on (N, 3, 224, 224): a light network on inputs of 150,528 numbers.

    A forward pass of about 1 ms per image: what an engine does to the images next to it cannot hide.
    """
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=4, padding=3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip


class _Block(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _residual(first: int, widths: tuple[int, ...], depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
    inside = first
    for stage, width in enumerate(widths):
        for block in range(depth):
            layers.append(_Block(inside, width, 2 if stage and not block else 1))
            inside = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


def resnet20() -> nn.Module:
    """ResNet-20 for (N, 3, 32, 32), the small network of He et al. 2016 for CIFAR: 270,000 parameters."""
    return _residual(16, (16, 32, 64), 3)


def resnet18() -> nn.Module:
    """ResNet-18 for (N, 3, 32, 32): 11 million parameters, 0.56 GMAC per forward pass."""
    return _residual(64, (64, 128, 256, 512), 2)


def wide_resnet28_10() -> nn.Module:
    """The shape of WideResNet-28-10 for (N, 3, 32, 32): 36 million parameters."""
    return _residual(16, (160, 320, 640), 4)


#: Name → (factory, shape of one input).
NETWORKS = {
    "small-cnn": (small_cnn, (1, 28, 28)),
    "strided-cnn": (strided_cnn, (1, 28, 28)),
    "image-cnn": (image_cnn, (3, 224, 224)),
    "resnet18": (resnet18, (3, 32, 32)),
    "wrn28-10": (wide_resnet28_10, (3, 32, 32)),
}
