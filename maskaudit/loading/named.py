"""Models that are named rather than given as a file: `py:`, `torchvision:`, `timm:`; see also `hubs`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType

from torch import nn

from maskaudit.errors import InputError, describe_error
from maskaudit.loading import arch, blackbox, network
from maskaudit.loading.interface import Contents
from maskaudit.loading.vision import ready_torchvision

#: The package that a prefix needs.
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers", "robustbench": "robustbench"}


def read_py(name: str) -> Contents:
    """`py:pkg.mod:callable`: code that the user named, called without arguments (or with those of the SPEC).

    What answers as it is, an estimator, a session, or a function of one argument, is not called to make it.
    """
    found = arch.found(name)
    made = found if blackbox.is_service(found) or _takes_inputs(found) else arch.make(name)
    if blackbox.is_service(made) or (made is found and not isinstance(made, nn.Module)):
        made = blackbox.answering(made)
    if not callable(made):
        raise InputError(
            f"py:{name} gave an object of type {type(made).__name__}; expected a torch.nn.Module or a callable."
        )
    return Contents(made, "python", trusted_code=(f"py:{name}",))


def _takes_inputs(found: object) -> bool:
    """Whether a function has exactly one argument that must be given: it is the model itself."""
    if not inspect.isfunction(found):
        return False
    must = [
        p for p in inspect.signature(found).parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL
    ]
    return len(must) == 1


def read_torchvision(name: str) -> Contents:
    """`torchvision:NAME` with its default pretrained weights."""
    package = import_package("torchvision", name, "torchvision.models")
    return pretrained("torchvision", name, lambda: package.get_model(name, weights="DEFAULT"))


def read_timm(name: str) -> Contents:
    """`timm:NAME` with its pretrained weights."""
    package = import_package("timm", name, "timm")
    return pretrained("timm", name, lambda: package.create_model(name, pretrained=True))


def import_package(prefix: str, name: str, module: str) -> ModuleType:
    """A module of the package that `prefix:` needs; raises InputError with the way out."""
    try:
        ready_torchvision()
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{prefix}:{name} needs the package {PACKAGES[prefix]}; install it, or give a model file or "
            "py:package.module:function."
        ) from error
    except Exception as error:  # a package built for another torch fails with RuntimeError and others
        raise InputError(
            f"{PACKAGES[prefix]} is installed but cannot be imported ({describe_error(error)}); "
            "install the version that belongs to your torch."
        ) from error


def pretrained(prefix: str, name: str, make: Callable[[], object]) -> Contents:
    """What `make` gives, as a model; whatever it raises becomes an InputError."""
    advice = "; check the name, and that its weights are on this machine or can be downloaded"
    with network.explained(prefix, f"{prefix}:{name} is not available", advice):
        made = make()
    if not isinstance(made, nn.Module):
        raise InputError(f"{prefix}:{name} gave an object of type {type(made).__name__}, not a torch.nn.Module.")
    return Contents(made, prefix, trusted_code=(f"package {PACKAGES[prefix]}",))
