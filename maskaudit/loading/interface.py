"""What every model format becomes, and what the formats share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Model = nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready to be called, with what is known about where it came from.

    Attributes:
        module: an `nn.Module`, in evaluation mode unless its author set modes himself, or a plain
            callable from inputs (N, …) to class scores (N, K).
        source: the source as the user gave it.
        format: `safetensors`, `state_dict`, `torchscript`, `pt2`, `onnx`, `pickle`, `python`, `zoo`, `torchvision`,
            `timm`, `hf` or `robustbench`.
        sha256: of the file's bytes, the same bytes that were loaded (with those of the files that an ONNX model
            keeps its weights in, a digest over both); of the state (see
            `state_digest`) for models without a file; empty for a plain callable.
        parameters: number of scalar parameters, 0 for a plain callable.
        metadata: what the file says about itself, plain JSON: the fields that `loading.file_metadata` declares
            (`arch`, `data`, `threat` {norm, eps, bounds}, `outputs`, `mean`, `std`, `reject_class`, …), each checked.
        trusted_code: code outside this package that was run on the user's word, one entry each.
        notes: caveats for the report, as sentences.
        columns: names of the columns that a model of tables takes, in its order; none where it has none.
    """

    module: Model
    source: str
    format: str
    sha256: str
    parameters: int
    metadata: dict[str, Any]
    trusted_code: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes in the order of its scores, as its file or its configuration (`id2label`) has
        them; none where it has none."""
        if self.metadata.get("class_names"):
            return tuple(self.metadata["class_names"])
        for part in self.module.modules() if isinstance(self.module, nn.Module) else ():
            known = getattr(getattr(part, "config", None), "id2label", None)
            if isinstance(known, dict) and set(known) == set(range(len(known))):
                return tuple(str(known[number]) for number in range(len(known)))
        return ()


@dataclass(frozen=True)
class ModelFile:
    """The bytes of a model file, read once: what is hashed and inspected is what is loaded."""

    source: str
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Options:
    """What the user allowed: an architecture SPEC, whether a pickle may run code, and which set of weights is meant."""

    arch: str | None = None
    trust_pickle: bool = False
    weights: str | None = None


@dataclass(frozen=True, eq=False)
class Contents:
    """What one format reader makes of a file; `digest` if the model is more than that file's bytes."""

    module: Model
    format: str
    metadata: dict[str, Any] = field(default_factory=dict)
    trusted_code: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str | None = None
    columns: tuple[str, ...] = ()


def count_parameters(module: Model) -> int:
    """Number of scalar parameters; 0 for a plain callable."""
    if not isinstance(module, nn.Module):
        return 0
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def state_digest(module: Model) -> str:
    """SHA-256 over names, types, shapes and values of parameters and buffers.

    Empty for a plain callable, and for a state without plain bytes (lazy, sparse or quantised tensors, and those of
    other packages, such as torchao's).
    """
    if not isinstance(module, nn.Module):
        return ""
    digest = hashlib.sha256()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            return ""
        if is_traceable_wrapper_subclass(tensor):
            return ""
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="surrogatepass"))
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()
