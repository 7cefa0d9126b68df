"""torch.save files: state dicts (opened without running code) and, on the user's word, pickled modules."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from typing import Any

import torch
from torch import nn

from maskaudit.errors import InputError, UntrustedInputError, describe_error, printable
from maskaudit.loading import arch, pickle_depth, state
from maskaudit.loading.interface import Contents, ModelFile, Options
from maskaudit.loading.sniff import LEGACY_START

#: How many names of wanted code a message lists.
SHOWN = 5
#: Pickles at the start of a legacy file: magic number, version, machine, content, names of storages.
LEGACY_PICKLES = 5
#: Longest stretch of consecutive pickles that is searched for names (legacy files hold five).
MAX_PICKLES = 8
#: The first torch whose safe loader runs nothing.
OLDEST_TORCH = "2.6"
#: Classes that the safe loader may build besides its own: a bag of attributes, in which scripts keep their options.
HARMLESS = (argparse.Namespace,)
#: Names that every state dict refers to and torch's safe loader knows.
ORDINARY = re.compile(r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.\w+Storage|argparse\.Namespace")


def read(file: ModelFile, options: Options) -> Contents:
    """Read a checkpoint with the safe loader; a pickle that wants code only with `trust_pickle`.

    Raises:
        UntrustedInputError: for a pickle that would run code, without the flag.
        InputError: for a damaged file, one that holds no model, or a state dict that does not fit.
    """
    try:
        content = _load(file, weights_only=True)
    except InputError as error:
        wanted = wanted_globals(file)
        if not wanted and not (options.trust_pickle and isinstance(error.__cause__, pickle.UnpicklingError)):
            raise
        return _read_trusted(file, options, wanted)
    return _read_state(file, options, content)


def read_pickle(file: ModelFile, options: Options) -> Contents:
    """Read a plain pickle (not written by torch.save), which is code: only with `trust_pickle`."""
    wanted = wanted_globals(file)
    if not wanted and not options.trust_pickle:
        raise InputError(
            f"{file.source} is a pickle that holds no module, or its end is missing; "
            "save a state dict with torch.save(model.state_dict(), FILE)."
        )
    return _read_trusted(file, options, wanted)


def read_content(file: ModelFile) -> Any:
    """What a file of torch.save holds, by the safe loader.

    Raises:
        UntrustedInputError: for a pickle that would run code.
        InputError: for a damaged file.
    """
    try:
        return _load(file, weights_only=True)
    except InputError:
        wanted = wanted_globals(file)
        if not wanted:
            raise
        names = ", ".join(printable(name, 60) for name in wanted[:SHOWN])
        raise UntrustedInputError(
            f"{file.source} is a pickle that would run code when opened ({names}), and is refused; save plain tensors."
        ) from None


def wanted_globals(file: ModelFile) -> list[str]:
    """Names of the functions and classes that a pickle would import beyond torch's own safe list, running nothing."""
    try:
        if file.data.startswith(b"PK"):
            with torch.serialization.safe_globals(list(HARMLESS)):
                return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(file.data)))
    except Exception:  # a damaged archive, or an opcode that torch refuses: what our own scan sees is still reported
        return _scan_pickles(_pickle_part(file.data))
    return _scan_pickles(_pickle_part(file.data))


def _read_state(file: ModelFile, options: Options, content: object) -> Contents:
    found = state.find_state(content, file.source)
    if options.arch is None:
        raise state.need_arch(file.source)
    module = arch.build(options.arch)
    notes = state.fit(module, found, file.source, options.arch, options.weights)
    return Contents(module, "state_dict", {}, arch.trusted_code(options.arch), notes)


def _read_trusted(file: ModelFile, options: Options, wanted: list[str]) -> Contents:
    names = ", ".join(printable(name, 60) for name in wanted[:SHOWN]) or "unnamed code"
    if len(wanted) > SHOWN:
        names += f" and {len(wanted) - SHOWN} more"
    if any(name.startswith("torch.distributed") for name in wanted):
        raise InputError(
            f"{file.source} holds the part of every weight that one process of several kept ({names}); save the whole: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True."
        )
    if not options.trust_pickle:
        raise UntrustedInputError(
            f"{file.source} is a pickle that would run code when opened ({names}); export a state dict and give "
            "--arch SPEC, or, if you trust whoever made the file, add --trust-pickle."
        )
    content = _load(file, weights_only=False)
    module = _find_module(content)
    trusted = (f"--trust-pickle: {names}",)
    if module is None:
        contents = _read_state(file, options, content)
        return Contents(contents.module, "pickle", {}, trusted + contents.trusted_code, contents.notes)
    ignored = ("--arch was not used: the pickle holds a whole module.",) if options.arch is not None else ()
    return Contents(module, "pickle", {}, trusted, ignored)


def _find_module(content: object) -> nn.Module | None:
    """A module itself, or one under the customary keys of a checkpoint dict."""
    if isinstance(content, nn.Module):
        return content
    if isinstance(content, dict):
        return next((content[key] for key in state.WRAPPERS if isinstance(content.get(key), nn.Module)), None)
    return None


def check_version(source: str) -> None:
    """Raise InputError where torch's safe loader could be tricked."""
    if torch.__version__ < OLDEST_TORCH:
        raise InputError(
            f"{source} is not read with torch {torch.__version__}, whose loader can be tricked (CVE-2025-32434); "
            f"install torch {OLDEST_TORCH} or newer."
        )


def _load(file: ModelFile, *, weights_only: bool) -> Any:
    if weights_only:
        check_version(file.source)
        _check_nesting(file)
    plain = not weights_only and file.data[:2] != b"PK" and not file.data.startswith(LEGACY_START)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(HARMLESS)):
            warnings.simplefilter("ignore")  # about the pickle's age, nothing the user can act on
            if plain:
                return pickle.loads(file.data)
            return torch.load(io.BytesIO(file.data), map_location="cpu", weights_only=weights_only)
    except MemoryError as error:
        raise InputError(f"{file.source} claims tensors that do not fit into memory.") from error
    except (AttributeError, ModuleNotFoundError) as error:
        if weights_only:
            raise _damaged(file, error) from error
        raise InputError(
            f"{file.source} needs code that cannot be imported here ({describe_error(error)}); run from the folder of "
            "that code with PYTHONPATH=. set, or export a state dict and give --arch SPEC."
        ) from error
    except Exception as error:  # the loaders raise whatever the damaged bytes, or the trusted code, lead to
        raise _damaged(file, error) from error


def _check_nesting(file: ModelFile) -> None:
    """Refuse objects that torch's safe loader would build and whose hash ends the process, or never ends."""
    try:
        if not file.data.startswith(b"PK"):
            return pickle_depth.check(file.data, LEGACY_PICKLES)
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    pickle_depth.check(archive.read(name), 1)
    except Exception as error:  # zipfile and pickletools raise almost anything on damaged bytes
        raise _damaged(file, error) from error


def _damaged(file: ModelFile, error: Exception) -> InputError:
    return InputError(f"{file.source} cannot be opened, it may be truncated or damaged ({describe_error(error)}).")


def _pickle_part(data: bytes) -> bytes:
    """The pickle inside a torch.save zip, or the buffer itself; nothing if the zip is damaged."""
    if not data.startswith(b"PK"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    except (zipfile.BadZipFile, zlib.error, StopIteration, EOFError, OSError, ValueError, OverflowError, RuntimeError):
        return b""


def _scan_pickles(data: bytes) -> list[str]:
    """Global names, beyond those of any state dict, in the pickles at the start of a buffer, read as opcodes."""
    stream, names = io.BytesIO(data), set()
    with contextlib.suppress(Exception):  # damaged bytes end the search; what was found until then is still true
        for _ in range(MAX_PICKLES):
            texts: list[str] = []
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(texts[-2:]))
                elif isinstance(argument, str) and "UNICODE" in opcode.name:
                    texts.append(argument)
    return sorted(name for name in names if not ORDINARY.fullmatch(name))
