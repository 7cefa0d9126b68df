"""AutoAttack as its authors publish it, with the flags that it raises.

F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, section 5; the flags are described in `flags_doc.md` of its repository, github.com/fra31/auto-attack. The
package is imported if it is installed, and nothing of it is kept here. A model that answers at random gets the `rand`
version, as the flag for such models asks.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io

import torch

from benchmarks.peers.interface import Peer, PeerAnswer, PeerTask, PeerUnavailableError

#: Points per batch: the package's own default.
BATCH = 250

#: What its warnings say, and what we call them.
FLAGS = {
    "randomized": "randomized defense",
    "probabilities": "probability distribution",
    "zero gradients": "zero gradient",
    "Square lowers accuracy": "Square Attack has decreased",
    "dynamic": "dynamic defense",
}

INSTALL = "pip install git+https://github.com/fra31/auto-attack"


def run(task: PeerTask) -> PeerAnswer:
    """Run the standard evaluation and read its warnings."""
    if importlib.util.find_spec("autoattack") is None:
        raise PeerUnavailableError(f"the package autoattack is not installed; {INSTALL}")
    package = importlib.import_module("autoattack")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        if task.random:
            with torch.no_grad():
                logger = importlib.import_module("autoattack.other_utils").Logger(None)
                package.checks.check_randomized(task.model, task.x[:BATCH], task.y[:BATCH], bs=BATCH, logger=logger)
        attack = package.AutoAttack(
            task.model, norm=task.threat.norm, eps=task.threat.eps, seed=task.seed, verbose=False, device="cpu",
            version="rand" if task.random else "standard",
        )  # fmt: skip
        examples = attack.run_standard_evaluation(task.x, task.y, bs=min(BATCH, len(task.x)))
    return PeerAnswer(read_flags(output.getvalue()), {}, examples.detach())


def read_flags(text: str) -> dict[str, bool]:
    """Which flags the printed warnings raise; warnings about the number of classes say nothing of masking."""
    warnings = [line for line in text.splitlines() if line.startswith("Warning:")]
    return {name: any(words in line for line in warnings) for name, words in FLAGS.items()}


PEER = Peer(
    "autoattack", "Official AutoAttack, any flag", "Croce & Hein 2020, section 5, and flags_doc.md", run,
    lenient=("probabilities", "randomized"),
)  # fmt: skip
