"""TorchScript archives. Their code runs on use and can touch files, so it counts as trusted by the user."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib

import torch

from maskaudit.errors import InputError, describe_error, printable
from maskaudit.loading.fast_path import write_out
from maskaudit.loading.interface import Contents, ModelFile, Options

CONVERSION_NOTE = (
    "The model is TorchScript: what is audited are the gradients of the converted model, "
    "which can differ from those of the code it was exported from."
)
FAST_PATH_NOTE = (
    "Attention was traced on torch's fast path, which has no gradient: the operations that it computes were put there."
)


def read(file: ModelFile, options: Options) -> Contents:
    """Load the archive on the CPU; raises InputError when it is damaged or needs operators that are not here."""
    _check_sums(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.load is deprecated; the file format is not ours to choose
            module = torch.jit.load(io.BytesIO(file.data), map_location="cpu")
            written = write_out(module)
    except Exception as error:  # damaged archives make torch's C++ reader raise almost anything
        raise InputError(
            f"{file.source} is a TorchScript archive that cannot be opened, it may be truncated, damaged or in need of "
            f"operators from another package ({describe_error(error)})."
        ) from error
    notes = [CONVERSION_NOTE, *([FAST_PATH_NOTE] if written else [])]
    if options.arch is not None:
        notes.append("--arch was not used: a TorchScript archive brings its own code.")
    return Contents(module, "torchscript", {}, ("TorchScript archive",), tuple(notes))


def _check_sums(file: ModelFile) -> None:
    """Compare the archive's checksums first: torch's reader can abort the whole process on damaged debug records."""
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{file.source} is truncated or damaged ({describe_error(error)}); export it again."
        ) from error
    if bad is not None:
        raise InputError(f"{file.source} is damaged: the checksum of {printable(bad)} is wrong; export it again.")
