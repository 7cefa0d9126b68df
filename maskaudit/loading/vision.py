"""The package torchvision beside a torch that it was not built for.

The registry's torchvision is built for CUDA. Beside a CPU build of torch its own library does not load, and the import
fails at the first operator of that library (`operator torchvision::nms does not exist`). Classifiers need none of
them: they are declared, without an implementation, and the import goes through. Whatever calls one still fails, with
torchvision's or torch's own words.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import torch

#: Operators of its own library that torchvision describes to torch whether that library was loaded or not.
_DESCRIBED = re.compile(r"""register_fake\(\s*["']torchvision::(\w+)["']""")
#: Nothing is ever computed by them, so that arguments and results do not matter.
_SCHEMA = "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
_library = torch.library.Library("torchvision", "FRAGMENT")


def ready_torchvision() -> None:
    """Import torchvision, if it is installed, so that other packages can; see the module.

    Raises:
        Exception: whatever else the import raises.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if not re.search(r"operator torchvision::\w+ does not exist", str(error)):
            raise
        _declare()
        importlib.import_module("torchvision")


def _declare() -> None:
    """Declare what is missing, and forget the half of the package that was imported."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    described = Path(spec.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    for name in sorted(set(_DESCRIBED.findall(described))):
        if not hasattr(torch.ops.torchvision, name):
            _library.define(name + _SCHEMA)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
