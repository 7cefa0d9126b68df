"""SPEC: parsing, importing and calling the user's code, and what a file may name."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskaudit.errors import InputError, UsageError
from maskaudit.loading import arch

NET = """
import helper
from torch import nn

class Net(nn.Linear):
    def __init__(self, width=3, name="n"):
        super().__init__(4, width)
        self.label = name

class Nest:
    make = Net

def broken():
    raise KeyError("no such\\nlayer")

def leave():
    raise SystemExit(3)

def text():
    return helper.WORD

ready = Net(width=5)
number = 7
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text("WORD = 'hello'")
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    return tmp_path / "net.py"


PARSED: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "net.py:make": ("net.py", "make", {}),
    "a/b c/net.py:make(width=2, name='a:b(c)')": ("a/b c/net.py", "make", {"width": 2, "name": "a:b(c)"}),
    "dir (1)/net.py:make(width=2)": ("dir (1)/net.py", "make", {"width": 2}),
    r"C:\nets\net.py:make": (r"C:\nets\net.py", "make", {}),
    "pkg.mod:Class.method(sizes=[1, 2], flag=None)": ("pkg.mod", "Class.method", {"sizes": [1, 2], "flag": None}),
    "pkg.mod:make(path='x.py:y')": ("pkg.mod", "make", {"path": "x.py:y"}),
    "small_cnn": (None, "small_cnn", {}),
    " small_cnn(width=16, shape=(1, 8, 8), lr=-1e-3) ": (
        None,
        "small_cnn",
        {"width": 16, "shape": (1, 8, 8), "lr": -1e-3},
    ),
}


@pytest.mark.parametrize("spec", PARSED)
def test_parse(spec: str) -> None:
    parsed = arch.parse(spec)
    assert (parsed.origin, parsed.factory, parsed.arguments) == PARSED[spec]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "net.py",
        "net.py:",
        "a b",
        "f(2)",
        "f(*x)",
        "f(**{'a': 1})",
        "f(a=open('x'))",
        "f(a=b)",
        "f(a=().__class__)",
        "f()()",
        "f(a=1).g",
        "(lambda: 1)()",
        "__import__('os').system('true')",
        "os.system",
        "f[0]",
        "1",
        "f(a=" + "(" * 5000,
        "f(a=1)\nimport os",
    ],
)
def test_parse_refuses(spec: str) -> None:
    with pytest.raises(UsageError):
        arch.parse(spec)


def test_build_from_a_file(net: Path) -> None:
    path_before = list(sys.path)
    module = arch.build(f"{net}:Net(width=2, name='a')")
    assert isinstance(module, nn.Linear)
    assert (module.out_features, module.label) == (2, "a")
    assert sys.path == path_before
    assert isinstance(arch.build(f"{net}:Nest.make"), nn.Linear)
    assert arch.build(f"{net}:ready").out_features == 5


def test_build_from_a_module(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (net.parent / "some_net_module.py").write_text("from torch import nn\ndef make(n=2):\n    return nn.Linear(n, 2)")
    monkeypatch.chdir(net.parent)
    assert arch.build("some_net_module:make(n=7)").in_features == 7
    assert arch.build("torch.nn:Linear(in_features=4, out_features=2)").in_features == 4


FAILURES: dict[str, tuple[str, type[Exception], str]] = {
    "missing file": ("gone.py:make", InputError, "There is no file"),
    "missing module": ("no_such_package_here:make", InputError, "ModuleNotFoundError"),
    "missing name": ("net.py:make", InputError, "has no make; it has Net"),
    "factory raises": ("net.py:broken", InputError, "KeyError: 'no such"),
    "factory exits": ("net.py:leave", InputError, "SystemExit: 3"),
    "not a module": ("net.py:text", InputError, "object of type str"),
    "not callable": ("net.py:number", InputError, "object of type int"),
    "wrong argument": ("net.py:Net(wide=2)", InputError, "TypeError.*wide"),
    "arguments for a module": ("net.py:ready(width=2)", UsageError, "leave out its arguments"),
    "syntax": ("bad.py:make", InputError, "SyntaxError"),
    "exits on import": ("script.py:make", InputError, "SystemExit"),
}


@pytest.mark.parametrize(("spec", "error", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_failures(net: Path, monkeypatch: pytest.MonkeyPatch, spec: str, error: type[Exception], message: str) -> None:
    (net.parent / "bad.py").write_text("def make(:")
    (net.parent / "script.py").write_text("raise SystemExit")
    monkeypatch.chdir(net.parent)
    known, path = set(sys.modules), list(sys.path)
    with pytest.raises(error, match=message):
        arch.build(spec)
    assert sys.path == path
    assert not any("bad" in name or "script" in name for name in set(sys.modules) - known)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the built-in architectures; returns the list of specs that were built."""
    built: list[str] = []

    def build(spec: str) -> nn.Module:
        built.append(spec)
        parsed = arch.parse(spec)
        if parsed.factory != "line":
            raise UsageError(f"There is no built-in architecture {spec!r}.")
        return nn.Linear(parsed.arguments.get("width", 4), 2)

    monkeypatch.setattr("maskaudit.networks.registry.build", build)
    return built


def test_builtin(models: list[str]) -> None:
    assert arch.build("line(width=6)").in_features == 6
    assert models == ["line(width=6)"]
    with pytest.raises(UsageError, match="no built-in"):
        arch.build("circle")
    with pytest.raises(InputError, match="cannot be built"):
        arch.build("line(width='wide')")


def test_a_file_may_name_builtins_only(models: list[str], net: Path) -> None:
    (net.parent / "evil.py").write_text(f"open({str(net.parent / 'marker')!r}, 'w')")
    for name in (f"{net.parent / 'evil.py'}:make", "os:getcwd"):
        with pytest.raises(InputError, match=r"code named by a file is not run.*--arch"):
            arch.build_from_file(name, "m.safetensors", 100)
    assert not (net.parent / "marker").exists()
    assert models == []
    built = arch.build_from_file("line(width=6)", "m.safetensors", 14)
    assert built.weight.device == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["line(width=1000000000)", "line(width=9999999999999)", "circle", "line(", "a b\x1b[2J"]
)
def test_a_file_cannot_ask_for_the_absurd(models: list[str], name: str) -> None:
    with pytest.raises(InputError, match=r"m\.safetensors") as caught:
        arch.build_from_file(name, "m.safetensors", 14)
    assert "\x1b" not in str(caught.value)
    assert set(models) <= {"circle"}


def test_a_file_cannot_ask_for_more_than_it_holds(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arch, "SIZE_SLACK", 100)
    with pytest.raises(InputError, match="holds 14 numbers but names an architecture with 18002 parameters"):
        arch.build_from_file("line(width=9000)", "m.safetensors", 14)


def collection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for timm or torchvision.models that knows one model."""
    stub = types.ModuleType(name)

    def made(asked: str, **arguments: Any) -> nn.Module:
        assert arguments.pop("pretrained", None) is False or arguments.pop("weights", 0) is None
        return nn.Linear(2, **arguments)

    stub.create_model = stub.get_model = made  # type: ignore[attr-defined]
    stub.list_models = lambda: ["resnet10t", "vit_tiny"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, stub)


@pytest.mark.parametrize(("prefix", "module"), [("timm", "timm"), ("torchvision", "torchvision.models")])
def test_models_of_a_collection(prefix: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    collection(module, monkeypatch)
    built = arch.build(f"{prefix}:resnet10t(out_features=10)")
    assert isinstance(built, nn.Linear)
    assert built.out_features == 10
    assert arch.trusted_code(f"{prefix}:resnet10t") == (f"--arch {prefix}:resnet10t",)
    with pytest.raises(UsageError, match=r"has no model 'resnet10' .did you mean resnet10t\?.\."):
        arch.build(f"{prefix}:resnet10")
    with pytest.raises(InputError, match="cannot be built: TypeError"):
        arch.build(f"{prefix}:resnet10t(classes=10)")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"needs the package {prefix}"):
        arch.build(f"{prefix}:resnet10t")
