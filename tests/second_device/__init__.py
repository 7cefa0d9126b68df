"""A second device for torch, built from `device.cpp`, so that tests see what an accelerator would refuse.

A device cannot be unregistered, so tests use it in a process of its own: `python -m tests.second_device`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import types
from pathlib import Path

import torch

NAME = "second"
SOURCE = Path(__file__).with_name("device.cpp")


def compiler() -> str | None:
    """The compiler for C++ of this machine, if it has one."""
    return shutil.which(os.environ.get("CXX", "c++"))


def built(folder: Path) -> Path:
    """The library of the device, built into a folder unless it lies there.

    Raises:
        subprocess.CalledProcessError: when it does not compile.
    """
    root = Path(torch.__file__).parent
    text = SOURCE.read_bytes() + torch.__version__.encode()
    library = folder / f"second-device-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    program = compiler()
    assert program
    partial = library.with_suffix(f".{os.getpid()}.part")
    folder.mkdir(parents=True, exist_ok=True)
    abi = int(torch.compiled_with_cxx11_abi())
    subprocess.run(
        [
            program, "-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
            f"-I{root / 'include'}", f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
            str(SOURCE), "-o", str(partial), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10",
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    partial.replace(library)
    return library


def register(library: Path) -> None:
    """Give this process the device."""
    torch.ops.load_library(str(library))
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda _seed: None
    torch._register_device_module(NAME, module)
