"""torch.export archives: read as data, refused where they bring code, and the same verdict as the eager model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit.api import audit
from maskaudit.errors import InputError, UntrustedInputError
from maskaudit.settings import AuditSettings
from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.target.chunks import FixedBatch
from maskaudit.trace import trace_model

from .nets import Net, X

Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Write a module as an archive; its batch size is free unless told otherwise."""

    def write(module: nn.Module, x: Tensor = X, *, free: bool = True, name: str = "model.bin") -> Path:
        shapes = ({0: torch.export.Dim("batch", min=1)},) if free else None
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=shapes), buffer)
        path = tmp_path / name
        path.write_bytes(buffer.getvalue())
        return path

    return write


def rewrite(path: Path, changes: dict[str, Callable[[bytes], bytes]], more: dict[str, bytes] | None = None) -> None:
    """Change members of an archive by the end of their names, and add some."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(members)).split("/")[0]
    for end, change in changes.items():
        name = next(name for name in members if name.endswith(end))
        members[name] = change(members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **{f"{top}/{name}": value for name, value in (more or {}).items()}}.items():
            archive.writestr(name, content)


def edited(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def run(content: bytes) -> bytes:
        stated = json.loads(content)
        change(stated)
        return json.dumps(stated).encode()

    return run


class Odd(nn.Module):
    """What exported programs can hold besides layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            first, second = torch.split(torch.round(x * 3) / 3, 2, dim=1)
        x = torch.cat([second, first], dim=1).detach() * self.scale + torch.tensor([0.5])
        x = x.double().float()  # casts leave assertions behind, which give nothing
        scores: Tensor = self.body(x.view(x.shape[0], -1).clamp(-1, 1)).softmax(dim=-1)
        return scores


@pytest.mark.parametrize("make", [Net, Odd])
def test_a_program_answers_as_the_model(make: type[nn.Module], export: Export) -> None:
    torch.manual_seed(0)
    net = make().eval()
    loaded = load_model(str(export(net)))
    assert loaded.format == "pt2"
    assert loaded.trusted_code == ()
    assert loaded.parameters == sum(p.numel() for p in net.parameters())
    assert "gradients of the exported model" in loaded.notes[0]
    assert len(loaded.notes) == 1
    x = torch.linspace(-1, 1, 20).reshape(5, 4).requires_grad_()
    scores = loaded.module(x)
    assert torch.allclose(scores, net(x), atol=1e-6)
    assert scores.requires_grad
    (mine,) = torch.autograd.grad(scores[:, 0].sum(), x, allow_unused=True)
    (theirs,) = torch.autograd.grad(net(x)[:, 0].sum(), x, allow_unused=True)
    assert (mine is None and theirs is None) or torch.allclose(mine, theirs, atol=1e-6)  # type: ignore[arg-type]


def test_modules_bear_the_names_of_the_model(export: Export) -> None:
    loaded = load_model(str(export(Net().eval())))
    names = dict(loaded.module.named_modules())  # type: ignore[union-attr]
    assert "head.linear_1" in names
    parameters = {name for name, _ in loaded.module.named_parameters()}  # type: ignore[union-attr]
    assert parameters == {name for name, _ in Net().named_parameters()}


class Flat(nn.Module):
    """Insists on its batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.body(x.reshape(-1, 2).reshape(len(x), 4))
        return scores


@pytest.mark.parametrize(("make", "fixed"), [(Net, False), (Flat, True)])
def test_a_fixed_batch_size(make: type[nn.Module], fixed: bool, export: Export) -> None:
    net = make().eval()
    loaded = load_model(str(export(net, free=False)))
    assert isinstance(loaded.module, FixedBatch) == fixed
    for count in (1, 3, 7):
        x = torch.rand(count, 4, generator=torch.Generator().manual_seed(count))
        assert torch.allclose(loaded.module(x), net(x), atol=1e-6)


def test_a_view_of_what_attention_made(export: Export) -> None:
    """Its strides depend on the kernel that computes it: those of a rehearsal are others."""

    class Viewed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            parts = x.reshape(-1, 4, 2, 3).transpose(1, 2)
            found = nn.functional.scaled_dot_product_attention(parts, parts, parts)
            return found.permute(0, 2, 1, 3).view(-1, 24)

    x = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    loaded = load_model(str(export(Viewed(), x, free=False)))
    assert torch.allclose(loaded.module(x), Viewed()(x), atol=1e-6)


def test_an_operation_on_a_large_weight_and_a_small_one(export: Export) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(64, 64, 16), dim=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean(-1)

    module, x = Normed().eval(), torch.rand(2, 64, 32)
    assert torch.equal(load_model(str(export(module, x, free=False))).module(x), module(x))


def test_training_mode_is_noted(export: Export) -> None:
    loaded = load_model(str(export(nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train())))
    assert "exported in training mode" in " ".join(loaded.notes)


class Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def evil_inputs(path: Path, marker: Path) -> None:
    rewrite(path, {"sample_inputs/model.pt": lambda _: pickled(((Malice(marker),), {}))})


def evil_weights(path: Path, marker: Path) -> None:
    def lie(config: Any) -> None:
        for entry in config["config"].values():
            entry["use_pickle"] = True

    rewrite(
        path, {"weights_config.json": edited(lie), "weights/weight_0": lambda _: pickled(Malice(marker))}
    )  # fmt: skip


def evil_object(path: Path, marker: Path) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}

    def add(config: Any) -> None:
        config["config"]["evil"] = entry

    more = {"data/constants/opaque_obj_0": pickle.dumps(Malice(marker))}
    rewrite(path, {"constants_config.json": edited(add)}, more)


def evil_guard(path: Path, marker: Path) -> None:
    code = f"__import__('os').mkdir({str(marker)!r}) is None"
    rewrite(path, {"models/model.json": edited(lambda program: program.update(guards_code=[code]))})


def evil_size(path: Path, marker: Path) -> None:
    def lie(program: Any) -> None:
        graph = program["graph_module"]["graph"]
        graph["tensor_values"]["x"]["sizes"][0] = {
            "as_expr": {"expr_str": f"__import__('os').mkdir({str(marker)!r})", "hint": {"as_int": 3}}
        }

    rewrite(path, {"models/model.json": edited(lie)})


CRAFTED = {
    "inputs": evil_inputs,
    "weights": evil_weights,
    "object": evil_object,
    "size": evil_size,
    "guard": evil_guard,
}
#: What is never looked at needs no refusal: the model is read as if it were not there.
UNREAD = ("guard", "size")


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_archive_does_not_run(name: str, export: Export, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = export(Net().eval(), name="model.pt2")
    CRAFTED[name](path, marker)
    if name in UNREAD:
        load_model(str(path))
    else:
        with pytest.raises(UntrustedInputError, match="--trust-pickle"):
            load_model(str(path))
    assert not marker.exists()
    with torch.random.fork_rng(), contextlib.suppress(Exception):
        torch.export.load(path).module()(X)
    assert marker.exists(), "the archive above must have been able to do harm, or this test shows nothing"


def test_a_weight_that_begins_with_the_byte_of_a_pickle_is_none(export: Export) -> None:
    module = Net().eval()
    for parameter in module.parameters():
        bytes_of_it = parameter.data.view(torch.uint8).flatten()
        bytes_of_it[:4] = torch.tensor([0x80, 0xDE, 0x93, 0x3C], dtype=torch.uint8)  # 0.018
    assert torch.equal(load_model(str(export(module))).module(X), module(X))


def target(name: str) -> Callable[[Any], None]:
    def change(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


@pytest.mark.parametrize(
    "name",
    ["torch.os.system", "torch.ops.aten.from_file.default", "torch.ops.mine.op.default", "os.system", "torch.hub.load"],
)
def test_only_operations_of_aten_are_called(name: str, export: Export) -> None:
    path = export(Net().eval())
    rewrite(path, {"models/model.json": edited(target(name))})
    with pytest.raises(UntrustedInputError, match=r"it calls .*--trust-pickle"):
        load_model(str(path))


def test_compiled_code_is_refused(export: Export) -> None:
    path = export(Net().eval())
    rewrite(path, {}, {"data/aotinductor/model/x.so": b"\x7fELF"})
    with pytest.raises(UntrustedInputError, match="compiled code"):
        load_model(str(path))


def test_trust_goes_through_torch(export: Export) -> None:
    net = Flat().eval()
    path = export(net, free=False)
    rewrite(path, {"models/model.json": edited(lambda program: program["schema_version"].update(minor=0))})
    rewrite(path, {"sample_inputs/model.pt": lambda _: pickled(((X,), {}))}, {"data/constants/custom_obj_9": b"x"})
    with pytest.raises(UntrustedInputError, match="custom_obj_9"):
        load_model(str(path))
    loaded = load_model(str(path), trust_pickle=True)
    assert torch.allclose(loaded.module(X), net(X), atol=1e-6)


def huge(config: Any) -> None:
    config["config"]["head.weight"]["tensor_meta"]["sizes"][1] = {"as_int": 10**9}
    config["config"]["head.weight"]["tensor_meta"]["strides"] = [{"as_int": 0}, {"as_int": 0}]


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated|damaged"),
    "no weight": (
        lambda path: rewrite(path, {"weights_config.json": edited(lambda c: c["config"].pop("head.bias"))}),
        "cannot be read",
    ),
    "short weight": (lambda path: rewrite(path, {"weights/weight_0": lambda b: b[:4]}), "cannot be read"),
    "huge": (
        lambda path: rewrite(path, {"weights_config.json": edited(huge)}), "is stored with 15 numbers"
    ),
    "not JSON": (lambda path: rewrite(path, {"models/model.json": lambda b: b[:50]}), "cannot be read"),
    "no name": (
        lambda path: rewrite(
            path, {"models/model.json": edited(lambda p: p["graph_module"]["graph"]["nodes"].pop(0))}
        ),
        "nothing before it provides",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_archives(damage: Callable[[Path], None], words: str, export: Export) -> None:
    path = export(Net().eval())
    damage(path)
    with pytest.raises(InputError, match=words):
        load_model(str(path))


def test_two_inputs_are_no_classifier(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    torch.export.save(torch.export.export(Two(), (X, X)), tmp_path / "m.pt2")
    with pytest.raises(InputError, match="takes 2 inputs"):
        load_model(str(tmp_path / "m.pt2"))


class Quantised(nn.Module):
    """No gradient from the line that is named."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.round(x * 3)  # this line
        scores: Tensor = self.body(x)
        return scores


def test_the_trace_names_the_line_that_the_author_wrote(export: Export) -> None:
    torch.manual_seed(0)
    loaded = load_model(str(export(Quantised().eval())))
    with Target(loaded.module, bounds=(-1.0, 1.0)) as target:
        trace = trace_model(target, X, target.scores(X).argmax(1), eps=0.3)
    (place,) = {culprit.location for culprit in trace.culprits if culprit.mechanism == "shattered"}
    source = Path(__file__).read_text().splitlines()
    assert place.op == "round"
    assert place.line is not None
    assert source[place.line - 1].endswith("# this line")


@pytest.mark.heavy
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "clear"), (100.0, "masked")])
def test_the_verdict_is_that_of_the_eager_model(
    factor: float, verdict: str, export: Export, digits_net: nn.Module
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = digits_net

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(factor * self.body(x), dim=1) if factor > 1 else self.body(x)

    model = Scaled().eval()
    chosen = ("apgd-ce", "apgd-margin", "square", "noise", "zero-gradient", "unbounded-attack",
              "finite-difference-agreement")  # fmt: skip
    settings = AuditSettings(budget="quick", select=chosen)
    path = export(model, torch.rand(2, 1, 8, 8))
    exported, eager = (audit(source, settings=settings).report for source in (str(path), model))
    assert exported.verdict.label == eager.verdict.label == verdict
    broken = [{row.name: row.broken for row in report.attacks} for report in (exported, eager)]
    assert broken[0] == broken[1]
