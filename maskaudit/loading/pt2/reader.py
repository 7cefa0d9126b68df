"""Archives of torch.export (.pt2), read without torch.export.load.

That function executes what a crafted archive brings: pickled sample inputs and weights, expressions and
guards that are evaluated, targets that reach any function under `torch`, compiled libraries. Here the
archive is data, see `pt2_program`. What needs more goes to torch.export.load, on the
user's word only.
"""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from pathlib import PurePosixPath

import torch
from torch import nn

from maskaudit.errors import InputError, UntrustedInputError, describe_error, printable
from maskaudit.loading.graph import Modeless, Shape, any_batch
from maskaudit.loading.graph_limits import TooLarge, check_count
from maskaudit.loading.interface import Contents, ModelFile, Options
from maskaudit.loading.pt2.program import Members, pickled, read_json, read_program
from maskaudit.loading.pt2.steps import Beyond
from maskaudit.loading.torch_file import wanted_globals

CONVERSION_NOTE = (
    "The model is an exported program: what is audited are the gradients of the exported model, "
    "which can differ from those of the code it was exported from."
)

#: Members of an archive: one per weight, and a dozen more.
MAX_MEMBERS = 20_000


def read(file: ModelFile, options: Options) -> Contents:
    """The program of the archive as a module.

    Raises:
        UntrustedInputError: for an archive that brings code, or needs torch.export.load, without `trust_pickle`.
        InputError: for a damaged archive, or a program that is no classifier of one input.
    """
    ignored = () if options.arch is None else ("--arch was not used: an exported program brings its own operations.",)
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            module, shape, dtype, notes, trusted = _opened(file, archive, options)
        module = any_batch(module, shape, dtype)
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise InputError(
            f"{file.source} is truncated or damaged ({describe_error(error)}); export it again."
        ) from error
    except TooLarge as error:
        raise InputError(f"{file.source} is an exported program beyond what is read here: {error}.") from error
    except Exception as error:  # whatever the damaged bytes, or operations that do not fit each other, lead to
        raise InputError(
            f"{file.source} is an exported program that cannot be read, it may be damaged or written by another "
            f"version of torch ({describe_error(error)}); export it again."
        ) from error
    return Contents(module, "pt2", {}, trusted, (CONVERSION_NOTE, *notes, *ignored))


Opened = tuple[nn.Module, Shape, torch.dtype, tuple[str, ...], tuple[str, ...]]


def _opened(file: ModelFile, archive: zipfile.ZipFile, options: Options) -> Opened:
    """Module, shape and type of its input, notes, and what ran on the user's word."""
    try:
        members = Members(archive)
        check_count(len(archive.infolist()), MAX_MEMBERS, "members")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
            raise ValueError("its members are compressed in a way that torch does not use")
        code = _foreign_code(members)
        if code and not options.trust_pickle:
            raise Beyond(code)
        return (*read_program(members, len(file.data)), ())
    except Beyond as reason:
        if not options.trust_pickle:
            raise UntrustedInputError(
                f"{file.source} would have to be opened by torch.export.load, which can run code of the file "
                f"({reason}); export it again without that, or, if you trust its author, add --trust-pickle."
            ) from reason
        return (*_trusted(file), torch.float32, (), (f"--trust-pickle: torch.export.load ({reason})",))


def _foreign_code(members: Members) -> str:
    """What in the archive would run when torch.export.load opens it; "" if nothing was found."""
    for name in members:
        if "aotinductor" in name or name.endswith((".so", ".cpp", ".o", ".pyd", ".dll")):
            return f"it holds compiled code, {printable(name, 60)}"
        if PurePosixPath(name).name.startswith(("custom_obj", "opaque_obj")):
            return f"it holds a pickled object, {printable(name, 60)}"
        if name.endswith((".pt", ".pkl")) or members.is_pickle(name):
            wanted = wanted_globals(ModelFile(name, members[name]))
            if wanted:
                return f"{printable(name, 60)} is a pickle that asks for {printable(', '.join(wanted[:3]), 100)}"
        if name.endswith("_config.json") and any(
            pickled(entry) for entry in read_json(members[name])["config"].values()
        ):
            return f"tensors listed in {printable(name, 60)} are pickled"
    return ""


def _trusted(file: ModelFile) -> tuple[nn.Module, Shape]:
    """What torch.export.load makes of the file, and the shape of its input."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(file.data))
            module = Modeless(program.module())
        names = set(program.graph_signature.user_inputs)
        shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in names]
        shape = [size if isinstance(size, int) else None for size in shapes[0]]
    except Exception as error:  # whatever the trusted file makes torch raise
        raise InputError(f"{file.source} cannot be opened by torch.export.load ({describe_error(error)}).") from error
    return module, shape
