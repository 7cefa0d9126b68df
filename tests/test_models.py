"""Built-in architectures and the specifications that name them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskaudit.errors import UsageError
from maskaudit.models import ACTIVATIONS, ARCHITECTURES, build, is_built_in, mlp, parse, small_cnn, spec_for, unparse


@pytest.mark.parametrize(
    ("spec", "shape", "classes"),
    [
        ("small_cnn", (1, 8, 8), 10),
        ("small_cnn(in_channels=1, size=28)", (1, 28, 28), 10),
        ("small_cnn(in_channels=3, size=32, num_classes=2, batch_norm=True)", (3, 32, 32), 2),
        ("small_cnn(size=(9, 15), width=3)", (1, 9, 15), 10),
        ("mlp(in_features=5, num_classes=3, hidden=())", (5,), 3),
        ("mlp(hidden=7)", (1, 8, 8), 10),
    ],
)
def test_build_returns_logits_whose_readout_is_the_last_linear_layer(
    spec: str, shape: tuple[int, ...], classes: int
) -> None:
    model = build(spec).eval()
    x = torch.rand(4, *shape)
    logits = model(x)
    assert logits.shape == (4, classes)
    readout = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    readout.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(x)
    torch.testing.assert_close(readout(seen[0]), logits)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_used_in_every_hidden_layer(name: str) -> None:
    kind = type(ACTIVATIONS[name]())
    assert sum(type(module) is kind for module in small_cnn(activation=name).modules()) == 3
    assert sum(type(module) is kind for module in mlp(hidden=(8, 8), activation=name).modules()) == 2


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("resnet", "small_cnn, mlp"),
        ("small_cnn(depth=3)", "in_channels, size"),
        ("small_cnn(16)", "keyword arguments"),
        ("small_cnn(width=two)", "keyword arguments"),
        ("small_cnn(**{'width': 2})", "keyword arguments"),
        ("small_cnn(width=__import__('os').getpid())", "keyword arguments"),
        ("small_cnn(", "keyword arguments"),
        ("a.b()", "keyword arguments"),
        ("", "keyword arguments"),
        ("small_cnn(width=0)", "width"),
        ("small_cnn(width=2.5)", "width"),
        ("small_cnn(width=True)", "width"),
        ("small_cnn(size=(8, 8, 8))", "size"),
        ("small_cnn(size='8')", "size"),
        ("small_cnn(num_classes=1)", "num_classes"),
        ("small_cnn(activation='sign')", "leaky_relu"),
        ("mlp(hidden=(4, 0))", "hidden"),
        ("mlp(hidden='4')", "hidden"),
    ],
)
def test_bad_specifications_say_what_is_expected(spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build(spec)


def test_unparse_is_read_back_by_parse() -> None:
    arguments = {"size": (8, 9), "width": 4, "activation": "gelu", "batch_norm": False}
    assert parse(unparse("small_cnn", arguments)) == ("small_cnn", arguments)


def test_spec_for_completes_and_checks_against_the_data() -> None:
    assert spec_for((1, 8, 8), 10) == "small_cnn(in_channels=1, size=8, num_classes=10)"
    assert spec_for((3, 4, 6), 2, "small_cnn(width=4)") == (
        "small_cnn(in_channels=3, size=(4, 6), num_classes=2, width=4)"
    )
    assert spec_for((1, 8, 8), 10, "mlp") == "mlp(in_features=64, num_classes=10)"
    assert spec_for((5,), 3) == "mlp(in_features=5, num_classes=3)"
    with pytest.raises(UsageError, match="num_classes=3, but the data needs num_classes=10"):
        spec_for((1, 8, 8), 10, "small_cnn(num_classes=3)")
    with pytest.raises(UsageError, match="use mlp"):
        spec_for((5,), 3, "small_cnn")


def test_only_registered_names_are_built_in() -> None:
    assert all(is_built_in(name) for name in ARCHITECTURES)
    assert is_built_in("mlp(hidden=3)")
    assert not is_built_in("net.py:mlp(hidden=3)")
