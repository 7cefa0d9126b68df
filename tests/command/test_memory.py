"""Memory that is freed stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from maskaudit.command import entry

PROGRAM = """
import resource, sys, torch
from maskaudit.command.entry import keep_freed_memory
torch.set_num_threads(1)
kept = sys.argv[1] == "keep" and keep_freed_memory()
def touched():
    torch.zeros(64, 3, 224, 224).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
seen = [touched() for _ in range(24)]
print(int(kept), seen[-1] - seen[11])
"""


def faults(*arguments: str) -> tuple[bool, int]:
    """Whether memory was kept, and the page faults of the last twelve of 24 tensors of 38 MB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept == "1", int(count)


@pytest.mark.heavy
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_tensors_reuse_what_was_freed() -> None:
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept
    assert few < many / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry.sys, "platform", "darwin")
    assert not entry.keep_freed_memory()
    monkeypatch.setattr(entry.sys, "platform", "linux")
    monkeypatch.setattr(entry.ctypes, "CDLL", lambda name: object())
    assert not entry.keep_freed_memory()
