"""Every reader of a file that others may have made, called as the command that reads it calls it.

A reader gets a path whose folder holds what else the command needs (`model.safetensors` for `verify`, the other class
for a folder of images), returns when it accepts the file, and raises `MaskauditError` when it refuses it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzzing import mutations, samples
from benchmarks.fuzzing.mutations import Mutation
from maskaudit import api
from maskaudit.auditing.evidence import read_report
from maskaudit.auditing.journal import SUFFIX, Journal, sealed
from maskaudit.command.check_config import read_check_options
from maskaudit.command.compare import compare_files
from maskaudit.command.compare import text as compared
from maskaudit.command.verify import verify_files
from maskaudit.data import NAMED, idx, load_data, svhn
from maskaudit.data.features import read_features, wide
from maskaudit.data.local import ROOT_VARIABLE
from maskaudit.errors import InputError
from maskaudit.gate.config import check_command, read_config
from maskaudit.loading import read_metadata
from maskaudit.repairs.plan_file import read_plan
from maskaudit.report import render
from maskaudit.target import Target
from maskaudit.target.recognise import recognise
from maskaudit.train import checkpoint as training

MODEL = "model.safetensors"
AUDIT = "audit.json"
EVIDENCE = "evidence.safetensors"
JOURNAL = ".journal"


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        name: in tables, and in the names of corpus files.
        file: what a mutant is called in its folder.
        read: opens it as a command does.
        seeds: valid files, given a folder with a real audit.
        mutate: structure-aware mutations.
        share: executions that it gets, of the sum of all shares.
    """

    name: str
    file: str
    read: Callable[[Path], object]
    seeds: Callable[[Path], Iterable[bytes]]
    mutate: tuple[Mutation, ...]
    share: int


def remember_digits() -> None:
    """Read the embedded digits once instead of once per execution: they are ours, and nothing here changes them."""
    NAMED["digits"] = functools.lru_cache(maxsize=16)(NAMED["digits"])


def check(path: Path, **options: Any) -> None:
    """`check MODEL` until the first attack: loaded, its claims settled, its fit with the data tried."""
    fitted(api.prepare(api.Request(str(path), **options)))


def fitted(prepared: api.Prepared) -> None:
    """What `check` and `inspect` do next: ask the model a few points, to learn what its answers are."""
    settings, threat = prepared.settings, prepared.threat
    with Target(
        prepared.loaded.module,
        bounds=threat.bounds,
        mean=settings.mean,
        std=settings.std,
        reject_class=settings.reject_class,
        seed=settings.seed,
    ) as target:
        recognise(target, prepared.data, settings)


def checkpoint(path: Path) -> None:
    """`check FILE` of our own safetensors, and what `read_metadata` makes of it."""
    read_metadata(path)
    check(path)


def state_dict(path: Path) -> None:
    """`check FILE --arch SPEC`."""
    check(path, arch=samples.ARCH)


def data(path: Path) -> None:
    """`check --data FILE`, which reads both parts."""
    for split in ("test", "train"):
        load_data(str(path), split=split, limit=100)


def pair(path: Path) -> None:
    """`check --data x.npy,y.npy`, the file as inputs."""
    labels = path.with_name("labels.npy")
    if not labels.exists():
        labels.write_bytes(samples.npy(samples.LABELS))
    load_data(f"{path},{labels}", limit=100)


def labels(path: Path) -> None:
    """`check --data x.npy,y.npy`, the file as labels."""
    inputs = path.with_name("inputs.npy")
    if not inputs.exists():
        inputs.write_bytes(samples.npy(samples.POINTS))
    load_data(f"{inputs},{path}", limit=100)


def table(path: Path) -> None:
    """`check --data TABLE`, the column with the labels found, then named."""
    for target in (None, "y"):
        load_data(str(path), limit=100, bounds=wide((0.0, 1.0)), target=target)


def features(path: Path) -> None:
    """`check --features FILE` on a table."""
    place = path.with_name("table.csv")
    if not place.exists():
        place.write_bytes(samples.table())
    points = load_data(str(place), bounds=wide((0.0, 1.0)))
    described = read_features(path, points, (0.0, 1.0))
    threat = described.threat(0.1)
    assert threat.features is not None
    described.encode(points, threat.features)
    described.sentence()


def house_numbers(path: Path) -> None:
    """`check --data svhn`, with the file where a copy of the data is looked for."""
    os.environ[ROOT_VARIABLE] = str(path.parent)
    svhn.load("test", (0.0, 1.0), 2)


def image(path: Path) -> None:
    """`check --data FOLDER`; the file is one image of its class."""
    load_data(str(path.parent.parent), limit=10)


def report(path: Path) -> None:
    """`report FILE -o …` in every format but HTML."""
    document = read_report(path)
    for form in ("json", "md", "text", "sarif", "junit"):
        render(document, form).encode("utf-8")


def html(path: Path) -> None:
    """`report FILE -o html=…`."""
    render(read_report(path), "html").encode("utf-8")


def compare(path: Path) -> None:
    """`compare FILE AUDIT` and the other way round, as text."""
    other = path.parent / AUDIT
    compared(compare_files(path, other)).encode("utf-8", "replace")
    compare_files(other, path)


def verify(path: Path) -> None:
    """`verify REPORT MODEL`."""
    verify_files(path, str(path.parent / MODEL))


def evidence(path: Path) -> None:
    """`verify EVIDENCE MODEL`."""
    verify_files(path, str(path.parent / MODEL))


def gate(path: Path) -> None:
    """`gate --config FILE` until the first audit."""
    for entry in read_config(path).entries:
        check_command(entry)


def journal(path: Path) -> None:
    """`check --resume`: one finished attack or probe, whose digest a hostile writer computes as we do."""
    place = path.with_suffix(SUFFIX)
    place.write_bytes(sealed(path.read_bytes()))
    kept = Journal(path.parent, {}, resume=True).read(path.stem, samples.CONTENT)
    if kept is None:
        raise InputError("It is done again.")
    try:
        samples.task("examples" in kept.tensors).unpacked(kept.tensors, kept.plain)
    except (LookupError, TypeError, ValueError):  # what `maskaudit.auditing.attacker` catches
        raise InputError("It is done again.") from None


def partial(path: Path) -> None:
    """`train --resume`."""
    training.read(path, {"seed": 0})


def _partial_seed(_: Path) -> list[bytes]:
    content = {
        "version": training.VERSION,
        "settings": {"seed": 0},
        "epoch": 1,
        "model": samples.state(),
        "auxiliary": {},
        "optimizer": {},
        "history": [],
    }
    return [samples.saved(content)]


def _onnx_seed(_: Path) -> list[bytes]:
    return [samples.onnx_model().SerializeToString(), samples.onnx_model(batch=2).SerializeToString()]


def _members(name: str) -> Mutation:
    """How a member of an archive of torch is changed."""
    if name.endswith(".json"):
        return mutations.json_tree(*PT2_WORDS)
    return mutations.pickle_ops if name.endswith(".pkl") else mutations.damage


#: Operations that an exported program must not get through, and some that it may, at the wrong place.
PT2_WORDS = (
    *tuple(
        f"torch.ops.aten.{name}"
        for name in (
            "_print.default",
            "manual_seed.default",
            "from_file.default",
            "_reshape_alias.default",
            "as_strided.default",
            "set_.source_Tensor",
            "resize_.default",
            "max_pool2d_with_indices_backward.default",
            "max_unpool2d.default",
            "_sparse_coo_tensor_unsafe.default",
            "embedding.default",
            "index.Tensor",
            "gather.default",
            "scatter.src",
            "zeros.default",
            "full.default",
            "arange.default",
            "expand.default",
            "repeat.default",
            "view.dtype",
            "cat.default",
            "relu.default",
            "conv2d.default",
            "linear.default",
            "div.Tensor",
            "add.Tensor",
            "mul.Tensor",
            "split.Tensor",
            "_assert_async.msg",
            "item.default",
            "rand.default",
            "dropout.default",
            "batch_norm.default",
            "lstm.input",
        )
    ),
    "_operator.mul",
    "_operator.pow",
    "torch.sym_max",
    "os.system",
    "builtins.eval",
    "math.factorial",
    "torch.load",
    "torch.ops.higher_order.wrap_with_set_grad_enabled",
    "torch.ops.higher_order.cond",
    "torch.ops.inductor.x",
)
ONNX_WORDS = (
    "Div",
    "Mod",
    "Pow",
    "Resize",
    "Upsample",
    "Expand",
    "Tile",
    "ConstantOfShape",
    "Range",
    "Reshape",
    "Gather",
    "Scatter",
    "ScatterND",
    "GatherND",
    "Loop",
    "If",
    "Scan",
    "LSTM",
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "MaxUnpool",
    "Pad",
    "Slice",
    "Split",
    "TopK",
    "OneHot",
    "Unsqueeze",
    "Squeeze",
    "Transpose",
    "Cast",
    "Einsum",
    "CumSum",
    "DepthToSpace",
    "Gemm",
    "MatMul",
    "Concat",
    "Where",
    "BatchNormalization",
    "x",
    "y",
    "kernel",
    "shape",
    "location",
    "offset",
    "length",
)
_CHECKPOINT_WORDS = (
    *tuple(samples.METADATA),
    "threat",
    "eps",
    "bounds",
    "F32",
    "F64",
    "I64",
    "BOOL",
    "F8_E4M3",
    "dtype",
)
_REPORT_WORDS = (
    "masked",
    "clear",
    "suspect",
    "inconclusive",
    "refuted",
    "points",
    "index",
    "label",
    "broken_by",
    "correct",
    "evidence",
    "file",
    "sha256",
    "attacks",
    "probes",
    "verdict",
    "claim",
    "accuracy",
    "value",
    "low",
    "high",
    "n",
    "figures",
)
_FEATURE_WORDS = ("feature", "column", "columns", "kind", "bounds", "eps", "real", "frozen", "integer")
_TOML_WORDS = (
    "models",
    "baseline",
    "check",
    "trust_pickle",
    "model",
    "eps",
    "expires",
    "tool",
    "maskaudit",
    "quick",
    "masked",
    "never",
)


def _report_seeds(folder: Path) -> list[bytes]:
    return [(folder / AUDIT).read_bytes()]


_report_tree = (mutations.json_tree(*_REPORT_WORDS),)
_torch_file = (mutations.archive(_members),)

READERS: tuple[Reader, ...] = (
    Reader(
        "checkpoint",
        "mutant.safetensors",
        checkpoint,
        lambda _: [samples.checkpoint()],
        (mutations.safetensors_header(*_CHECKPOINT_WORDS),),
        110,
    ),
    Reader(
        "weights",
        "mutant.safetensors",
        state_dict,
        lambda _: [samples.weights()],
        (mutations.safetensors_header(*_CHECKPOINT_WORDS),),
        50,
    ),
    Reader(
        "state dict",
        "mutant.pt",
        state_dict,
        lambda _: [samples.saved({"model": samples.state(), "epoch": 3}), samples.saved(samples.state())],
        _torch_file,
        50,
    ),
    Reader(
        "pickle",
        "mutant.pt",
        state_dict,
        lambda _: [samples.saved(samples.state(), legacy=True), samples.plain_pickle()],
        (mutations.pickle_ops,),
        50,
    ),
    Reader(
        "exported program",
        "mutant.pt2",
        check,
        lambda _: [samples.exported(), samples.exported(free=False)],
        _torch_file,
        12,
    ),
    Reader("ONNX", "mutant.onnx", check, _onnx_seed, (mutations.protobuf(*ONNX_WORDS),), 14),
    Reader(
        "npz",
        "mutant.npz",
        data,
        lambda _: [samples.npz(), samples.rich_npz()],
        (mutations.archive(lambda _: mutations.npy_header),),
        180,
    ),
    Reader(
        "idx", "mutant-ubyte", idx.read, lambda _: [samples.idx((3, 4, 4)), samples.packed(samples.idx((9,)))], (), 200
    ),
    Reader(
        "image folder",
        "a/mutant.png",
        image,
        lambda _: [samples.image(), samples.image("RGB"), samples.image("RGB", "JPEG"), samples.image("P")],
        (),
        40,
    ),
    Reader(
        "table",
        "mutant.csv",
        table,
        lambda _: [samples.table(), samples.table(";", names=True)],
        (mutations.cells,),
        84,
    ),
    Reader("npy, inputs", "mutant.npy", pair, lambda _: [samples.npy(samples.POINTS)], (mutations.npy_header,), 80),
    Reader("npy, labels", "mutant.npy", labels, lambda _: [samples.npy(samples.LABELS)], (mutations.npy_header,), 74),
    Reader("tensors, torch", "mutant.pt", data, lambda _: [samples.saved(samples.tensors())], _torch_file, 40),
    Reader(
        "tensors, safetensors",
        "mutant.safetensors",
        data,
        lambda _: [samples.plain(samples.tensors())],
        (mutations.safetensors_header("x", "y", "F32", "I64", "BOOL", "F8_E4M3", "dtype"),),
        80,
    ),
    Reader("WebDataset", "mutant.tar", data, lambda _: [samples.shard()], (mutations.tar_members,), 50),
    Reader(
        "SVHN",
        "test_32x32.mat",
        house_numbers,
        lambda _: [samples.house_numbers(packed) for packed in (False, True)],
        (),
        50,
    ),
    Reader(
        "index of shards",
        "mutant.safetensors.index.json",
        state_dict,
        lambda _: [samples.index(MODEL)],
        (mutations.json_tree("weight_map", "metadata", MODEL, EVIDENCE, "../" + MODEL, "/etc/passwd"),),
        12,
    ),
    Reader(
        "features",
        "mutant.toml",
        features,
        lambda _: [samples.FEATURES.encode()],
        (mutations.toml_tree(*_FEATURE_WORDS), mutations.toml_lines(*_FEATURE_WORDS)),
        40,
    ),
    Reader("report", "mutant.json", report, _report_seeds, _report_tree, 40),
    Reader("report, HTML", "mutant.json", html, _report_seeds, _report_tree, 1),
    Reader("compare", "mutant.json", compare, _report_seeds, _report_tree, 40),
    Reader("verify", "mutant.json", verify, _report_seeds, _report_tree, 8),
    Reader(
        "evidence",
        "mutant.safetensors",
        evidence,
        lambda folder: [(folder / EVIDENCE).read_bytes()],
        (mutations.safetensors_header("reject_class", "seed", "threat", "random", "mean", "attacks"),),
        10,
    ),
    Reader(
        "plan",
        "mutant.json",
        read_plan,
        lambda folder: [samples.plan(), (folder / "plan.json").read_bytes()],
        (mutations.json_tree("straight-through", "margin", "ce", "random", "repaired", "steps", "scale"),),
        100,
    ),
    Reader(
        "check options",
        "mutant.toml",
        read_check_options,
        lambda _: [samples.CHECK.encode()],
        (mutations.toml_tree(*_TOML_WORDS), mutations.toml_lines(*_TOML_WORDS)),
        50,
    ),
    Reader(
        "gate configuration",
        "mutant.toml",
        gate,
        lambda _: [samples.GATE.encode()],
        (mutations.toml_tree(*_TOML_WORDS), mutations.toml_lines(*_TOML_WORDS)),
        15,
    ),
    Reader(
        "journal",
        f"{JOURNAL}/pgd.mutant",
        journal,
        samples.entries,
        (
            mutations.safetensors_header("record", "examples", "I64"),
            mutations.json_tensor("record", "content", "plain", "findings", "location", "sources", "forwards"),
        ),
        23,
    ),
    Reader("training progress", "mutant.partial", partial, _partial_seed, _torch_file, 13),
)
