"""ONNX Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from maskaudit.loading.onnx.attributes import Attributes, ints, known, number


def dft(a: Attributes, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """DFT along one axis of x (…, 1 or 2): real numbers, or real and imaginary parts."""
    along = int(number(axis) or 0) if axis is not None else a.get("axis", 1 if a.opset < 20 else -2)
    along = along % x.dim()
    size = None if length is None else int(number(length) or 0)
    z = torch.complex(x[..., 0], torch.zeros_like(x[..., 0])) if x.shape[-1] == 1 else torch.view_as_complex(x.clone())
    if a.get("inverse", 0):
        if a.get("onesided", 0):
            return torch.fft.irfft(z, size, dim=along).unsqueeze(-1)
        return torch.view_as_real(torch.fft.ifft(z, size, dim=along))
    found = torch.fft.fft(z, size, dim=along)
    if a.get("onesided", 0):
        found = found.narrow(along, 0, found.shape[along] // 2 + 1)
    return torch.view_as_real(found)


def stft(a: Attributes, x: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None) -> Tensor:
    """STFT of signals (N, length, 1): frames (N, frames, frequencies, 2)."""
    if x.dim() > 2 and x.shape[-1] != 1:
        raise ValueError("STFT of complex signals is not supported")
    signal = x[..., 0] if x.dim() > 2 else x
    frame = int(number(length) or 0) if length is not None else len(known(window)) if window is not None else 0
    (hop,) = ints(step.reshape(1)) or [0]
    if not 0 < frame <= signal.shape[1] or hop < 1:
        raise ValueError(f"STFT has frames of {frame} every {hop}")
    frames = signal.unfold(1, frame, hop)
    if window is not None:
        frames = frames * window
    found = torch.fft.rfft(frames) if a.get("onesided", 1) else torch.fft.fft(frames)
    return torch.view_as_real(found)
