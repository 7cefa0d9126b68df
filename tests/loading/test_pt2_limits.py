"""Exported programs that mean harm: refused at load, in one sentence, before anything is computed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskaudit.errors import InputError, UntrustedInputError
from maskaudit.sources import load_model

from .hostile import Node, archive, ints, node, number, program, size, sized, tensor, write

HUGE = 10**12
#: Operations that are on no list, each with arguments that would do harm.
REFUSED: dict[str, Node] = {
    "foreign memory": node("_reshape_alias.default", tensor(), ints(10**9), ints(1)),
    "strides": node("as_strided.default", tensor(), ints(10**9), ints(1)),
    "backward with indices": node("max_pool2d_with_indices_backward.default", tensor(), tensor(), ints(2, 2), tensor()),
    "unchecked sparse": node("_sparse_coo_tensor_unsafe.default", tensor(), tensor(), ints(4)),
    "printing": node("_print.default", {"as_string": "\x1b[2J"}, out=None),
    "seed": node("manual_seed.default", size(1), out=None),
    "gradient mode": node("set_grad_enabled.default", {"as_bool": False}, out=None),
    "resize": node("resize_.default", tensor(), ints(10**9)),
    "set": node("set_.source_Tensor", tensor(), tensor()),
    "file": node("from_file.default", {"as_string": "/etc/passwd"}),
    "result given": node("add.out", tensor(), tensor(), out="y"),
    "unpooling": node("max_unpool2d.default", tensor(), tensor(), ints(2, 2)),
    "bags": node("embedding_bag.default", tensor(), tensor(), tensor()),
    "packed": node("_pack_padded_sequence.default", tensor(), tensor(), {"as_bool": True}),
    "counts": node("bincount.default", tensor()),
    "positions": node("nonzero.default", tensor()),
    "runs": node("repeat_interleave.Tensor", tensor()),
    "power of sizes": node("_operator.pow", size(10), size(10**6)),
    "a text as function": node("os.system", {"as_string": "true"}),
    "no such operation": node("mine.default", tensor()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_on_no_list_are_refused_by_name(name: str, tmp_path: Path) -> None:
    call = REFUSED[name]
    with pytest.raises(UntrustedInputError, match=r"it calls .*" + call["target"].split(".")[-2]):
        load_model(str(write(tmp_path / "m.pt2", [call])))


SIZE = "are allowed|overflow|Storage size|would have to hold"
ROOT = node("mul.Tensor", tensor(), tensor())
#: Allowed operations with arguments that would take memory without end, read elsewhere, or trap.
CRAFTED: dict[str, tuple[list[Node], str]] = {
    "full": ([node("full.default", ints(HUGE), size(1))], SIZE),
    "arange": ([node("arange.default", size(HUGE))], SIZE),
    "eye": ([node("eye.default", size(10**7))], SIZE),
    "linspace": ([node("linspace.default", size(0), size(1), size(HUGE))], SIZE),
    "rand": ([node("rand.default", ints(10**6, 10**6))], SIZE),
    "window": ([node("hann_window.default", size(HUGE))], SIZE),
    "empty": ([node("empty.memory_format", ints(10**6, 10**6))], SIZE),
    "expand": ([node("unsqueeze.default", tensor(), size(0), out="z"),
                node("expand.default", tensor("z"), ints(HUGE, 2, 4))], SIZE),
    "repeat": ([node("repeat.default", tensor(), ints(10**6, 10**6))], SIZE),
    "pad": ([node("constant_pad_nd.default", tensor(), ints(0, HUGE))], SIZE),
    "diagonal": ([node("diag_embed.default", tensor(), size(10**7))], SIZE),
    "more numbers than there are": ([node("full.default", ints(2**40, 2**40), size(1))], SIZE),
    "many axes": ([node("view.default", tensor(), ints(2, 4, *[1] * 60))], "axes"),
    "a long list": ([node("view.default", tensor(), ints(*[1] * 100_000))], "entries in a list"),
    "one-hot": ([node("one_hot.default", tensor(), size(10**10))], "cannot be read|are allowed"),
    "pieces": ([node("full.default", ints(10**7), size(1), out="z"), node("unbind.int", tensor("z"), out="y")],
               "do not fit"),
    "chunks": ([node("chunk.default", tensor(), size(10**9))], "do not fit"),
    "products": ([node("full.default", ints(16_000, 16_000), size(1), out="z"),
                  *[node("mm.default", tensor("z"), tensor("z"), out="y")] * 9], "allowed per point"),
    "growing sizes": ([sized("sym_size.int", tensor(), size(1), out="n0"),
                       *(sized("_operator.mul", number(f"n{i}"), number(f"n{i}"), out=f"n{i + 1}") for i in range(34)),
                       node("full.default", {"as_sym_ints": [{"as_name": "n34"}]}, size(1))], "64 bits"),
    "a list as size": ([sized("_operator.mul", ints(*[1] * 4000), size(10**9), out="n"), ROOT], "not a number"),
    "a size from values": ([sized("item.default", node_input := tensor(), out="n"),
                            node("full.default", {"as_sym_ints": [{"as_name": "n"}]}, size(1))], "values of the input"),
    "a length from values": ([sized("item.default", node_input, out="n"),
                              node("arange.default", number("n"))], "values of the input"),
    "half spectrum": ([node("view_as_complex.default", tensor("x"), out="c"),
                       node("_fft_c2r.default", tensor("c"), ints(1), size(0), size(10**6))],
                      "do not fit|cannot be read"),
    "text": ([node("einsum.default", {"as_string": "a" * 10**6}, {"as_tensors": [{"name": "x"}]})], "expected str"),
    "truth as number": ([node("unsqueeze.default", tensor(), {"as_int": True})], "expected int"),
    "unknown value": ([node("relu.default", tensor("nowhere"))], "nothing before it provides"),
    "a circle": ([node("relu.default", tensor("b"), out="a"), node("relu.default", tensor("a"), out="b")], "provides"),
    "a type that is a number": ([node("cumsum.default", tensor(), size(0), dtype=size(1000))], "a dtype that is none"),
    "a type among plain arguments": ([node("view.dtype", tensor(), size(1000))], "a dtype that is none"),
    "a layout that is a number": ([node("zeros_like.default", tensor(), layout=size(1000))], "a layout that is none"),
    "an order that is a number": ([node("clone.default", tensor(), memory_format=size(1000))], "_format that is none"),
    "a device that is text": ([node("ones_like.default", tensor(), device={"as_string": "cuda"})],
                              "a device that is none"),
    "a type in what is replaced": ([node("empty.memory_format", ints(2, 4), dtype=size(1000))], "cannot be read"),
    "a computed type": ([sized("_operator.add", size(999), size(1), out="n"),
                         node("sum.default", tensor(), dtype=number("n"))], "a dtype that is none"),
    "dots": ([node("relu.default", tensor(), out=".".join("a" * 100_000))], "dots"),
    "operations": ([node("relu.default", tensor())] * 50_000, "50000 operations"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_arguments_are_refused_at_load(name: str, tmp_path: Path) -> None:
    nodes, words = CRAFTED[name]
    with pytest.raises(InputError, match=words) as caught:
        load_model(str(write(tmp_path / "m.pt2", nodes)))
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


IMAGE = (2, 3, 8, 8)
ONES = {"as_floats": [1.0, 1.0]}
#: With an image as input and some weights: what kernels of torch take on trust.
ON_TRUST: dict[str, tuple[list[Node], dict[str, tuple[int, ...]]]] = {
    "no step": ([node("conv2d.default", tensor(), tensor("p_w"), {"as_none": True}, ints(0, 0))],
                {"p_w": (4, 3, 3, 3)}),
    "far kernel": ([node("conv2d.default", tensor(), tensor("p_w"), {"as_none": True}, ints(1, 1), ints(0, 0),
                         ints(2**62, 2**62))], {"p_w": (4, 3, 3, 3)}),
    "no group": ([node("conv2d.default", tensor(), tensor("p_w"), {"as_none": True}, ints(1, 1), ints(0, 0), ints(1, 1),
                       size(0))], {"p_w": (4, 3, 3, 3)}),
    "statistics": ([node("_native_batch_norm_legit_no_training.default", tensor(), tensor("p_s"), tensor("p_s"),
                         tensor("p_s"), tensor("p_s"), {"as_float": 0.1}, {"as_float": 1e-5}),
                    ], {"p_s": (1,)}),
    "groups": ([node("native_group_norm.default", tensor(), {"as_none": True}, {"as_none": True}, size(2), size(300),
                     size(64), size(3), {"as_float": 1e-5})], {}),
    "grid": ([node("grid_sampler_2d.default", tensor(), tensor("p_g"), size(9), size(9), {"as_bool": True})],
             {"p_g": (2, 4, 4, 2)}),
    "upsampling": ([node("_upsample_bilinear2d_aa.default", tensor(), ints(8, 8), {"as_bool": False},
                         {"as_float": 1e-12}, {"as_float": 1e-12})], {}),
    "weight norm": ([node("_weight_norm_interface.default", tensor("p_v"), tensor("p_s"), size(0))],
                    {"p_v": (1000, 8), "p_s": (1,)}),
    "attention": ([node("scaled_dot_product_attention.default", tensor(), tensor("p_k"), tensor("p_v"))],
                  {"p_k": (2, 3, 8, 8), "p_v": (2, 3, 1, 8)}),
    "pooling by nothing": ([node("avg_pool2d.default", tensor(), ints(2, 2), ints(2, 2), ints(0, 0), {"as_bool": False},
                                 {"as_bool": True}, size(0))], {}),
    "recurrent": ([node("view.default", tensor(), ints(2, 3, 64), out="z"),
                   node("lstm.input", tensor("z"), {"as_tensors": [{"name": "p_h"}, {"name": "p_h"}]},
                        {"as_tensors": [{"name": "p_w"}, {"name": "p_u"}, {"name": "p_b"}, {"name": "p_b"}]},
                        {"as_bool": True}, size(1), {"as_float": 0.0}, {"as_bool": False}, {"as_bool": False},
                        {"as_bool": True})], {"p_h": (1, 2, 100), "p_w": (400, 64), "p_u": (400, 100), "p_b": (1,)}),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_TRUST)
def test_what_kernels_take_on_trust_is_checked(name: str, tmp_path: Path) -> None:
    nodes, weights = ON_TRUST[name]
    with pytest.raises(InputError, match=r"do not fit|cannot be read"):
        load_model(str(write(tmp_path / "m.pt2", nodes, IMAGE, weights=weights)))


@pytest.mark.parametrize("form", ["div.Tensor_mode", "remainder.Tensor", "floor_divide.default", "fmod.Tensor"])
def test_a_division_that_traps_is_an_exception(form: str, tmp_path: Path) -> None:
    mode = {"rounding_mode": {"as_string": "trunc"}} if "mode" in form else {}
    low = node("full.default", ints(4), size(-(2**63)), out="low", dtype={"as_scalar_type": 5})
    constant = node("full.default", ints(4), size(-1), out="minus", dtype={"as_scalar_type": 5})
    given = node("to.dtype", tensor(), {"as_scalar_type": 5}, out="minus")
    rest = [node(form, tensor("low"), tensor("minus"), out="q", **mode), node("mul.Tensor", tensor(), tensor("q"))]
    with pytest.raises(InputError, match="whole numbers overflows"):
        load_model(str(write(tmp_path / "m.pt2", [low, constant, *rest], (None, 4))))
    loaded = load_model(str(write(tmp_path / "m.pt2", [low, given, *rest], (None, 4))))
    with pytest.raises(ValueError, match="whole numbers overflows"):
        loaded.module(torch.full((2, 4), -1.0))


SHAPES: dict[str, Any] = {
    "none": (), "text": ("abc", 4), "fraction": (2.5, 4), "truth": (True, 4), "negative": (-1, 4), "zero": (0, 4),
    "many points": (50_000_000, 4), "very many": (10**12, 4), "axes": (2,) * 40, "large": (1, 10**9),
    "beyond": (2**70, 4), "list": ([2], 4),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its input"):
        load_model(str(write(tmp_path / "m.pt2", [node("relu.default", tensor())], SHAPES[name])))


def deep(levels: int) -> dict[str, Any]:
    """Parts of a program inside each other."""
    inner: dict[str, Any] = {"nodes": [node("relu.default", tensor())], "inputs": [tensor()], "outputs": [tensor("y")]}
    for _ in range(levels):
        call = node("torch.ops.higher_order.wrap_with_set_grad_enabled", {"as_bool": True},
                    {"as_graph": {"name": "g", "graph": inner}}, tensor())  # fmt: skip
        inner = {"nodes": [call], "inputs": [tensor()], "outputs": [tensor("y")]}
    nodes: list[Node] = inner["nodes"]
    return program(nodes)


RAW: dict[str, tuple[Callable[[], bytes], str]] = {
    "brackets": (lambda: b"[" * 2_000_000, "cannot be read"),
    "values": (lambda: b'{"a": [' + b"0," * 4_000_000 + b"0]}", "values"),
    "length": (lambda: b'"' + b"a" * (49 * 2**20) + b'"', "bytes"),
    "digits": (lambda: b"9" * 5_000, "cannot be read"),
    "parts": (lambda: json.dumps(deep(30)).encode(), "parts inside each other"),
    "text": (lambda: b'"models"', "cannot be read"),
    "surrogate": (lambda: json.dumps(program([node("relu.default", tensor("\ud800"))])).encode(), "cannot be read"),
}


@pytest.mark.parametrize("name", RAW)
def test_descriptions_that_are_none(name: str, tmp_path: Path) -> None:
    make, words = RAW[name]
    (tmp_path / "m.pt2").write_bytes(archive(None, raw=make()))
    with pytest.raises(InputError, match=words):
        load_model(str(tmp_path / "m.pt2"))


def test_one_payload_for_many_weights(tmp_path: Path) -> None:
    weights = {"p_a": (1024, 1024)}
    path = tmp_path / "m.pt2"
    path.write_bytes(many_of_one(archive(program([node("relu.default", tensor())]), weights), 1_000))
    with pytest.raises(InputError, match="many times the size"):
        load_model(str(path))


def many_of_one(data: bytes, count: int) -> bytes:
    """The archive with further weights that all lie in one member."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in given.namelist():
            content = given.read(name)
            if name.endswith("config.json"):
                config = json.loads(content)
                entry = config["config"]["a"]
                config["config"].update((f"a{number}", entry) for number in range(count))
                content = json.dumps(config).encode()
            file.writestr(name, content)
    return changed.getvalue()


def test_a_pass_that_takes_too_much_is_refused_before_it_runs(tmp_path: Path) -> None:
    """Sizes that grow with the batch are met when the batch is: 8 bytes per pair of points here."""
    nodes = [
        node("sum.dim_IntList", tensor(), ints(1), out="s"),
        node("unsqueeze.default", tensor("s"), size(1), out="c"),
        node("mul.Tensor", tensor("s"), tensor("c")),
    ]
    module = load_model(str(write(tmp_path / "m.pt2", nodes, (None, 4)))).module
    assert module(torch.rand(8, 4)).shape == (8, 8)
    with pytest.raises(ValueError, match="are allowed"):
        module(torch.zeros(1, 1).expand(200_000, 4))
