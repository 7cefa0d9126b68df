"""SPEC: how the user names the code that builds a module.

Five forms, each with optional keyword arguments that are Python literals:

    path/to/net.py:make_net(width=2)     a factory in a file
    package.module:make_net(width=2)     a factory in an importable module
    timm:resnet18(num_classes=10)        a model of timm or torchvision, without its weights
    hf:microsoft/resnet-18(num_labels=4) a classifier of transformers, of its configuration alone
    small_cnn(width=16)                  a built-in architecture

All but the last run code that the user named. A file may name only the last (see `build_from_file`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from maskaudit import foreign
from maskaudit.errors import InputError, MaskauditError, UsageError, describe_error, meant, printable, refusing
from maskaudit.files import is_file
from maskaudit.loading import hf_config, network
from maskaudit.loading.interface import count_parameters
from maskaudit.loading.vision import ready_torchvision
from maskaudit.networks import registry
from maskaudit.networks.call import read_call

#: Largest integer argument and largest surplus of parameters that a file may ask for.
MAX_SIZE = 1_000_000
SIZE_SLACK = 1_000_000
EXAMPLE = "net.py:make_net, package.module:make_net, timm:NAME, torchvision:NAME, hf:ID or small_cnn(width=16)"


@dataclass(frozen=True)
class Collection:
    """A package of architectures: its module, what makes and lists them there, and what leaves the weights out."""

    module: str
    make: str
    names: str
    empty: Mapping[str, Any]


HF = "hf"
#: Packages whose architectures a SPEC names without saying where they are.
COLLECTIONS = {
    "timm": Collection("timm", "create_model", "list_models", {"pretrained": False}),
    "torchvision": Collection("torchvision.models", "get_model", "list_models", {"weights": None}),
}


@dataclass(frozen=True)
class Architecture:
    """A parsed SPEC.

    Attributes:
        spec: the text as given.
        origin: file ending in .py, or dotted module name; None for a built-in architecture.
        factory: name of the callable inside the origin (may be dotted), or of the built-in.
        arguments: keyword arguments for it.
    """

    spec: str
    origin: str | None
    factory: str
    arguments: dict[str, Any]


def parse(spec: str) -> Architecture:
    """Take a SPEC apart without running anything; raises UsageError for any other form."""
    origin, call = _split(spec.strip())
    if origin == HF:  # names of the hub and folders are no names of Python
        name, bracket, rest = call.partition("(")
        return Architecture(spec.strip(), origin, name, read_call(f"model{bracket}{rest}", spec, EXAMPLE)[1])
    factory, arguments = read_call(call, spec, EXAMPLE)
    if origin is None and "." in factory:
        raise UsageError(f"{printable(spec)!r} is not an architecture; write it as {EXAMPLE}.")
    return Architecture(spec.strip(), origin, factory, arguments)


def build(spec: str) -> nn.Module:
    """Build the module that a SPEC given by the user names.

    Raises:
        UsageError: for a malformed SPEC or an unknown built-in name.
        InputError: for a missing file or factory, a factory that raises, or one that returns no `nn.Module`.
    """
    architecture = parse(spec)
    if architecture.origin in COLLECTIONS:
        made = _build_listed(architecture, COLLECTIONS[architecture.origin])
    elif architecture.origin == HF:
        made = _build_configured(architecture)
    else:
        made = _build_builtin(architecture) if architecture.origin is None else make(spec)
    if not isinstance(made, nn.Module):
        raise InputError(f"{spec} gave {_kind(made)} where a torch.nn.Module is expected; return the module itself.")
    return made


def build_from_file(name: str, source: str, available: int) -> nn.Module:
    """Build the architecture that a checkpoint names: built-in names only, so that no code of the file runs.

    Args:
        name: the `arch` entry of the file's metadata.
        source: the file, for messages.
        available: how many scalars the file holds; an architecture that wants many more is
            refused before its memory is taken.

    Raises:
        InputError: for a name that is not built-in, or that does not fit the file.
    """
    try:
        architecture = parse(name)
    except UsageError as error:
        raise InputError(f"{source} names an architecture that cannot be read: {error}") from error
    if architecture.origin is not None:
        raise InputError(
            f"{source} was made by the code {printable(name)}, and code named by a file is not run; if you trust that "
            f"code, name it yourself: maskaudit check {shlex.quote(source)} --arch {printable(shlex.quote(name))}"
        )
    if any(abs(value) > MAX_SIZE for value in _numbers(architecture.arguments.values())):
        raise InputError(f"{source} names an architecture of absurd size: {printable(name, 80)}.")
    try:
        with torch.device("meta"):
            sketch = _build_builtin(architecture)
        wanted = count_parameters(sketch) if isinstance(sketch, nn.Module) else 0
        if wanted > 2 * available + SIZE_SLACK:
            raise InputError(
                f"{source} holds {available} numbers but names an architecture with {wanted} parameters; "
                "it is damaged or was written wrongly."
            )
        return build(name)
    except UsageError as error:
        raise InputError(f"{source} names an architecture that this version does not have: {error}") from error


def _numbers(values: Iterable[Any]) -> Iterator[float]:
    """The numbers among literal arguments and in their tuples and lists."""
    for value in values:
        if isinstance(value, int | float):
            yield value
        elif isinstance(value, list | tuple):
            yield from _numbers(value)


def make(spec: str) -> object:
    """Import the user's `origin:factory` and call it; an `nn.Module` instance found under that name is returned as is.

    Raises:
        UsageError: for a malformed SPEC, or arguments for something that is not called.
        InputError: for a missing file or factory, or one that raises.
    """
    return make_with(spec, {})[0]


def found(spec: str) -> object:
    """What the user's `origin:name` is, before anything is called; see `make`."""
    architecture = parse(spec)
    if architecture.origin is None or architecture.arguments:
        return None
    with _import_path(architecture.origin):
        return _attribute(_import(architecture.origin), architecture)


def make_with(spec: str, offered: Mapping[str, Any]) -> tuple[object, tuple[str, ...]]:
    """As `make`, the callable also given those of the `offered` arguments that it has parameters for.

    Returns:
        What was made, and the names of all arguments it was given.
    """
    architecture = parse(spec)
    if architecture.origin is None:
        raise UsageError(f"{spec!r} must name code as net.py:make_net or package.module:make_net.")
    with _import_path(architecture.origin):
        found = _attribute(_import(architecture.origin), architecture)
        if isinstance(found, nn.Module):
            if architecture.arguments:
                raise UsageError(f"{spec} is a module, not a factory: leave out its arguments.")
            return found, ()
        if not callable(found):
            raise InputError(f"{spec} is {_kind(found)}; name a function or class that returns a torch.nn.Module.")
        try:
            arguments = {**_accepted(found, offered), **architecture.arguments}
            return found(**arguments), tuple(arguments)
        except (Exception, SystemExit) as error:  # any failure of the user's code is reported, not a crash
            raise InputError(f"{spec} failed with {describe_error(error)}; call it in Python to see where.") from error


def trusted_code(spec: str | None) -> tuple[str, ...]:
    """The SPEC as the code that the user vouched for; nothing for a built-in architecture or None."""
    return (f"--arch {spec}",) if spec is not None and parse(spec).origin is not None else ()


def _accepted(factory: Callable[..., object], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the callable names as parameters; none for one without a signature."""
    if not offered:
        return {}
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {key: value for key, value in offered.items() if key in parameters}


def _split(spec: str) -> tuple[str | None, str]:
    """Origin and call. The first `.py:` ends a file name, unless it is inside the arguments of a call."""
    head, mark, call = spec.partition(".py:")
    if mark and not re.match(r"[\w.]+(:[\w.]+)?\(\s*\w+\s*=", head):
        return head + ".py", call
    if spec.startswith(f"{HF}:"):
        return HF, spec.removeprefix(f"{HF}:")
    before, bracket, arguments = spec.partition("(")
    origin, colon, name = before.rpartition(":")
    return (origin if colon else None), name + bracket + arguments


def _build_builtin(architecture: Architecture) -> object:
    with refusing(f"{printable(architecture.spec)} cannot be built"):  # wrong arguments reach torch's constructors
        return registry.build(architecture.spec)


def _build_listed(architecture: Architecture, collection: Collection) -> object:
    """A model of a package that builds by name, without its weights.

    Raises:
        UsageError: the package has no model of that name.
        InputError: the package is not here, or the arguments do not fit.
    """
    package = architecture.origin or ""
    module = _package(architecture, collection.module, package)
    known, name = list(getattr(module, collection.names)()), architecture.factory
    if name.partition(".")[0] not in known:
        raise UsageError(f"{package} has no model {printable(name, 60)!r}{meant(name, known)}.")
    with refusing(f"{printable(architecture.spec)} cannot be built"):  # wrong arguments reach torch's constructors
        return getattr(module, collection.make)(name, **{**collection.empty, **architecture.arguments})


def _build_configured(architecture: Architecture) -> object:
    """A classifier of transformers as its configuration, on this machine or on the hub, describes it.

    Raises:
        InputError: the package or the configuration is not here, or describes no classifier of real numbers.
    """
    _package(architecture, "transformers", "transformers")
    with network.explained(HF, f"--arch {printable(architecture.spec, 80)} cannot be built"):
        return hf_config.untrained(architecture.factory, architecture.arguments)


def _package(architecture: Architecture, module: str, package: str) -> ModuleType:
    try:
        ready_torchvision()
        return importlib.import_module(module)
    except Exception as error:  # a package built for another torch fails with RuntimeError and others
        way = "install it" if isinstance(error, ModuleNotFoundError) else "install the version that fits your torch"
        raise InputError(
            f"--arch {printable(architecture.spec, 80)} needs the package {package} ({describe_error(error)}); {way}, "
            "or name a factory of your own: --arch net.py:make_net."
        ) from error


def _import(origin: str) -> ModuleType:
    try:
        if origin.endswith(".py"):
            return _import_file(Path(origin))
        return importlib.import_module(origin)
    except MaskauditError:
        raise
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        raise InputError(f"{origin} cannot be imported: {describe_error(error)}.") from error


def _import_file(path: Path) -> ModuleType:
    if not is_file(path):
        raise InputError(f"There is no file {str(path)!r} to take the architecture from.")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"maskaudit_arch_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{digest}"
    location = importlib.util.spec_from_file_location(name, path)
    if location is None or location.loader is None:
        raise InputError(f"{str(path)!r} is not a Python file.")
    module = importlib.util.module_from_spec(location)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up by name
    try:
        location.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _import_path(origin: str) -> Iterator[None]:
    """Around the user's code, a foreign call: it may import its neighbours, in its folder or the working directory."""
    folder = str(Path(origin).resolve().parent if origin.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        with foreign.Call():
            yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _attribute(module: ModuleType, architecture: Architecture) -> object:
    found: object = module
    for name in architecture.factory.split("."):
        if not hasattr(found, name):
            public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            held = ", ".join(public[:6]) or "no callables"
            raise InputError(f"{architecture.origin} has no {architecture.factory}; it has {held}.")
        found = getattr(found, name)
    return found


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"
