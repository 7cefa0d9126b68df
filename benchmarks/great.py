"""Does the robustness that gradient adversarial training reports survive an audit?

    MASKAUDIT_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/great.py [--only TEXT …] [--scale small|full] [--render]

Trains the five methods of Sinha et al. 2018 (arXiv 1806.08028, section 2.1) at a small scale, measures what the paper
measures (FGSM and iFGSM with k = 10, untargeted and targeted at a random and at the least likely class, ε = 0.1 and
0.2), and then audits each network at `quick`. A finished network is a line of `great-SCALE.jsonl`, appended at once,
and is skipped by the next run. `docs/great.md` and its pictures are made from that file; `--render` does that alone.

`--scale full` has the paper's own settings, ResNet-18 and 100 epochs on all of CIFAR-10 and SVHN, for an accelerator
(`--device cuda`). CIFAR-10 and SVHN are looked for where `maskaudit check --data cifar-10` looks; without them the
networks on the digits remain.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.great_page import write_pictures
from benchmarks.great_transfer import Runs
from benchmarks.great_transfer import runs as transfer_runs
from benchmarks.records import RecordFile
from maskaudit import api
from maskaudit.data import Dataset, load_data
from maskaudit.errors import InputError
from maskaudit.settings import AuditSettings, Request
from maskaudit.threat import ThreatModel
from maskaudit.train import TrainConfig, TrainEvent, save_trained, train
from maskaudit.train.adversaries import ascend, input_gradient
from maskaudit.train.loop import answers, scale_of

HERE = Path(__file__).resolve().parent
#: Radii of the paper's tables 1 and 2, of its iterated attack's steps, and of the curves.
RADII = (0.1, 0.2)
STEPS = 10
CURVE = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
#: Steps of the attacks behind the curves; test points of tables and curves; most points of an audit.
CURVE_STEPS = 20
TABLE_POINTS = 300
CURVE_POINTS = 100
AUDIT_POINTS = 128
#: The ball of the paper's adversarial training (supplement).
TRAINED_EPS = 0.2

SMALL_RESNET = "resnet(width=8, blocks=(1, 1, 1))"
METHODS: Mapping[str, Mapping[str, Any]] = {
    "Baseline": {"method": "standard"},
    "Adversarial": {"method": "fgsm-at", "clean_weight": 0.5},
    "GREACE": {"method": "greace"},
    "GREAT": {"method": "great"},
    "GRE(AT+CE)": {"method": "great+ce"},
}
#: What all methods share, so that they differ in nothing else.
COMMON: Mapping[str, Any] = {"lr": 1e-3, "schedule": "poly", "augment": "crop"}


@dataclass(frozen=True)
class Subject:
    """One network of the study: `setting` is data and architecture, `eps` the radius of its audit."""

    setting: str
    label: str
    eps: float
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in the records."""
        return f"{self.setting} · {self.label} · seed {self.options.get('seed', 0)}"

    @property
    def config(self) -> TrainConfig:
        """How it is trained."""
        threat = ThreatModel("Linf", TRAINED_EPS, (0.0, 1.0))
        return TrainConfig(**{**COMMON, **self.options, "threat": threat})


def small() -> list[Subject]:
    """The study for a CPU, in the order of what is learned most from."""
    digits = {"data": "digits", "model": "small_cnn", "epochs": 60}
    normalised = {"data": "digits", "model": SMALL_RESNET, "epochs": 12}
    cifar = {"data": "cifar-10", "model": SMALL_RESNET, "epochs": 10, "fraction": 0.05}
    plain = "digits, small CNN without batch norm"
    found = _five(plain, 0.2, digits)
    greace = {**digits, **METHODS["GREACE"]}
    found += [Subject(plain, f"GREACE, {form}", 0.2, {**greace, "greace": form}) for form in ("zero-sum", "bounded")]
    found += [Subject(plain, f"GREACE, β {beta:g}", 0.2, {**greace, "beta": beta}) for beta in (0.1, 10.0)]
    found += _five("CIFAR-10 (5 %), small ResNet", 0.1, cifar)
    found += _five("digits, small ResNet", 0.2, normalised)
    for seed in (1, 2):
        found += _five(plain, 0.2, {**digits, "seed": seed})
    return found


def full(device: str) -> list[Subject]:
    """The paper's own settings, for an accelerator."""
    net = {"model": "resnet", "epochs": 100, "batch_size": 128, "device": device}
    found = _five("CIFAR-10, ResNet-18", 0.1, {**net, "data": "cifar-10", "beta": 2.0})
    return [*found, *_five("SVHN, ResNet-18", 0.2, {**net, "data": "svhn", "beta": 10.0})]


def _five(setting: str, eps: float, options: Mapping[str, Any]) -> list[Subject]:
    return [Subject(setting, label, eps, {**options, **method}) for label, method in METHODS.items()]


def main() -> int:
    """Run what is not there yet, then render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names; all if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    file = RecordFile(HERE / f"great-{options.scale}.jsonl")
    subjects = small() if options.scale == "small" else full(options.device)
    runs: Runs = {subject.key: functools.partial(studied, subject) for subject in subjects}
    runs |= transfer_runs() if options.scale == "small" else {}
    done = {record["key"] for record in file.read()}
    for key, run in ({} if options.render else runs).items():
        if key not in done and all(word in key for word in options.only):
            try:
                file.append(run())
            except InputError as error:
                print(f"{key}: left out, {error}", flush=True)
    write_pictures(file.read())
    print("Now: python docs/generate.py")
    return 0


def studied(subject: Subject) -> dict[str, Any]:
    """Train, attack as the paper does, audit; one record."""
    events: list[TrainEvent] = []
    print(f"{subject.key} …", flush=True)
    test = load_data(subject.config.data, split="test", limit=10 * TABLE_POINTS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        began = time.process_time()
        module = train(subject.config, out=path, on_event=events.append)
        spent = time.process_time() - began
        saved = save_trained(path, module, subject.config)
        record = {
            "key": subject.key, "setting": subject.setting, "method": subject.label, "eps": subject.eps,
            "seed": subject.config.seed, "training": saved["training"], "train_accuracy": saved["train_accuracy"],
            "seconds_per_epoch": round(spent / len(events), 3), "auxiliary_accuracy": events[-1].auxiliary_accuracy,
            "loss": events[-1].loss, **measured(module, test, subject), "audit": audited(path, subject),
        }  # fmt: skip
    print(f"  {record['audit']['label']}: {record['audit']['sentence']}", flush=True)
    return record


def measured(module: nn.Module, test: Dataset, subject: Subject) -> dict[str, Any]:
    """Clean accuracy, the paper's attacks, curves, logits, saturated gradients, saliency of three points."""
    _, x, y = test.sample(TABLE_POINTS, seed=0)
    few_x, few_y = x[:CURVE_POINTS], y[:CURVE_POINTS]
    gradient = input_gradient(lambda z: F.cross_entropy(module(z), y, reduction="sum"), x)
    return {
        "points": len(x),
        "clean": _accuracy(module, x, y),
        "attacks": {f"{eps:g}": paper_attacks(module, x, y, eps) for eps in RADII},
        "logit_scale": scale_of(answers(module, x)),
        "mean_logit": float(answers(module, x).double().mean()),
        "zero_gradient": float((gradient.flatten(1) == 0).all(1).double().mean()),
        "curves": [
            {"eps": eps, **{loss: _accuracy(module, _walk(module, few_x, few_y, eps, loss), few_y) for loss in LOSSES}}
            for eps in CURVE
        ],
        "saliency": _saliency(gradient[:3]),
        "shown": (255 * x[:3]).round().int().tolist(),
    }


def paper_attacks(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, float]:
    """Test accuracy under FGSM and iFGSM (k steps of ε/k), as in the paper's tables 1 and 2."""
    logits = answers(module, x)
    true = F.one_hot(y, logits.shape[1]).bool()
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(logits.shape, generator=generator).masked_fill(true, -1.0).argmax(1)
    worst = logits.masked_fill(true, torch.inf).argmin(1)
    found = {}
    for steps, name in ((1, "FGSM"), (STEPS, "iFGSM")):
        for target, kind in ((None, "untargeted"), (worst, "worst"), (random, "random")):
            found[f"{name} {kind}"] = _accuracy(module, signed_steps(module, x, y, eps, steps, target), y)
    return found


def signed_steps(module: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, target: Tensor | None) -> Tensor:
    """`steps` steps of ε/steps from the clean point: up the true class's cross-entropy, or down the target's."""
    threat, towards = ThreatModel("Linf", eps, (0.0, 1.0)), 1 if target is None else -1
    labels, at = y if target is None else target, x
    for _ in range(steps):
        gradient = input_gradient(lambda z: F.cross_entropy(module(z), labels, reduction="sum"), at)
        at = threat.project(at + towards * eps / steps * gradient.sign(), x)
    return at


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="sum")


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    truth = F.one_hot(y, logits.shape[1]).bool()
    return (logits.masked_fill(truth, -torch.inf).amax(1) - logits[truth]).sum()


LOSSES = {"cross-entropy": _cross_entropy, "margin": _margin}


def _walk(module: nn.Module, x: Tensor, y: Tensor, eps: float, loss: str) -> Tensor:
    if eps == 0:
        return x
    threat = ThreatModel("Linf", eps, (0.0, 1.0))
    return ascend(lambda z: LOSSES[loss](module(z), y), x, threat, steps=CURVE_STEPS, start=x)


def _saliency(gradient: Tensor) -> list[list[list[int]]]:
    """|∇ₓ CE|, largest over colours, each point scaled to 0 … 255."""
    strength = gradient.abs().amax(1)
    largest = strength.flatten(1).amax(1).clamp_min(1e-38).view(-1, 1, 1)
    return (255 * strength / largest).round().int().tolist()  # type: ignore[no-any-return]


def _accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    return round(float((answers(module, x).argmax(1) == y).double().mean()), 4)


def audited(path: Path, subject: Subject) -> dict[str, Any]:
    """The verdict of `maskaudit check FILE --eps ε --budget quick`."""
    request = Request(str(path), eps=subject.eps, settings=AuditSettings(budget="quick", samples=AUDIT_POINTS))
    document = api.run(api.prepare(request)).report.to_dict()
    accuracy, masking = document["accuracy"], document["masking"]
    return {
        "label": document["verdict"]["label"], "sentence": document["verdict"]["sentence"],
        "mechanisms": [mechanism_of(entry) for entry in document["verdict"]["mechanisms"]],
        "accuracy": {name: _value(accuracy[name]) for name in ("clean", "reference", "strong_reference", "best_known")},
        "masking": {name: _value(masking[name]) for name in ("gradient_level", "loss_level")},
        "families": families(document["attacks"], document["points"]),
    }  # fmt: skip


def mechanism_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A mechanism with the places that the audit names."""
    places = [f"{place['module'] or 'model'}: {place['op']}" for place in entry["locations"]]
    return {"id": entry["id"], "places": places[:3]}


def families(attacks: Sequence[Mapping[str, Any]], points: Mapping[str, Any]) -> dict[str, int]:
    """Points broken by any attack of a kind, over `attempted`, as the audit counts them."""
    found: dict[str, int] = {}
    for row in attacks:
        found[row["kind"]] = max(found.get(row["kind"], 0), row["broken"])
    return {**found, "correct": sum(points["correct"])}


def _value(rate: Mapping[str, Any] | None) -> float | None:
    return None if rate is None else round(rate["value"], 4)


if __name__ == "__main__":
    sys.exit(main())
