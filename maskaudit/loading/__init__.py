"""Bytes to `nn.Module`: one reader per format, one policy of trust.

The format is told from the content. Without the user's word nothing in a file runs: weights are
read by safetensors or torch's safe loader, a file may name only built-in architectures, exported
programs (.pt2, ONNX) may call only known operations, and a pickle needs `trust_pickle`. Code that
the user named (`--arch`, `py:`) and TorchScript run, and are listed in `LoadedModel.trusted_code`.
A further format is one reader and one line in `FORMATS` (recognised by `sniff`) or `NAMED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from maskaudit.errors import UsageError, describe_error
from maskaudit.loading import hubs, named, pt2, safetensors_file, torch_file, torchscript
from maskaudit.loading import onnx as onnx_file
from maskaudit.loading.checkpoint import read_metadata, save_checkpoint
from maskaudit.loading.interface import Contents, LoadedModel, Model, ModelFile, Options, count_parameters, state_digest
from maskaudit.loading.sniff import read_file, sniff

__all__ = ["FORMATS", "NAMED", "LoadedModel", "Model", "load_model", "read_metadata", "save_checkpoint"]


#: Readers of files, by what `sniff` says.
FORMATS: dict[str, Callable[[ModelFile, Options], Contents]] = {
    "safetensors": safetensors_file.read,
    "state_dict": torch_file.read,
    "legacy": torch_file.read,
    "pickle": torch_file.read_pickle,
    "torchscript": torchscript.read,
    "pt2": pt2.read,
    "onnx": onnx_file.read,
}

#: Readers of names, by prefix; `zoo:` brings a whole LoadedModel and is handled by `load_model`.
NAMED: dict[str, Callable[[str], Contents]] = {
    "py": named.read_py,
    "torchvision": named.read_torchvision,
    "timm": named.read_timm,
    "hf": hubs.read_hf,
    "robustbench": hubs.read_robustbench,
}


def load_model(
    source: str, *, arch: str | None = None, trust_pickle: bool = False, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load a model. torch's global random state is left as it was.

    Args:
        source: a file (safetensors, state dict, TorchScript, .pt2, ONNX, pickled module), `zoo:NAME`,
            `py:package.module:callable`, `torchvision:NAME`, `timm:NAME`, `hf:ID` or `robustbench:NAME`.
        arch: SPEC of the module that a state dict belongs to (see `maskaudit.loading.arch`).
        trust_pickle: whether a pickle may run the code it asks for.
        device: where the module is put.

    Raises:
        UsageError: for a malformed SPEC, an unknown device, or a kind of source that is not supported.
        UntrustedInputError: for a pickle without `trust_pickle`.
        InputError: for a source that is missing, damaged, of another format, or does not fit the architecture.
    """
    with torch.random.fork_rng(devices=[]):
        loaded = _load(source, Options(arch, trust_pickle))
    if isinstance(loaded.module, nn.Module):
        _move(loaded.module, device)
    return loaded


def _load(source: str, options: Options) -> LoadedModel:
    prefix, colon, name = source.partition(":")
    if colon and (prefix == "zoo" or prefix in NAMED):
        if not name:
            raise UsageError(f"{source!r} names no model; write {prefix}:NAME.")
        if options.arch is not None:
            raise UsageError(f"--arch belongs to a state dict, {source} brings its own architecture; leave it out.")
        if prefix == "zoo":
            from maskaudit import zoo

            return replace(zoo.load(name), source=source)
        contents, sha256 = NAMED[prefix](name), None
    else:
        file = read_file(source)
        contents = FORMATS[sniff(file)](file, options)
        sha256 = contents.digest or file.sha256
    module = contents.module
    return LoadedModel(
        module=module,
        source=source,
        format=contents.format,
        sha256=state_digest(module) if sha256 is None else sha256,
        parameters=count_parameters(module),
        metadata=contents.metadata,
        trusted_code=contents.trusted_code,
        notes=contents.notes + _evaluation_mode(contents),
    )


def _evaluation_mode(contents: Contents) -> tuple[str, ...]:
    """Put a module that is as a whole in training mode into evaluation mode; modes set on parts only are its design."""
    module = contents.module
    if not isinstance(module, nn.Module) or not getattr(module, "training", False):  # frozen TorchScript has no mode
        return ()
    module.eval()
    if contents.format in ("pickle", "torchscript"):
        return ("The model was saved in training mode; it is audited in evaluation mode.",)
    return ()


def _move(module: nn.Module, device: str | torch.device) -> None:
    try:
        module.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"The device {str(device)!r} cannot be used: {describe_error(error)}; try --device cpu."
        ) from error
