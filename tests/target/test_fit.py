"""Number types, layouts, batch sizes and outputs that are found by asking, on models as people have them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.data import Dataset, load_data
from maskaudit.errors import InputError, ModelError, UsageError
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.target.fit import fit, in_type

torch.manual_seed(4)
D = 6
NET = nn.Sequential(nn.Linear(D, 24), nn.ReLU(), nn.Linear(24, 3)).eval().requires_grad_(False)
X = torch.rand(40, D)


def fitted(model: Callable[[Tensor], Tensor], x: Tensor = X, **options: str) -> tuple[Target, list[str]]:
    with Target(model) as target:
        notes = fit(target, x, **options)  # type: ignore[arg-type]
        target.answers(x)
        return target, notes


def test_a_model_that_takes_its_inputs_is_left_alone() -> None:
    target, notes = fitted(NET)
    assert (target.form.dtype, target.form.layout, target.form.most, notes) == ("float32", "as-is", 0, [])


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("how", ["eager", "scripted", "traced", "a function"])
def test_the_number_type_of_the_model_is_found(dtype: str, how: str) -> None:
    own = copy.deepcopy(NET).to(getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
            "eager": lambda: own,
            "scripted": lambda: torch.jit.script(own),
            "traced": lambda: torch.jit.trace(own, X[:2].to(getattr(torch, dtype))),
            "a function": lambda: lambda x: own(x),
        }
        target, notes = fitted(made[how]())
    assert target.form.dtype == dtype
    assert notes == [f"The model computes in {dtype} and is audited in it."]
    gradient = target.value_and_grad(X[:3], lambda scores, rows: scores[:, 0])
    assert gradient.grad.dtype == torch.float32
    assert torch.allclose(gradient.scores.float(), NET(X[:3]), atol=0.05)


def baked(size: int) -> Callable[[Tensor], Tensor]:
    return lambda x: NET(x.view(size, D))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11, 64])
def test_a_batch_size_that_is_baked_in_is_found_and_kept_to(size: int) -> None:
    target, notes = fitted(baked(size))
    assert target.form.most == size
    assert "its batch size were fixed" in notes[0]
    for n in (1, 5, 13):
        assert torch.allclose(target.raw(X[:n]), NET(X[:n]), atol=1e-5)
        grad = target.value_and_grad(X[:n], lambda scores, rows: scores[:, 1]).grad
        assert torch.allclose(grad, Target(NET).value_and_grad(X[:n], lambda s, rows: s[:, 1]).grad, atol=1e-5)


def test_a_trace_at_one_point_is_asked_point_by_point() -> None:
    class Flattened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NET(x.view(int(x.shape[0]), D))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target, notes = fitted(torch.jit.trace(Flattened(), X[:1]))
    assert target.form.most == 1
    assert "a single point each time" in notes[0]


class Pooled(nn.Module):
    """A network over sequences: the axes after the first are what it convolves, recurs or averages over."""

    def __init__(self, inner: nn.Module, channels: int) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        out = out[0] if isinstance(out, tuple) else out
        return self.head(out.flatten(2).mean(2) if not isinstance(self.inner, nn.LSTM) else out.mean(1))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Pooled(nn.Conv2d(3, 5, 3), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 3, 1, 2))


SHAPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "signals": (lambda: Pooled(nn.Conv1d(2, 5, 3), 5), (2, 16), "as-is"),
    "volumes": (lambda: Pooled(nn.Conv3d(1, 5, 3), 5), (1, 4, 6, 5), "as-is"),
    "tokens": (lambda: Pooled(nn.LSTM(6, 5, batch_first=True), 5), (7, 6), "as-is"),
    "tokens that were read as an image": (lambda: Pooled(nn.LSTM(6, 5, batch_first=True), 5), (1, 7, 6), "no-channel"),
    "vectors for a convolution": (lambda: Pooled(nn.Conv1d(1, 5, 3), 5), (16,), "one-channel"),
    "flat images of one channel": (lambda: Pooled(nn.Conv2d(1, 5, 3), 5), (36,), "square"),
    "flat images of three channels": (lambda: Pooled(nn.Conv2d(3, 5, 3), 5), (108,), "square"),
    "flat rows for a convolution": (lambda: Pooled(nn.Conv2d(1, 5, (1, 3)), 5), (37,), "row"),
    "images for a network on vectors": (lambda: nn.Linear(36, 3), (1, 6, 6), "flat"),
    "images for a network on rows": (lambda: Pooled(nn.Conv2d(1, 5, (1, 36)), 5), (1, 6, 6), "row"),
    "images for a network on columns": (lambda: Pooled(nn.Conv2d(1, 5, (36, 1)), 5), (1, 6, 6), "column"),
    "channels last": (ChannelsLast, (3, 8, 9), "channels-last"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "layout"), SHAPED.values(), ids=SHAPED)
def test_inputs_of_any_shape_find_their_layout(
    make: Callable[[], nn.Module], shape: tuple[int, ...], layout: str
) -> None:
    torch.manual_seed(0)
    x = torch.rand(20, *shape)
    target, notes = fitted(make(), x)
    assert target.form.layout == layout
    assert bool(notes) is (layout != "as-is")
    assert target.value_and_grad(x, lambda scores, rows: scores[:, 0]).grad.shape == x.shape


def test_a_layout_that_the_user_names_is_taken_or_refused() -> None:
    with Target(lambda x: x.flatten(1)[:, :3]) as target:
        assert fit(target, torch.rand(9, 2, 4, 4), "channels-last") == []
        assert target.form.layout == "channels-last"
        with pytest.raises(UsageError, match="--layout no-channel does not fit"):
            fit(target, torch.rand(9, 2, 4, 4), "no-channel")


def test_what_nothing_helps_keeps_the_model_s_own_words() -> None:
    with Target(nn.Linear(5, 3)) as target, pytest.raises(ModelError, match="mat1 and mat2"):
        fit(target, X)
    with pytest.raises(InputError, match="does not accept in memory"):
        api.audit(nn.Linear(5, 3), (X, torch.arange(40) % 3), eps=0.1)


def test_other_failures_are_not_tried_away() -> None:
    calls: list[int] = []

    def broken(x: Tensor) -> Tensor:
        calls.append(len(x))
        raise RuntimeError("no licence")

    with Target(broken) as target, pytest.raises(ModelError, match="no licence"):
        fit(target, X)
    assert len(calls) <= 2


@pytest.mark.parametrize(("key", "column"), [("", 0), ("aux", 1), ("0", None)])
def test_one_of_several_outputs_is_taken(key: str, column: int | None) -> None:
    def model(x: Tensor) -> dict[str, Tensor]:
        return {"features": x, "logits": NET(x), "aux": NET(x) + torch.tensor([0.0, 9.0, 0.0])}

    with Target(model) as target:  # type: ignore[arg-type]
        target.form = target.form.changed(output_key=key)
        if column is None:
            with pytest.raises(ModelError, match=r"no output '0'.*features, logits, aux"):
                target.raw(X)
        else:
            expected = NET(X) if column == 0 else model(X)["aux"]
            assert torch.equal(target.raw(X), expected)


def test_a_copy_in_another_type_answers_alike_or_is_none() -> None:
    with Target(NET) as target:
        exact = in_type(target, torch.float64, X[:4])
        assert exact is not None
        assert exact.scores(X).dtype == torch.float64
        assert next(NET.parameters()).dtype == torch.float32
        assert in_type(Target(lambda x: NET(x)), torch.float64, X[:4]) is None

    class Tiny(nn.Module):
        """Scores of a few digits, below the normal numbers of float32."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 3)
            nn.init.zeros_(self.last.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(NET.to(x.dtype)(x) * 1e-43)

    with Target(Tiny()) as target:
        assert in_type(target, torch.float64, X[:4]) is not None
    NET.float()

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NET(x.float()) if x.dtype == torch.float32 else torch.zeros(len(x), 3, dtype=x.dtype)

    with Target(Fixed()) as target:
        assert in_type(target, torch.float64, X[:4]) is None


def test_a_file_of_signals_is_audited(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", x=rng.random((40, 7, 6), dtype=np.float32), y=np.arange(40) % 3)
    data = load_data(str(tmp_path / "s.npz"))
    _, notes = fitted(Pooled(nn.LSTM(6, 5, batch_first=True), 5), data.x)
    assert data.point_shape == (1, 7, 6)
    assert "--layout no-channel" in notes[0]


FEW = AuditSettings(budget="quick", samples=24, ignore=("transfer", "torchattacks-pgd", "torchattacks-square"))


@pytest.mark.parametrize(
    ("name", "norm"), [("signals", "Linf"), ("volumes", "L2"), ("tokens", "L2"), ("channels last", "Linf")]
)
def test_audits_of_any_shape_run_every_attack(name: str, norm: str) -> None:
    make, shape, _ = SHAPED[name]
    torch.manual_seed(0)
    x, model = torch.rand(24, *shape), make().eval()
    with Target(model) as target:
        fit(target, x)
        y = target.raw(x).argmax(1)
    if len(y.unique()) < 2:
        y[0] = (y[0] + 1) % 3
    report = api.audit(model, Dataset(name, x, y, 3, (0.0, 1.0)), norm=norm, eps=0.02, settings=FEW).report
    assert not [(row.name, row.reason) for row in report.attacks if row.status == "error"]
    assert not [(probe.rule, probe.reason) for probe in report.probes if probe.status == "error"]
    assert "could not be traced" not in " ".join(report.notes)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_single_probability_is_traced(scale: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(D, 1)
    nn.init.constant_(layer.bias, -float(layer(X).median()))
    layer.weight.data *= scale
    layer.bias.data *= scale
    model = nn.Sequential(layer, nn.Sigmoid())
    y = (model(X)[:, 0] > 0.5).long()
    report = api.audit(model, (X, y), eps=0.02, settings=FEW).report
    assert "could not be traced" not in " ".join(report.notes)
    assert report.trace["ops"] > 1


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_audits_in_other_types_run_every_attack(dtype: str) -> None:
    own = copy.deepcopy(NET).to(getattr(torch, dtype))
    report = api.audit(own, (X, NET(X).argmax(1)), eps=0.02, settings=FEW).report
    assert not [(row.name, row.reason) for row in report.attacks if row.status == "error"]
    assert not [(probe.rule, probe.reason) for probe in report.probes if probe.status == "error"]
    assert any(f"computes in {dtype}" in note for note in report.notes)


def test_a_fixed_batch_size_is_audited_like_none() -> None:
    def y() -> Tensor:
        return NET(X).argmax(1)

    free, fixed = (api.audit(model, (X, y()), eps=0.05, settings=FEW).report for model in (NET, baked(8)))
    assert not [(row.name, row.reason) for row in fixed.attacks if row.status == "error"]
    best, other = free.accuracy["best_known"], fixed.accuracy["best_known"]
    assert best is not None
    assert other is not None
    assert abs(best.value - other.value) < 0.05
