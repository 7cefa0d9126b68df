"""safetensors: our own checkpoints, and plain weights with `--arch`. Opening one never runs code."""

from __future__ import annotations

import io

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from maskaudit.errors import InputError, describe_error
from maskaudit.loading import arch, state
from maskaudit.loading.checkpoint import parse_metadata
from maskaudit.loading.interface import Contents, ModelFile, Options
from maskaudit.loading.shards import index_of
from maskaudit.loading.weights import Holder


def read(file: ModelFile, options: Options) -> Contents:
    """Build the module that the file (built-in names only) or the user names, and fill it with the file's tensors."""
    metadata = parse_metadata(file.source, io.BytesIO(file.data), len(file.data))
    tensors = read_tensors(file)
    named = metadata.get("arch")
    notes: tuple[str, ...] = ()
    if options.arch is not None:
        module, spec = arch.build(options.arch), options.arch
        if named is not None and named != options.arch:
            notes = (f"--arch {options.arch} was used in place of the architecture that the file names.",)
    elif named is not None:
        module, spec = arch.build_from_file(named, file.source, state.count_numbers(tensors)), named
    else:
        raise state.need_arch(file.source)
    try:
        notes += state.fit(module, [Holder((), tensors)], file.source, spec, options.weights)
    except InputError as error:
        raise InputError(f"{error}{index_of(file.source)}") from error
    return Contents(module, "safetensors", metadata, arch.trusted_code(options.arch), notes)


def read_tensors(file: ModelFile) -> dict[str, Tensor]:
    """The tensors of a file by name; its header is to be checked before.

    Raises:
        InputError: it is damaged.
    """
    try:
        return safetensors.torch.load(file.data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{file.source} is a truncated or damaged safetensors file ({describe_error(error)}); export it again."
        ) from error
