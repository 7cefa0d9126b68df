"""Built-in architectures and the specifications that name them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskaudit.errors import UsageError
from maskaudit.networks.layers import Ensemble, QuantisedLayer, straight_through
from maskaudit.networks.registry import (
    ACTIVATIONS,
    ARCHITECTURES,
    build,
    is_built_in,
    mlp,
    parse,
    small_cnn,
    spec_for,
    unparse,
)


@pytest.mark.parametrize(
    ("spec", "shape", "classes"),
    [
        ("small_cnn", (1, 8, 8), 10),
        ("small_cnn(in_channels=1, size=28)", (1, 28, 28), 10),
        ("small_cnn(in_channels=3, size=32, num_classes=2, batch_norm=True)", (3, 32, 32), 2),
        ("small_cnn(size=(9, 15), width=3)", (1, 9, 15), 10),
        ("mlp(in_features=5, num_classes=3, hidden=())", (5,), 3),
        ("small_cnn(width=3, dropout=0.5)", (1, 8, 8), 10),
        ("small_resnet(in_channels=3, size=(9, 12), num_classes=4, width=2, blocks=1)", (3, 9, 12), 4),
        ("small_resnet(width=2)", (1, 8, 8), 10),
        ("small_vit(width=4, depth=1)", (1, 8, 8), 10),
        ("small_vit(in_channels=3, size=(4, 8), width=6, heads=3, patch=4, num_classes=5)", (3, 4, 8), 5),
        ("mlp(hidden=7)", (1, 8, 8), 10),
        ("conv_mixer(width=4, depth=1, kernel=3)", (3, 32, 32), 10),
        ("conv_mixer(in_channels=1, size=(9, 5), width=3, depth=2, patch=4, num_classes=4)", (1, 9, 5), 4),
        ("resnet(width=2, blocks=(1, 2))", (3, 32, 32), 10),
        ("resnet(in_channels=1, size=(9, 5), width=2, blocks=(1,), num_classes=3)", (1, 9, 5), 3),
        ("resnet(width=2, blocks=(1,), grey=True)", (3, 8, 8), 10),
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
        ("alexnet", "small_cnn, small_resnet"),
        ("small_cnn(depth=3)", "in_channels, size"),
        ("small_cnn(16)", "name the arguments"),
        ("small_cnn(width=two)", "plain number"),
        ("small_cnn(**{'width': 2})", "name the arguments"),
        ("small_cnn(width=__import__('os').getpid())", "plain number"),
        ("small_cnn(", "keyword arguments"),
        ("a.b()", "small_cnn, small_resnet"),
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
        ("small_cnn(dropout=1)", "dropout"),
        ("small_cnn(bits=1)", "bits 0 or 2"),
        ("small_cnn(bits=9)", "bits 0 or 2"),
        ("small_cnn(bound=-1)", "bound ≥ 0"),
        ("small_cnn(bound='5')", "bound ≥ 0"),
        ("small_cnn(members=0)", "members"),
        ("small_cnn(members=65)", "members to be at most 64"),
        ("small_resnet(blocks=1000000)", "blocks to be at most 64"),
        ("small_vit(depth=1000000)", "depth to be at most 64"),
        ("small_resnet(size=3)", "size"),
        ("resnet(blocks=())", "stages"),
        ("resnet(blocks=(0, 1))", "blocks"),
        ("resnet(blocks=(60, 60))", "blocks to be at most 64"),
        ("resnet(blocks=(1, 1, 1, 1, 1, 1, 1))", "at most 6 stages"),
        ("resnet(in_channels=2, grey=True)", "1 or 3 channels"),
        ("resnet(grey=3)", "grey=True"),
        ("small_resnet(blocks=0)", "blocks"),
        ("small_vit(size=9)", "multiple of patch"),
        ("small_vit(width=5)", "multiple of heads"),
        ("conv_mixer(kernel=4)", "kernel to be odd"),
        ("conv_mixer(kernel=65)", "kernel to be at most 64"),
        ("conv_mixer(size=1)", "size"),
        ("smoothed_units(sigma=0)", "sigma"),
    ],
)
def test_bad_specifications_say_what_is_expected(spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build(spec)


def test_the_default_residual_network_is_resnet_18() -> None:
    net = build("resnet")
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 17
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_173_962


def test_a_grey_network_sees_the_luma_only() -> None:
    net = build("resnet(width=2, blocks=(1,), grey=True)").eval()
    x = torch.rand(3, 3, 8, 8)
    grey = (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand(3, 3, 8, 8)
    torch.testing.assert_close(net(x), net(grey))


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
    for images_only in ("small_cnn", "small_resnet", "small_vit", "conv_mixer"):
        with pytest.raises(UsageError, match=f"{images_only} needs images.*use mlp"):
            spec_for((5,), 3, images_only)
    assert spec_for((1, 8, 8), 10, "small_vit") == "small_vit(in_channels=1, size=8, num_classes=10)"
    assert spec_for((1, 8, 8), 10, "smoothed_units") == "smoothed_units(in_features=64, num_classes=10)"


def test_only_registered_names_are_built_in() -> None:
    assert all(is_built_in(name) for name in ARCHITECTURES)
    assert is_built_in("mlp(hidden=3)")
    assert not is_built_in("net.py:mlp(hidden=3)")


def _digits(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_bounded_logits_stay_inside_and_keep_the_decision() -> None:
    torch.manual_seed(0)
    bounded = build("small_cnn(width=3, bound=0.05)").eval()
    assert isinstance(bounded, nn.Sequential)
    free = bounded[:-1](_digits())
    assert (bounded(_digits()).abs() < 0.05).all()
    assert free.abs().max() > 0.05
    torch.testing.assert_close(bounded(_digits()), 0.05 * torch.tanh(free / 0.05))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    net, x = build("small_cnn(width=3, dropout=0.5)"), _digits()
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_an_ensemble_answers_with_the_mean_probability_of_its_members() -> None:
    torch.manual_seed(0)
    net = build("small_cnn(width=2, members=3)").eval()
    assert isinstance(net, Ensemble)
    each = torch.stack([member(_digits()).softmax(1) for member in net.members]).detach()
    torch.testing.assert_close(net(_digits()), each.mean(0))
    assert len({float(p) for p in each[:, 0, 0]}) == 3, "members start from weights of their own"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_straight_through_rounds_to_the_grid_and_passes_the_gradient(bits: int) -> None:
    value = torch.linspace(-1, 1, 401, requires_grad=True)
    rounded = straight_through(value, torch.tensor(1.0), bits)
    assert len(rounded.detach().mul(1e4).round().unique()) == 2**bits - 1
    assert float((rounded - value).detach().abs().max()) <= 0.5 / (2 ** (bits - 1) - 1) + 1e-6
    (gradient,) = torch.autograd.grad(rounded.sum(), value)
    assert (gradient == 1).all()


def test_quantised_layers_learn_their_range_in_training_and_keep_it_after() -> None:
    torch.manual_seed(0)
    layer = QuantisedLayer(nn.Linear(4, 2), 4)
    for _ in range(100):
        layer(torch.full((3, 4), 5.0))
    assert float(layer.largest) == pytest.approx(5.0, rel=1e-3)
    layer.eval()
    before = layer(torch.full((3, 4), 5.0))
    torch.testing.assert_close(layer(torch.full((3, 4), 50.0)), before)
    assert float(layer.largest) == pytest.approx(5.0, rel=1e-3)


def test_attention_mixes_tokens_and_knows_their_places() -> None:
    torch.manual_seed(0)
    net = build("small_vit(width=8, depth=1)").eval()
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, 0, 0] = x[1, 0, 6, 6] = 1.0
    assert not torch.allclose(net(x[:1]), net(x[1:]), atol=1e-6)
    x = _digits(1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x)[0, 0], x)
    assert (gradient != 0).all()
