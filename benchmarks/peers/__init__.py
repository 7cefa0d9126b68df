"""The peers that the audit is compared with: one file each, run on the same points."""

from __future__ import annotations

from benchmarks.peers import (
    attack_failure,
    autoattack,
    binarization,
    gradient_alignment,
    obfuscation,
    torchattacks_autoattack,
)
from benchmarks.peers.interface import Peer

PEERS: dict[str, Peer] = {
    module.PEER.name: module.PEER
    for module in (
        autoattack, torchattacks_autoattack, attack_failure, gradient_alignment, obfuscation, binarization,
    )
}  # fmt: skip

__all__ = ["PEERS", "Peer"]
