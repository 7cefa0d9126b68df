"""Shared fixtures: small trained networks (once per session) and a quiet, reproducible torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskaudit import zoo
from maskaudit.data import load_data
from maskaudit.loading import LoadedModel

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> Iterator[None]:
    """Workers share the cores; nested threading only slows small networks down. OMP_NUM_THREADS says otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def zoo_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for trained networks: the one the environment names, else one for this session."""
    given = os.environ.get("MASKAUDIT_CACHE")
    folder = Path(given) if given else tmp_path_factory.getbasetemp().parent / "maskaudit-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKAUDIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def standard(zoo_cache: Path) -> LoadedModel:
    """A standard digits network with everything its file brings."""
    return zoo.network("standard")


@pytest.fixture(scope="session")
def pgd_trained(zoo_cache: Path) -> LoadedModel:
    """A PGD-trained digits network."""
    return zoo.network("pgd-at")


@pytest.fixture(scope="session")
def standard_file(standard: LoadedModel) -> Path:
    """The file of the standard network."""
    return Path(standard.source)


@pytest.fixture(scope="session")
def net(standard: LoadedModel) -> nn.Module:
    """The standard digits network itself."""
    assert isinstance(standard.module, nn.Module)
    return standard.module.eval()


@pytest.fixture(scope="session")
def points(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Sixty-four test points that it classifies correctly, with their labels."""
    data = load_data("digits", split="test")
    with torch.no_grad():
        right = net(data.x).argmax(1) == data.y
    return data.x[right][:64], data.y[right][:64]
