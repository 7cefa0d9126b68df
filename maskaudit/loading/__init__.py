"""Bytes to `nn.Module`: one reader per format, one policy of trust.

The format is recognised by the content. Without the user's word nothing in a file runs: weights are
read by safetensors or torch's safe loader, a file may name only built-in architectures, exported
programs (.pt2, ONNX) may call only known operations, and a pickle needs `trust_pickle`. Code that
the user named (`--arch`, `py:`) and TorchScript run, and are listed in `LoadedModel.trusted_code`.
A further format is one reader and one line in `FORMATS`, recognised by `sniff`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from maskaudit import foreign
from maskaudit.errors import UsageError, printable, refusing
from maskaudit.loading import onnx, pt2, safetensors_file, shards, torch_file, torchscript
from maskaudit.loading.checkpoint import read_metadata, save_checkpoint
from maskaudit.loading.interface import Contents, LoadedModel, Model, ModelFile, Options, count_parameters, state_digest
from maskaudit.loading.sniff import read_file, sniff

__all__ = ["FORMATS", "LoadedModel", "Model", "finished", "load_file", "read_metadata", "save_checkpoint"]


#: Readers of files, by what `sniff` says.
FORMATS: dict[str, Callable[[ModelFile, Options], Contents]] = {
    "safetensors": safetensors_file.read,
    "state_dict": torch_file.read,
    "legacy": torch_file.read,
    "pickle": torch_file.read_pickle,
    "torchscript": torchscript.read,
    "pt2": pt2.read,
    "onnx": onnx.read,
    "index": shards.read_index,
}
#: Formats that may hold several sets of weights.
WEIGHTS = ("safetensors", "state_dict", "legacy", "pickle", "index")


def load_file(
    source: str, *, arch: str | None = None, trust_pickle: bool = False, weights: str | None = None
) -> LoadedModel:
    """Load a model file, on the CPU. torch's global random state is left as it was.

    Args:
        arch: SPEC of the module that a state dict belongs to (see `maskaudit.loading.arch`).
        trust_pickle: whether a pickle may run the code it asks for.
        weights: name of the set of weights that is meant, where a file holds several.

    Raises:
        UsageError: for a malformed SPEC, or weights that the file does not have.
        UntrustedInputError: for a pickle without `trust_pickle`.
        InputError: for a file that is missing, damaged, of an unknown format, or does not fit the architecture.
    """
    file = read_file(source)
    form = sniff(file)
    if weights is not None and form not in WEIGHTS:
        raise UsageError(f"--weights chooses among the weights of a checkpoint, and {source} is none; leave it out.")
    with torch.random.fork_rng(devices=[]):
        contents = FORMATS[form](file, Options(arch, trust_pickle, weights))
    return finished(contents, source, contents.digest or file.sha256)


def finished(contents: Contents, source: str, sha256: str | None) -> LoadedModel:
    """What a reader brought, as a loaded model in evaluation mode; without a digest, that of its weights.

    Raises:
        InputError: when the code of the module fails at that.
    """
    # the module's code may have overridden any method that is called here
    with refusing(f"{printable(source)} cannot be prepared for an audit"), foreign.Call():
        return _finished(contents, source, sha256)


def _finished(contents: Contents, source: str, sha256: str | None) -> LoadedModel:
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
        columns=contents.columns or tuple(map(str, getattr(contents.module, "feature_names_in_", ()))),
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
