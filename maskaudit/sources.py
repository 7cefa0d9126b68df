"""What a MODEL argument may name: a file, a model of the zoo or of a hub, or code of the user's.

The only place that knows all of them. A further kind of name is one reader and one line in `NAMED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import torch
from torch import nn

from maskaudit import zoo
from maskaudit.errors import UsageError, describe_error
from maskaudit.files import is_file
from maskaudit.foreign import READER_GROUP
from maskaudit.loading import LoadedModel, finished, hubs, load_file, named
from maskaudit.loading.blackbox import web
from maskaudit.loading.interface import Contents

#: Readers of names, by prefix; `zoo:` brings a whole LoadedModel.
NAMED: dict[str, Callable[[str], Contents]] = {
    "py": named.read_py,
    "torchvision": named.read_torchvision,
    "timm": named.read_timm,
    "hf": hubs.read_hf,
    "robustbench": hubs.read_robustbench,
}


def load_model(
    source: str, *, arch: str | None = None, trust_pickle: bool = False, device: str | torch.device = "cpu",
    weights: str | None = None,
) -> LoadedModel:  # fmt: skip
    """Load a model. torch's global random state is left as it was.

    Args:
        source: a file (safetensors, state dict, TorchScript, .pt2, ONNX, pickled module), `zoo:NAME`,
            `py:package.module:callable`, `https://…`, `torchvision:NAME`, `timm:NAME`, `hf:ID` or `robustbench:NAME`.
        arch: SPEC of the module that a state dict belongs to (see `maskaudit.loading.arch`).
        trust_pickle: whether a pickle may run the code it asks for.
        device: where the module is put.
        weights: name of the set of weights that is meant, where a checkpoint holds several.

    Raises:
        UsageError: for a malformed SPEC, an unknown device, or a kind of source that is not supported.
        UntrustedInputError: for a pickle without `trust_pickle`.
        InputError: for a source that is missing, damaged, of another format, or does not fit the architecture.
    """
    with torch.random.fork_rng(devices=[]):
        loaded = _load(source, arch, trust_pickle, weights)
    if isinstance(loaded.module, nn.Module):
        _move(loaded.module, device)
    return loaded


def lacking(source: str) -> bool:
    """Whether a source names a file that is not there."""
    return not _is_name(source) and not is_file(Path(source))


def _is_name(source: str) -> bool:
    prefix, colon, _ = source.partition(":")
    web = source.startswith(("http://", "https://"))
    return web or bool(colon and (prefix == "zoo" or prefix in NAMED or entry_points(group=READER_GROUP, name=prefix)))


def _load(source: str, arch: str | None, trust_pickle: bool, weights: str | None) -> LoadedModel:
    prefix, _, name = source.partition(":")
    if not _is_name(source):
        return load_file(source, arch=arch, trust_pickle=trust_pickle, weights=weights)
    if weights is not None:
        raise UsageError(f"--weights is for a checkpoint, {source} brings its own weights; leave it out.")
    if source.startswith(("http://", "https://")):
        return finished(web.read_url(source), source, None)
    if not name:
        raise UsageError(f"{source!r} names no model; write {prefix}:NAME.")
    if arch is not None:
        raise UsageError(f"--arch is for a state dict, {source} brings its own architecture; leave it out.")
    if prefix == "zoo":
        return replace(zoo.load(name), source=source)
    return finished(_reader(prefix)(name), source, None)


def _reader(prefix: str) -> Callable[[str], Contents]:
    """What reads names with a prefix: ours, else that of an installed package.

    Raises:
        UsageError: when that package cannot be imported.
    """
    if prefix in NAMED:
        return NAMED[prefix]
    entry = next(iter(entry_points(group=READER_GROUP, name=prefix)))
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # a foreign package may raise anything while it is imported
        raise UsageError(
            f"The plug-in for {prefix}: ({entry.value}) cannot be used: {describe_error(error)}."
        ) from error


def _move(module: nn.Module, device: str | torch.device) -> None:
    try:
        module.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"The device {str(device)!r} cannot be used: {describe_error(error)}; try --device cpu."
        ) from error
