"""Masks in front of the network: the input is rounded, compressed, rippled, or leaves torch and comes back."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.zoo.masks.base import FrontMask, Mask

#: Side of a block of JPEG, in pixels.
BLOCK = 8
#: Largest value of an 8-bit pixel.
FULL = 255.0


class QuantisedInput(FrontMask):
    """Inputs in [0, 1] rounded to `levels` values (Xu et al. 2018, feature squeezing): gradient zero everywhere."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__(network)
        self.levels = levels

    def front(self, x: Tensor) -> Tensor:
        """The rounded input."""
        return torch.round(x * (self.levels - 1)) / (self.levels - 1)


class HonestQuantiser(Mask):
    """The same rounding with an honest straight-through gradient (Bengio et al. 2013): nothing is hidden."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__(network)
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the rounded input."""
        rounded = torch.round(x * (self.levels - 1)) / (self.levels - 1)
        return self.network(x + (rounded - x).detach())

    def unmasked(self) -> nn.Module:
        """The model itself: it hides nothing."""
        return self


class SineInput(FrontMask):
    """x + amplitude · sin(frequency · x): a ripple whose slope drowns the gradient of the network."""

    def __init__(self, network: nn.Module, amplitude: float = 0.02, frequency: float = 2000.0) -> None:
        super().__init__(network)
        self.amplitude, self.frequency = amplitude, frequency

    def front(self, x: Tensor) -> Tensor:
        """The rippled input."""
        return x + self.amplitude * torch.sin(self.frequency * x)


class SteepFront(FrontMask):
    """(1 + tanh(gain · (x − ½))) / 2: nearly black and white, hence flat on nearly all pixels."""

    def __init__(self, network: nn.Module, gain: float = 200.0) -> None:
        super().__init__(network)
        self.gain = gain

    def front(self, x: Tensor) -> Tensor:
        """The nearly binary input."""
        return (1 + torch.tanh(self.gain * (x - 0.5))) / 2


class NarrowClip(FrontMask):
    """The input stretched by `gain` about ½ and clipped to [0, 1]: flat outside a band of width 1 / gain."""

    def __init__(self, network: nn.Module, gain: float = 40.0) -> None:
        super().__init__(network)
        self.gain = gain

    def front(self, x: Tensor) -> Tensor:
        """The clipped input."""
        return torch.clamp(self.gain * (x - 0.5) + 0.5, 0.0, 1.0)


class JpegLike(FrontMask):
    """Coefficients of the 8×8 block DCT rounded to multiples of `step`, in grey levels of 255.

    The lossy part of JPEG (Das et al. 2017, "Keeping the bad guys out"; Guo et al. 2018) with one step for
    all frequencies.
    """

    basis: Tensor

    def __init__(self, network: nn.Module, step: float = 60.0) -> None:
        super().__init__(network)
        self.step = step
        self.register_buffer("basis", dct_basis(BLOCK))

    def front(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W) after compression."""
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
        blocks = padded.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)  # (N, C, rows, columns, 8, 8)
        coefficients = self.basis @ (FULL * blocks - 128) @ self.basis.T
        kept = torch.round(coefficients / self.step) * self.step
        back = ((self.basis.T @ kept @ self.basis) + 128) / FULL
        image = back.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)
        return image[:, :, :height, :width].clamp(0, 1)


def dct_basis(n: int) -> Tensor:
    """Orthonormal DCT-II matrix (n, n), float32."""
    place, frequency = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)[:, None]
    matrix = torch.cos(math.pi / n * (place + 0.5) * frequency) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


class JpegFile(FrontMask):
    """Grey images written as JPEG and read again by Pillow: real compression, outside torch (Das et al. 2017)."""

    def __init__(self, network: nn.Module, quality: int = 25) -> None:
        super().__init__(network)
        self.quality = quality

    def front(self, x: Tensor) -> Tensor:
        """The images (N, 1, H, W) after the round trip."""
        pixels = np.clip(np.rint(x.detach().cpu().numpy() * FULL), 0, FULL).astype(np.uint8)
        back = [self._through_a_file(image[0]) for image in pixels]
        return torch.from_numpy(np.stack(back)[:, None]).to(x)

    def _through_a_file(self, pixels: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="JPEG", quality=self.quality)
        stream.seek(0)
        with Image.open(stream) as image:
            return np.asarray(image, dtype=np.float32) / np.float32(FULL)


class Thermometer(FrontMask):
    """Every pixel as `levels` comparisons with rising thresholds, decoded by their mean (Buckman et al. 2018)."""

    def __init__(self, network: nn.Module, levels: int = 8) -> None:
        super().__init__(network)
        self.levels = levels

    def front(self, x: Tensor) -> Tensor:
        """The decoded input."""
        thresholds = (torch.arange(self.levels, device=x.device) + 0.5) / self.levels
        code = x.unsqueeze(-1) >= thresholds
        return code.to(x.dtype).mean(dim=-1)


class NumpyRoundTrip(FrontMask):
    """The input is normalised in numpy, where autograd does not follow."""

    def front(self, x: Tensor) -> Tensor:
        """The same values, off the graph."""
        array = np.clip(x.detach().cpu().numpy(), 0.0, 1.0)
        return torch.from_numpy(array).to(x)
