"""What does an audit of a network on CIFAR-10 say, and what does it cost beside official AutoAttack?

    MASKAUDIT_DATA=CIFAR OMP_NUM_THREADS=1 python benchmarks/cifar.py --train     an hour or two on two cores
    MASKAUDIT_DATA=CIFAR PYTHONPATH=CLONE-OF-AUTO-ATTACK python benchmarks/cifar.py --truth
    MASKAUDIT_DATA=CIFAR OMP_NUM_THREADS=1 python benchmarks/cifar.py --audit [--budget quick]

CIFAR is a folder with CIFAR-10 in one of the forms that `--data cifar-10` reads. The networks and their masked twins
are functions of `cifar_networks.py`. The truth of each is found by `published_truth.py` before it is audited: what the
parts of official AutoAttack and transfer leave of `POINTS` points. Finished runs are lines of `cifar.jsonl`, the table
is `cifar.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import cifar_networks as networks
from benchmarks import published_truth as truth
from benchmarks.published import checked
from benchmarks.records import ROOT, Record, RecordFile, commit, machine
from maskaudit.data import load_data

HERE = Path(__file__).resolve().parent
EPS, POINTS, SEED = "8/255", 64, 0
COMMON = "--data cifar-10 --batch-size 128 --augment crop-flip --eps 0.0313725490196"
RESNET20 = f"{COMMON} --model 'resnet(width=8, blocks=(3, 3, 3))'"
VIT = f"{COMMON} --model 'small_vit(width=48, depth=2, heads=3, patch=4)'"
MIXER = f"{COMMON} --model 'conv_mixer(width=96, depth=4, patch=4)'"
#: How the networks were trained.
TRAINED = {
    "standard": f"train standard {RESNET20} --lr 0.004 --epochs 6 --fraction 0.4",
    "robust": f"train pgd-at {RESNET20} --lr 0.004 --epochs 6 --fraction 0.3 --attack-steps 2",
    "distilled": f"train distill {RESNET20} --lr 0.02 --temperature 20 --epochs 4 --fraction 0.3",
    "vit": f"train standard {VIT} --lr 0.003 --epochs 10 --fraction 0.6",
    "robust_vit": f"train pgd-at {VIT} --lr 0.003 --epochs 10 --fraction 0.4 --attack-steps 2",
    "mixer": f"train standard {MIXER} --lr 0.005 --epochs 6 --fraction 0.5",
    "robust_mixer": f"train pgd-at {MIXER} --lr 0.005 --epochs 8 --fraction 0.3 --attack-steps 2",
}
#: Network, the trained one that it is made of, the one whose examples are transferred to it, and what it is.
SUBJECTS = {
    "standard": ("standard", "distilled", "ordinary"),
    "robust": ("robust", "standard", "adversarially trained"),
    "k_winners": ("standard", "distilled", "k-winners-take-all activations"),
    "resized": ("standard", "distilled", "resized and padded at random"),
    "distilled": ("distilled", "standard", "defensive distillation, T = 20"),
    "quantised": ("standard", "distilled", "input rounded to 8 levels"),
    "robust_quantised": ("robust", "standard", "adversarially trained, input rounded to 16 levels"),
    "scaled": ("standard", "distilled", "logits × 1,000"),
    "robust_scaled": ("robust", "standard", "adversarially trained, logits × 1,000"),
    "thermometer": ("standard", "distilled", "thermometer code of 8 levels"),
    "jpeg": ("standard", "distilled", "rounded block DCT"),
    "purified": ("standard", "distilled", "loop of gradient steps on the input"),
    "vit": ("vit", "standard", "small ViT"),
    "robust_vit": ("robust_vit", "robust", "small ViT, adversarially trained"),
    "vit_jpeg": ("vit", "standard", "small ViT, rounded block DCT"),
    "robust_vit_quantised": ("robust_vit", "robust", "small ViT, adversarially trained, input rounded to 16 levels"),
    "mixer": ("mixer", "standard", "ConvMixer"),
    "robust_mixer": ("robust_mixer", "robust", "ConvMixer, adversarially trained"),
    "mixer_resized": ("mixer", "standard", "ConvMixer, resized and padded at random"),
    "mixer_quantised": ("mixer", "standard", "ConvMixer, input rounded to 8 levels"),
    "robust_mixer_scaled": ("robust_mixer", "robust", "ConvMixer, adversarially trained, logits × 1,000"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what was asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train what is missing")
    parser.add_argument("--truth", action="store_true", help="find what each network withstands")
    parser.add_argument("--audit", action="store_true", help="audit each network")
    parser.add_argument("--budget", default="quick", choices=["quick", "standard", "thorough"])
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--records", type=Path, default=HERE / "cifar.jsonl")
    asked = parser.parse_args(arguments)
    if asked.train:
        train()
    file = RecordFile(asked.records)
    for name in asked.only:
        if asked.truth and not _known(file, "truth", name, ""):
            file.append(_record("truth", name, "", find_truth(name)))
        if asked.audit and not _known(file, "audit", name, asked.budget):
            if not _known(file, "truth", name, ""):
                print(f"{name}: its truth comes first (--truth)")
                continue
            file.append(_record("audit", name, asked.budget, audit(name, asked.budget)))
    (HERE / "cifar.md").write_text(render(file.read()), encoding="utf-8")


def train() -> None:
    """Train the networks that are missing."""
    networks.FOLDER.mkdir(parents=True, exist_ok=True)
    for name, options in TRAINED.items():
        path = networks.FOLDER / f"{name}.safetensors"
        if not path.exists():
            line = [sys.executable, "-m", "maskaudit", *shlex.split(options), "--out", str(path), "--resume"]
            subprocess.run(line, cwd=ROOT, check=True)


def _weights(name: str) -> str:
    path = networks.FOLDER / f"{SUBJECTS[name][0]}.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _known(file: RecordFile, kind: str, name: str, budget: str) -> bool:
    wanted = (kind, name, budget, _weights(name))
    return any((r["kind"], r["model"], r["budget"], r["weights"]) == wanted for r in file.read())


def _record(kind: str, name: str, budget: str, found: Record) -> Record:
    print(kind, name, budget, found["label"], f"{found['cpu_seconds']:.0f} CPU s", flush=True)
    return {"kind": kind, "model": name, "budget": budget, "seed": SEED, "weights": _weights(name),
            "commit": commit(), "machine": machine(), **found}  # fmt: skip


def find_truth(name: str) -> Record:
    """What AutoAttack part by part, and then transfer, leave of the points."""
    torch.set_num_threads(1)
    data = load_data("cifar-10")
    model, other = (getattr(networks, one)().eval() for one in (name, SUBJECTS[name][1]))
    with torch.no_grad():
        clean = truth.answers(model, data.x[:2000]) == data.y[:2000]
    index, x, y = data.sample(POINTS, SEED)
    found = truth.find(model, other, x, y, 8 / 255, 1.0)
    label = truth.label(found["stages"], found["zero_ce"])
    return {"clean": round(float(clean.double().mean()), 4), "index": index.tolist(), **found, "label": label}


def audit(name: str, budget: str) -> Record:
    """One audit by the command line, in a process of its own."""
    words = [f"py:benchmarks.cifar_networks:{name}", "--data", "cifar-10", "--eps", EPS, "--budget", budget]
    with tempfile.TemporaryDirectory() as out:
        document, cost = checked(words, Path(out))
    points, timing = document["points"], document["timing"]
    robust = [int(c and not b) for c, b in zip(points["correct"], points["broken_by"], strict=True)]
    return {
        "label": document["verdict"]["label"], "verdict": document["verdict"], "accuracy": document["accuracy"],
        "index": points["index"], "robust": robust, "notes": document["notes"],
        "forwards": timing["forwards"], "backwards": timing["backwards"], "peak_memory": timing["peak_memory"],
        **cost,
    }  # fmt: skip


def render(records: Sequence[Record]) -> str:
    """The table."""
    newest = {(r["kind"], r["model"], r["budget"]): r for r in records}
    lines = ["# Networks on CIFAR-10", "", *_head(records), "",
             "| network | clean | apgd-ce / white-box / all | truth | budget | verdict | mechanisms | accuracy, audit "
             "/ AutoAttack, on points that both met | points | passes, audit / AutoAttack | CPU s, both | "
             "peak memory |", "|---" * 12 + "|"]  # fmt: skip
    for (kind, name, budget), record in sorted(newest.items(), key=lambda item: list(SUBJECTS).index(item[0][1])):
        true = newest.get(("truth", name, ""))
        if kind == "audit" and true is not None:
            lines.append(_row(name, budget, record, true))
    return "\n".join(lines) + "\n"


def _head(records: Sequence[Record]) -> list[str]:
    weights = {SUBJECTS[r["model"]][0]: r["weights"] for r in records}
    made = ", ".join(sorted({r["commit"] for r in records}))
    lines = [
        f"`python benchmarks/cifar.py --train --truth --audit` at commit {made}, on {records[-1]['machine']}. "
        f"Networks without a name of their own are ResNet-20 with batch normalisation, ε = {EPS}. The truth is what "
        f"official AutoAttack's parts and transfer leave of {POINTS} points, by the rule of published.md; audits draw "
        "their own number of points.", "",
    ] if records else []  # fmt: skip
    for name, options in TRAINED.items():
        lines.append(f"- {name}: `maskaudit {options}`; SHA-256 {weights.get(name, 'not trained')[:16]}…")
    return lines


def _row(name: str, budget: str, found: Record, true: Record) -> str:
    both = truth.on_both(dict(zip(found["index"], found["robust"], strict=True)), true["stages"], true["index"])
    passes = [one["forwards"] + one["backwards"] for one in (found, true)]
    cells = [
        f"{name}: {SUBJECTS[name][2]}", f"{true['clean']:.3f}",
        truth.ladder(true["stages"]), true["label"], budget,
        f"**{found['label']}**", "; ".join(one["id"] for one in found["verdict"]["mechanisms"]),
        both, str(len(found["index"])),
        f"{passes[0]:,} / {passes[1]:,}", f"{found['cpu_seconds']:.0f} / {true['cpu_seconds']:.0f}",
        f"{found['peak_memory'] / 2**20:,.0f} MiB",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
