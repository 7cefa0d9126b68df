"""Networks on CIFAR-10 that two cores train within an hour or two, and twins of them that hide their gradients.

    maskaudit check py:benchmarks.cifar_networks:quantised --data cifar-10 --eps 8/255

Each function makes one network from the files that `python benchmarks/cifar.py --train` leaves in `FOLDER`.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from maskaudit.sources import load_model
from maskaudit.zoo import masks

#: Where the trained networks lie.
FOLDER = Path(os.environ.get("MASKAUDIT_CIFAR", Path(__file__).resolve().parents[1] / ".cache" / "cifar"))
#: Principal components on which the purifier projects.
COMPONENTS = 200


def _trained(name: str) -> nn.Module:
    module = load_model(str(FOLDER / f"{name}.safetensors")).module
    assert isinstance(module, nn.Module)
    return module


def standard() -> nn.Module:
    """Trained on clean images."""
    return _trained("standard")


def robust() -> nn.Module:
    """Trained on the examples of two steps from a random start (Madry et al. 2018; Wong et al. 2020)."""
    return _trained("robust")


def distilled() -> nn.Module:
    """Trained by defensive distillation at temperature 100 (Papernot et al. 2016)."""
    return _trained("distilled")


def quantised() -> nn.Module:
    """The standard network behind an input that is rounded to 8 levels."""
    return masks.QuantisedInput(standard(), 8)


def robust_quantised() -> nn.Module:
    """The robust network behind an input that is rounded to 16 levels."""
    return masks.QuantisedInput(robust(), 16)


def scaled() -> nn.Module:
    """The standard network with logits times 1,000."""
    return masks.ScaledLogits(standard(), 1e3)


def robust_scaled() -> nn.Module:
    """The robust network with logits times 1,000."""
    return masks.ScaledLogits(robust(), 1e3)


def thermometer() -> nn.Module:
    """The standard network behind a thermometer code (Buckman et al. 2018)."""
    return masks.Thermometer(standard())


def jpeg() -> nn.Module:
    """The standard network behind the lossy part of JPEG."""
    return masks.JpegLike(standard())


def k_winners() -> nn.Module:
    """The standard network with k-winners-take-all activations (Xiao et al. 2020), its last layer fitted anew."""
    return masks.k_winners(standard(), "cifar-10", 0.3)


def resized() -> nn.Module:
    """The standard network on images that are resized and padded at random (Xie et al. 2018)."""
    return masks.ResizePad(standard(), 0.9)


def purified() -> nn.Module:
    """The standard network behind a loop of gradient steps towards the images' principal components."""
    return masks.purified(standard(), "cifar-10", COMPONENTS)
