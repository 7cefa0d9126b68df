"""Networks on CIFAR-10 that two cores train within an hour or two, and twins of them that hide their gradients.

    maskaudit check py:benchmarks.cifar_networks:quantised --data cifar-10 --eps 8/255

Each function makes one network from the files that `python benchmarks/cifar.py --train` leaves in `FOLDER`.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from maskaudit.sources import load_model
from maskaudit.zoo.masks import inputs, layers, loops, outputs, random

#: Where the trained networks lie.
FOLDER = Path(os.environ.get("MASKAUDIT_CIFAR", Path(__file__).resolve().parents[1] / ".cache" / "cifar"))
#: Principal components on which the purifier projects.
COMPONENTS = 600


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
    """Trained by defensive distillation at temperature 20 (Papernot et al. 2016)."""
    return _trained("distilled")


def quantised() -> nn.Module:
    """The standard network behind an input that is rounded to 8 levels."""
    return inputs.QuantisedInput(standard(), 8)


def robust_quantised() -> nn.Module:
    """The robust network behind an input that is rounded to 16 levels."""
    return inputs.QuantisedInput(robust(), 16)


def scaled() -> nn.Module:
    """The standard network with logits times 1,000."""
    return outputs.ScaledLogits(standard(), 1e3)


def robust_scaled() -> nn.Module:
    """The robust network with logits times 1,000."""
    return outputs.ScaledLogits(robust(), 1e3)


def thermometer() -> nn.Module:
    """The standard network behind a thermometer code (Buckman et al. 2018)."""
    return inputs.Thermometer(standard())


def jpeg() -> nn.Module:
    """The standard network behind the lossy part of JPEG."""
    return inputs.JpegLike(standard())


def k_winners() -> nn.Module:
    """The standard network with k-winners-take-all activations (Xiao et al. 2020), its last layer fitted anew."""
    return layers.k_winners(standard(), "cifar-10", 0.3)


def resized() -> nn.Module:
    """The standard network on images that are resized and padded at random (Xie et al. 2018)."""
    return random.ResizePad(standard(), 0.9)


def purified() -> nn.Module:
    """The standard network behind a loop of gradient steps towards the images' principal components."""
    return loops.purified(standard(), "cifar-10", COMPONENTS)


def vit() -> nn.Module:
    """A small vision transformer trained on clean images."""
    return _trained("vit")


def robust_vit() -> nn.Module:
    """A small vision transformer trained on the examples of two steps from a random start."""
    return _trained("robust_vit")


def vit_jpeg() -> nn.Module:
    """The vision transformer behind the lossy part of JPEG."""
    return inputs.JpegLike(vit())


def robust_vit_quantised() -> nn.Module:
    """The robust vision transformer behind an input that is rounded to 16 levels."""
    return inputs.QuantisedInput(robust_vit(), 16)


def mixer() -> nn.Module:
    """A ConvMixer trained on clean images."""
    return _trained("mixer")


def robust_mixer() -> nn.Module:
    """A ConvMixer trained on the examples of two steps from a random start."""
    return _trained("robust_mixer")


def mixer_resized() -> nn.Module:
    """The ConvMixer on images that are resized and padded at random."""
    return random.ResizePad(mixer(), 0.9)


def mixer_quantised() -> nn.Module:
    """The ConvMixer behind an input that is rounded to 8 levels."""
    return inputs.QuantisedInput(mixer(), 8)


def robust_mixer_scaled() -> nn.Module:
    """The robust ConvMixer with logits times 1,000."""
    return outputs.ScaledLogits(robust_mixer(), 1e3)
