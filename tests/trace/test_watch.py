"""The watcher of torch calls: what it hands on, and that all who use it name the same places and dead units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks

from maskaudit.files import shown_path
from maskaudit.probes.interface import ProbeContext
from maskaudit.probes.observe import observe
from maskaudit.repairs.dormant import dormant_units
from maskaudit.results import Location
from maskaudit.rng import PointRNG
from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.target.chunks import FixedBatch
from maskaudit.threat import ThreatModel
from maskaudit.trace.rectifiers import ActivationCall
from maskaudit.trace.watch import CallWatcher


class Shifted(nn.Module):
    """Rectifiers as module, as function and in place; every third unit of each is off everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.register_buffer("shift", torch.tensor([1.0, 2.0, -9.0]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(x + self.shift)
        h = F.relu(h + self.shift)
        return (h - 20).add_(25).relu_() + (x - self.shift.abs() * 20).clamp(min=0)


def test_calls_made_by_the_handler_and_their_modules_are_not_handed_on() -> None:
    seen: list[str] = []
    entered: list[str] = []
    inner = nn.Tanh()

    def handle(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append(name)
        inner(torch.zeros(1))
        return func(*args, **kwargs)

    def before(module: nn.Module, inputs: Any) -> None:
        entered.append(type(module).__name__)

    watcher = CallWatcher(nn.ReLU(), handle, before=before)
    with watcher.watching():
        nn.ReLU()(torch.ones(2))
    assert seen == ["ones", "relu"]
    assert entered == ["ReLU"]


def test_nothing_is_left_behind_where_the_handler_raises() -> None:
    def handle(*_: Any) -> Any:
        raise ValueError("boom")

    watcher = CallWatcher(nn.ReLU(), handle)
    with pytest.raises(ValueError, match="boom"), watcher.watching():
        torch.ones(2)
    assert not module_hooks._global_forward_hooks
    assert not module_hooks._global_forward_pre_hooks
    assert watcher.scope.path == ""
    assert torch.ones(2).sum() == 2


def sites(model: nn.Module, x: Tensor) -> dict[Location, Tensor]:
    """Where the probes see rectifiers, and which units are off at every point there."""
    found: dict[Location, Tensor] = {}

    def note(site: Any, call: ActivationCall, rows: int) -> None:
        off = call.off()
        assert off is not None
        found[site.location] = off.all(dim=0)

    with Target(model) as target:
        y = torch.zeros(len(x), dtype=torch.int64)
        context = ProbeContext(target, x, y, ThreatModel("Linf", 0.1), PointRNG.create(0, "test", torch.arange(len(x))))
        observe(context, frozenset({"relu", "clamp"}), note)
    return found


def test_probes_and_repairs_find_the_same_dead_units_at_the_same_places() -> None:
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    model = Shifted()
    with Target(model) as target:
        units = dormant_units(target, x)
    found = sites(model, x)
    assert len(found) == 4
    assert [(place.module, place.line) for place in units] == [
        (place.module, place.line) for place, off in found.items() if bool(off.any())
    ]
    for (dormant,), off in zip(units.values(), (off for off in found.values() if bool(off.any())), strict=True):
        assert dormant is not None
        assert torch.equal(dormant, off)


def test_an_activation_without_a_line_of_the_users_names_none() -> None:
    assert list(sites(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.rand(4, 3))) == [Location("1", "relu")]


def test_activations_of_an_exported_program_are_placed_where_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Shifted().eval(), (torch.rand(6, 3),)), path)
    module = load_model(str(path)).module
    assert isinstance(module, nn.Module)
    written = sites(Shifted(), torch.rand(6, 3))
    found = sites(module, torch.rand(6, 3))
    assert {place.file for place in found} == {shown_path(__file__)}
    assert [place.line for place in found][1:] == [place.line for place in written][1:]  # nn.ReLU is torch's own line


def test_activations_of_a_program_exported_for_two_points_are_seen_at_any_number(tmp_path: Path) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Shifted()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.flip(0).reshape(2, 3)).reshape(2, -1).flip(0)

    torch.export.save(torch.export.export(Written().eval(), (torch.rand(2, 3),)), tmp_path / "model.pt2")
    module = load_model(str(tmp_path / "model.pt2")).module
    assert isinstance(module, FixedBatch)
    x = torch.rand(5, 3)
    found, written = sites(module, x), sites(Shifted(), x)
    assert [place.line for place in found][1:] == [place.line for place in written][1:]
