"""Whether attacks do the same on the CPU and on another device, with the same seeds."""

from __future__ import annotations

import platform
from typing import Any

import torch

from benchmarks.engine_networks import NETWORKS
from benchmarks.engine_subjects import BATCH
from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.decision import decision_based
from maskaudit.attacks.finite_differences import finite_differences
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import pgd
from maskaudit.attacks.square import square
from maskaudit.auditing.engine.interface import Job
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

#: Points, and the radius at which about half of them break, for the comparison of devices.
AGREEMENT_POINTS, AGREEMENT_EPS = 200, 0.012
AGREEMENT_ATTACKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pgd": (pgd, {"steps": 20}), "apgd-ce": (apgd, {"steps": 20}),
    "apgd-t": (apgd, {"steps": 20, "loss": "targeted-dlr", "targets": 3}), "noise": (random_noise, {"draws": 100}),
    "square": (square, {"queries": 200}), "finite-differences": (finite_differences, {"queries": 800}),
    "rays": (decision_based, {"queries": 200, "method": "rays"}),
    "hopskipjump": (decision_based, {"queries": 200, "method": "hopskipjump"}),
}  # fmt: skip


def agreement_rows(device: str) -> list[dict[str, Any]]:
    """Attack → how many of `AGREEMENT_POINTS` points share their fate on the CPU and on the device."""
    torch.manual_seed(0)
    factory, shape = NETWORKS["small-cnn"]
    network, x = factory().eval(), torch.rand(AGREEMENT_POINTS, *shape)
    y = network(x).argmax(1)
    rows = []
    for attack, (run, settings) in AGREEMENT_ATTACKS.items():
        found = []
        for where, batch in (("cpu", BATCH), (device, BATCH if device != "cpu" else BATCH // 4)):
            spec = AttackSpec(attack, "", "random", "challenger", run, settings)
            rng = PointRNG.create(0, attack, torch.arange(len(x)))
            with Target(network.to(where), device=where, batch_size=batch) as target:
                found.append(Job(spec, x, y, ThreatModel("Linf", AGREEMENT_EPS), rng, settings).run(target))
        here, there = found
        same = (here.first_success > 0) == (there.first_success > 0)
        rows.append(
            {
                "attack": attack, "points": len(x), "broken": int((here.first_success > 0).sum()),
                "same_fate": int(same.sum()), "same_step": int((here.first_success == there.first_success).sum()),
                "machine": machine(device),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def machine(device: str) -> str:
    """The machine in words."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, torch {torch.__version__}"
