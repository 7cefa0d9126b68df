"""AutoAttack of torchattacks: an accuracy, no sign of masking.

H. Kim, "Torchattacks: a PyTorch repository for adversarial attacks", 2020, class `AutoAttack`. Used as a user would,
without the guards of our adapter. Its APGD makes 10 steps where the official one makes 100, and it fails below ten
classes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io

import torch

from benchmarks.peers.interface import Peer, PeerAnswer, PeerTask, PeerUnavailableError


def run(task: PeerTask) -> PeerAnswer:
    """Run it with its defaults, at the threat's norm and ε."""
    if importlib.util.find_spec("torchattacks") is None:
        raise PeerUnavailableError("the package torchattacks is not installed; pip install 'maskaudit[torchattacks]'")
    package = importlib.import_module("torchattacks")
    with torch.no_grad():
        classes = task.model(task.x[:1]).shape[1]
    with contextlib.redirect_stdout(io.StringIO()):
        attack = package.AutoAttack(
            task.model, norm=task.threat.norm, eps=task.threat.eps, seed=task.seed, n_classes=classes,
            version="rand" if task.random else "standard",
        )  # fmt: skip
        examples = attack(task.x, task.y)
    return PeerAnswer(examples=examples.detach())


PEER = Peer("torchattacks-autoattack", "torchattacks AutoAttack", "Kim 2020, torchattacks", run, detects=False)
