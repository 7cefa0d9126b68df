"""Which classifier of transformers a configuration describes, and how it is built without weights."""

from __future__ import annotations

import importlib
from typing import Any

from maskaudit.errors import InputError, printable

#: Kinds of classifiers whose inputs are real numbers, as transformers names them.
KINDS = ("Image", "Audio")


def classifier(name: str, **arguments: Any) -> tuple[Any, str]:
    """The configuration of a model of the hub or in a folder, and its kind among `KINDS`.

    Args:
        arguments: entries of the configuration that differ, as `num_labels=10`.

    Raises:
        InputError: for a model of another kind.
        Exception: whatever transformers raises where there is no such model.
    """
    transformers = importlib.import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **arguments)
    for kind in KINDS:
        if type(config) in getattr(transformers, f"MODEL_FOR_{kind.upper()}_CLASSIFICATION_MAPPING"):
            return config, kind
    raise InputError(
        f"hf:{printable(name)} is a {printable(str(getattr(config, 'model_type', '?')), 60)}, of which transformers "
        "has no classifier of images or audio."
    )


def auto_class(kind: str) -> Any:
    """The class of transformers that makes classifiers of a kind."""
    return getattr(importlib.import_module("transformers"), f"AutoModelFor{kind}Classification")


def untrained(name: str, arguments: dict[str, Any]) -> object:
    """The model that a configuration describes, without its weights; see `classifier`."""
    config, kind = classifier(name, **arguments)
    return auto_class(kind).from_config(config, trust_remote_code=False)
